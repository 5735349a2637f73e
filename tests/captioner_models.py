"""Random-weight captioners of width 32 and two layers, each saved as its library saves it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    CLIPImageProcessor,
    GitConfig,
    GitForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

from mmprompt.captioning.mapper import save_mapped
from mmprompt.captioning.readers.load import load_pair
from mmprompt.models.frozen import LoadOptions
from tests.small_models import (
    HEADS,
    IMAGE,
    LAYERS,
    PATCH,
    WIDTH,
    WORDS,
    open_clip_config,
    randomise,
    save_clip_tokenizer,
    save_hf,
)

PAD, UNKNOWN, START, END = 0, 1, 2, 3
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", ".", *WORDS]
SIZE = len(VOCABULARY)
POSITIONS = 48
SHAPE = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
}
IMAGE_SHAPE = {"image_size": IMAGE, "patch_size": PATCH}
TOKENS: dict[str, Any] = {"vocab_size": SIZE, "bos_token_id": START, "eos_token_id": END, "pad_token_id": PAD}


def save_word_tokenizer(folder: Path) -> None:
    """One token a word, start and end of their own."""
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", bos_token="[CLS]", eos_token="[SEP]"
    ).save_pretrained(folder)


def save_gpt2(folder: Path) -> Path:
    return save_language_model(GPT2LMHeadModel(gpt2_config()), folder)


def gpt2_config(**settings: Any) -> GPT2Config:
    return GPT2Config(n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, n_positions=POSITIONS, **TOKENS, **settings)


def save_opt(folder: Path, embedding_width: int = WIDTH) -> Path:
    """OPT; with narrower embeddings it has a projection on both ends, as its smallest published model."""
    shape = {name: value for name, value in SHAPE.items() if name != "intermediate_size"}
    config = OPTConfig(
        ffn_dim=48, word_embed_proj_dim=embedding_width, max_position_embeddings=POSITIONS, **shape, **TOKENS
    )
    return save_language_model(OPTForCausalLM(config), folder)


def save_llama(folder: Path, n_key_value_heads: int = HEADS, head_dim: int | None = None) -> Path:
    config = LlamaConfig(
        num_key_value_heads=n_key_value_heads, max_position_embeddings=POSITIONS, head_dim=head_dim, **SHAPE, **TOKENS
    )
    return save_language_model(LlamaForCausalLM(config), folder)


def save_language_model(model: Any, folder: Path) -> Path:
    randomise(model, 1)
    model.save_pretrained(folder)
    save_word_tokenizer(folder)
    return folder


def save_trained_pair(name: str, folder: Path, kind: str) -> Path:
    """A folder as `fit_mapper` leaves it, between the models of a name `ENCODER + LM`."""
    options = LoadOptions(torch.device("cpu"), torch.float32)
    captioner = load_pair(name, options, kind, None if kind == "linear" else 3)
    decoder: Any = captioner.decoder
    randomise(decoder.mapper, 5)
    save_mapped(captioner, folder)
    return folder


def save_blip(folder: Path) -> Path:
    text = SHAPE | TOKENS | {"sep_token_id": END, "max_position_embeddings": POSITIONS, "encoder_hidden_size": 24}
    vision = SHAPE | IMAGE_SHAPE | {"hidden_size": 24}
    config = BlipConfig(text_config=text, vision_config=vision, projection_dim=16)
    config.text_config.bos_token_id = START
    save_word_tokenizer(folder)
    return save_hf(
        BlipForConditionalGeneration(config), BlipImageProcessor(size={"height": IMAGE, "width": IMAGE}), folder, 2
    )


def save_git(folder: Path) -> Path:
    vision = SHAPE | IMAGE_SHAPE | {"hidden_size": 24}
    config = GitConfig(vision_config=vision, max_position_embeddings=POSITIONS, **SHAPE, **TOKENS)
    save_word_tokenizer(folder)
    processor = CLIPImageProcessor(size={"shortest_edge": IMAGE}, crop_size=IMAGE)
    return save_hf(GitForCausalLM(config), processor, folder, 3)


def save_encoder_decoder(folder: Path, image_width: int = WIDTH) -> Path:
    """ViT and GPT-2; with another width of the image a projection stands between them."""
    encoder = ViTModel(ViTConfig(**SHAPE | IMAGE_SHAPE | {"hidden_size": image_width}), add_pooling_layer=False)
    decoder = GPT2LMHeadModel(gpt2_config(add_cross_attention=True, is_decoder=True))
    model = VisionEncoderDecoderModel(encoder=encoder, decoder=decoder)
    for config in (model.config, model.generation_config):
        config.decoder_start_token_id, config.eos_token_id, config.pad_token_id = START, END, PAD
    save_word_tokenizer(folder)
    return save_hf(model, ViTImageProcessor(size={"height": IMAGE, "width": IMAGE}), folder, 4)


def save_coca(folder: Path, multimodal_heads: int = HEADS, gives_tokens: bool = True) -> Path:
    """An open_clip CoCa as a folder; it has 15 positions for words."""
    folder.mkdir(parents=True, exist_ok=True)
    size = save_clip_tokenizer(folder)
    text = {"context_length": 15, "embed_cls": True, "output_tokens": True}
    vision = {"attentional_pool": True, "attn_pooler_queries": 6, "attn_pooler_heads": 2, "output_tokens": gives_tokens}
    decoder = {"context_length": 15, "vocab_size": size, "width": WIDTH, "heads": multimodal_heads, "layers": LAYERS}
    config = open_clip_config(size, vision, text, multimodal_cfg=decoder, custom_text=True, embed_dim=WIDTH)
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    settings = {name: value for name, value in config["model_cfg"].items() if name != "custom_text"}
    torch.manual_seed(6)
    model = open_clip.CoCa(**settings)
    torch.nn.init.normal_(model.text_decoder.text_projection, std=0.2)  # its constructor leaves it unset
    randomise(model, 6)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder
