"""Frozen small language models of several families, built on the spot: random weights, width 32, two layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from tokenizers import processors
from torch import Tensor
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MptConfig,
    MptForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from mmprompt.core.learned import Prompt
from mmprompt.core.method import Start
from mmprompt.core.soft import DecoderMethod
from mmprompt.language.start import with_unit
from mmprompt.language.templates.template import Template
from mmprompt.models.decoder.model import FrozenLanguageModel
from tests.captioner_models import POSITIONS, SHAPE
from tests.small_language_models import END, START, byte_tokenizer, new_language_model
from tests.small_models import HEADS, LAYERS, WIDTH, randomise

CAUSAL = ("gpt2", "llama", "opt", "qwen2")
OTHER_CAUSAL = ("bloom", "gemma", "gemma2", "gpt_neo", "gpt_neox", "mistral", "mpt", "opt_narrow", "qwen3")
"""Without positions (bloom, mpt), with embeddings that are scaled inside (gemma), with windows of `WINDOW` slots
(mistral, and gemma2 and gpt_neo in every second block), with bounded logits (gemma2), with embeddings narrower than the
blocks (opt_narrow), with normed queries and keys (qwen3)."""
ENCODED = ("bart", "t5")
WINDOW = 8
FRAMES = {
    "llama": "<s> $A",
    "opt": "<s> $A",
    "t5": "$A </s>",
    "t5_wide": "$A </s>",
    "bart": "<s> $A </s>",
}
"""What the tokenizer of a family puts around a text; nothing for the others."""


class Tolerance(NamedTuple):
    """How far a family in float64 may be from itself where the same slots are read in rows of another shape.

    Attributes:
        value: of log-probabilities and logits, relative to all or to the largest.
        gradient: of vectors of a prompt, relative to all.
    """

    value: float
    gradient: float


EXACT = Tolerance(1e-12, 1e-10)
SOFTMAX = Tolerance(5e-7, 5e-6)
SINGLE = {
    "t5": Tolerance(1e-10, 1e-6),
    "t5_wide": Tolerance(1e-10, 1e-6),
    "bloom": SOFTMAX,
    "gemma2": SOFTMAX,
    "mpt": SOFTMAX,
    "gpt_neo": Tolerance(1e-6, 1e-5),
}
"""What a family's own code takes in float32 (a rounding: 6e-8) inside a model of float64; families not named are EXACT.

| family | in float32 | what follows |
|---|---|---|
| gpt2, opt, bart | nothing | |
| gpt_neox | sines of positions | the same numbers in any row |
| llama, qwen2, qwen3, mistral, gemma | sines, norms | a norm is of one slot: values agree; gradients need it replaced |
| t5 | the variance in norms | values agree, gradients are rounded on their way back |
| bloom | softmax | a sum over slots, whose order hangs on how many the row has and on the processor |
| gemma2 | sines, norms, softmax | the same |
| mpt | softmax | the same; and its scores, with positions counted from the end of the row, are rounded first |
| gpt_neo | queries, keys, scores, softmax | the same; and its scores are sums of roundings |

