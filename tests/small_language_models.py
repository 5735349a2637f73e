"""Random-weight language models of width 32 and two layers: folders as transformers saves them, and one GGUF file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from tests.captioner_models import POSITIONS, SHAPE
from tests.small_models import HEADS, LAYERS, WIDTH, WORDS, randomise

START, END = 0, 1
CHAT_TEMPLATE = "{% for message in messages %}<s>{{ message['content'] }}</s>{% endfor %}"
KINDS = ("gpt2", "llama", "opt", "qwen2", "t5")


def save_language_model(kind: str, folder: Path) -> Path:
    """A model of a family with its tokenizer, as transformers saves them."""
    tokenizer = byte_tokenizer()
    new_language_model(kind, len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def new_language_model(kind: str, n_tokens: int) -> Any:
    """Random weights, embeddings tied, grouped queries where the family has them."""
    torch.manual_seed(0)
    tokens = {"vocab_size": n_tokens, "bos_token_id": START, "eos_token_id": END, "pad_token_id": END}
    grouped = SHAPE | tokens | {"num_key_value_heads": 2, "max_position_embeddings": POSITIONS}
    tied = {"tie_word_embeddings": True}
    if kind == "gpt2":
        model: Any = GPT2LMHeadModel(
            GPT2Config(n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, n_positions=POSITIONS, **tokens)
        )
    elif kind == "llama":
        model = LlamaForCausalLM(LlamaConfig(**grouped, **tied))
    elif kind == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**grouped, **tied))
    elif kind == "opt":
        shape = {name: value for name, value in SHAPE.items() if name != "intermediate_size"}
        model = OPTForCausalLM(
            OPTConfig(ffn_dim=48, word_embed_proj_dim=16, max_position_embeddings=POSITIONS, **shape, **tokens)
        )
    else:
        shape = {"d_model": WIDTH, "d_kv": WIDTH // HEADS, "d_ff": 48, "num_layers": LAYERS, "num_heads": HEADS}
        model = T5ForConditionalGeneration(T5Config(decoder_start_token_id=END, **shape, **tokens))
    randomise(model, 1)
    model.tie_weights()
    return model.eval()


def byte_tokenizer() -> Any:
    """Byte-level pairs with merges, `<s>` and `</s>` the first two tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")


def write_gguf(path: Path, model: LlamaForCausalLM, tokenizer: Any) -> Path:
    """A Llama and its tokenizer as a GGUF file, in float32."""
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    write_vocabulary(writer, tokenizer)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, value in model.named_parameters():
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        stored = value if heads is None else interleaved(value, heads)
        writer.add_tensor(names.get_name(name, (".weight",)), stored.detach().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_vocabulary(writer: gguf.GGUFWriter, tokenizer: Any) -> None:
    vocabulary = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(vocabulary)
    writer.add_token_types([gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.NORMAL] * (len(vocabulary) - 2))
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(START)
    writer.add_eos_token_id(END)
    writer.add_unk_token_id(END)
    writer.add_chat_template(CHAT_TEMPLATE)


def interleaved(weight: torch.Tensor, n_heads: int) -> torch.Tensor:
    """GGUF keeps the two halves of a head's rotation side by side, transformers one after the other."""
    return weight.unflatten(0, (n_heads, 2, -1)).transpose(1, 2).reshape(weight.shape)
