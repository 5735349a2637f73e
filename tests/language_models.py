"""Frozen small language models of several families, built on the spot: random weights, width 32, two layers."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import processors
from transformers import BartConfig, BartForConditionalGeneration, OPTConfig, OPTForCausalLM

from mmprompt.backbones.language.model import FrozenLanguageModel
from tests.captioner_models import POSITIONS, SHAPE
from tests.small_language_models import END, START, byte_tokenizer, new_language_model
from tests.small_models import HEADS, LAYERS, WIDTH, randomise

CAUSAL = ("gpt2", "llama", "opt", "qwen2")
ENCODED = ("bart", "t5")
FRAMES = {"llama": "<s> $A", "opt": "<s> $A", "t5": "$A </s>", "bart": "<s> $A </s>"}
"""What the tokenizer of a family puts around a text; nothing for the others."""


def frozen_model(kind: str = "llama", dtype: torch.dtype = torch.float64) -> FrozenLanguageModel:
    """One of CAUSAL or ENCODED; llama and qwen2 have grouped queries."""
    tokenizer = family_tokenizer(kind)
    lm = family_model(kind, len(tokenizer)).to(dtype).eval().requires_grad_(False)
    return FrozenLanguageModel(kind, lm, tokenizer)


def family_tokenizer(kind: str) -> Any:
    """Byte-level pairs, with the start and end tokens of the family."""
    tokenizer = byte_tokenizer()
    if kind in FRAMES:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=FRAMES[kind], special_tokens=[("<s>", START), ("</s>", END)]
        )
    return tokenizer


def family_model(kind: str, n_tokens: int) -> Any:
    """Weights large enough that texts change what is said."""
    model = plain_model(kind, n_tokens)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and "position" not in name:
            parameter.data *= 2.0
    return model


def plain_model(kind: str, n_tokens: int) -> Any:
    """The model of a family; here OPT's embeddings are as wide as its blocks."""
    if kind not in ("opt", "bart"):
        return new_language_model(kind, n_tokens)
    torch.manual_seed(0)
    tokens = {"vocab_size": n_tokens, "bos_token_id": START, "eos_token_id": END, "pad_token_id": END}
    if kind == "opt":
        shape = {name: value for name, value in SHAPE.items() if name != "intermediate_size"}
        model: Any = OPTForCausalLM(
            OPTConfig(ffn_dim=48, word_embed_proj_dim=WIDTH, max_position_embeddings=POSITIONS, **shape, **tokens)
        )
    else:
        halves = {
            f"{half}_{name}": value
            for half in ("encoder", "decoder")
            for name, value in (("layers", LAYERS), ("attention_heads", HEADS), ("ffn_dim", 48))
        }
        more = {"max_position_embeddings": POSITIONS, "decoder_start_token_id": END, "forced_eos_token_id": None}
        model = BartForConditionalGeneration(BartConfig(d_model=WIDTH, **halves, **more, **tokens))
    randomise(model, 1)
    model.tie_weights()
    return model.eval()