With each softmax summed in a random order, values came up to 8.4e-8 apart (bloom 3.2e-8), gradients 7.7e-7 (gpt_neo
1.5e-6) and logits 1.3e-7 of the largest (gpt_neo 3.0e-7). The code of llama, opt and others has such a softmax
too, but they run torch's attention instead, which is float64 throughout.
"""


def tolerance_of(kind: str) -> Tolerance:
    return SINGLE.get(kind, EXACT)


def frozen_model(kind: str = "llama", dtype: torch.dtype = torch.float64) -> FrozenLanguageModel:
    """One of CAUSAL, OTHER_CAUSAL or ENCODED, or t5_wide, whose heads are together wider than its blocks; llama and
    qwen2 have grouped queries."""
    tokenizer = family_tokenizer(kind)
    lm = family_model(kind, len(tokenizer)).to(dtype).eval().requires_grad_(False)
    return FrozenLanguageModel(kind, lm, tokenizer)


def prompt_from(
    method: DecoderMethod,
    model: FrozenLanguageModel,
    values: Tensor,
    tasks: Sequence[str] = (),
    template: str = "{soft} {text} {answer}",
) -> Prompt:
    """The untrained prompt of a method, whose vectors start at [M, D], or its keys and values at theirs."""

    def keys_values(n: int) -> list[tuple[Tensor, Tensor]]:
        return [with_unit(pair) for pair in model.reader.keys_values_of(values.to(model.dtype))]

    start = Start(
        torch.Generator(),
        Template.parse(template).with_soft(method.n_vectors),
        tasks=tasks,
        vectors=lambda n: (values, torch.tensor(model.embedding_rms)),
        keys_values=None if model.kv_shape is None else keys_values,
    )
    return method.prompt(model, start)


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
    if kind in ("gpt2", "llama", "opt_narrow", "qwen2", "t5"):
        return new_language_model(kind.removesuffix("_narrow"), n_tokens)
    torch.manual_seed(0)
    model = new_model(kind, {"vocab_size": n_tokens, "bos_token_id": START, "eos_token_id": END, "pad_token_id": END})
    randomise(model, 1)
    model.tie_weights()
    return model.eval()


def new_model(kind: str, tokens: dict[str, int]) -> Any:
    """A model as transformers initialises it."""
    shape = {name: value for name, value in SHAPE.items() if name != "intermediate_size"}
    if kind == "opt":
        opt = {"ffn_dim": 48, "word_embed_proj_dim": WIDTH, "max_position_embeddings": POSITIONS}
        return OPTForCausalLM(OPTConfig(**opt, **shape, **tokens))
    if kind == "bloom":
        return BloomForCausalLM(BloomConfig(hidden_size=WIDTH, n_layer=LAYERS, n_head=HEADS, **tokens))
    if kind == "mpt":
        mpt = {"d_model": WIDTH, "n_layers": LAYERS, "n_heads": HEADS, "max_seq_len": POSITIONS}
        return MptForCausalLM(MptConfig(**mpt, **tokens))
    if kind == "t5_wide":
        halves = {"d_model": WIDTH, "d_kv": 12, "d_ff": 48, "num_layers": LAYERS, "num_heads": HEADS}
        return T5ForConditionalGeneration(T5Config(decoder_start_token_id=END, **halves, **tokens))
    if kind == "bart":
        halves = {
            f"{half}_{name}": value
            for half in ("encoder", "decoder")
            for name, value in (("layers", LAYERS), ("attention_heads", HEADS), ("ffn_dim", 48))
        }
        more = {"max_position_embeddings": POSITIONS, "decoder_start_token_id": END, "forced_eos_token_id": None}
        return BartForConditionalGeneration(BartConfig(d_model=WIDTH, **halves, **more, **tokens))
    return new_decoder(kind, SHAPE | tokens | {"max_position_embeddings": POSITIONS})


def new_decoder(kind: str, settings: dict[str, Any]) -> Any:
    """A decoder with rotary positions, or GPT-Neo."""
    if kind == "gpt_neox":
        return GPTNeoXForCausalLM(GPTNeoXConfig(**settings))
    if kind == "gpt_neo":
        own = {"num_layers": LAYERS, "num_heads": HEADS, "window_size": WINDOW}
        return GPTNeoForCausalLM(GPTNeoConfig(attention_types=[[["global", "local"], 1]], **(settings | own)))
    grouped = settings | {"num_key_value_heads": 2}
    if kind == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(head_dim=WIDTH // HEADS, **grouped))
    if kind == "gemma":
        return GemmaForCausalLM(GemmaConfig(head_dim=WIDTH // HEADS, **grouped))
    if kind == "gemma2":
        more = {"head_dim": WIDTH // HEADS, "query_pre_attn_scalar": 8, "sliding_window": WINDOW}
        return Gemma2ForCausalLM(Gemma2Config(**more, **grouped))
    return MistralForCausalLM(MistralConfig(sliding_window=WINDOW, **grouped))
