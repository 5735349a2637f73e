"""Random-weight models of width 32 and two layers, written as each library writes its own checkpoints."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from safetensors.torch import save_file
from timm.models import register_model
from timm.models._hub import save_for_hf
from timm.models.vision_transformer import Block, VisionTransformer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import (
    BertConfig,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    RobertaConfig,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

WIDTH, LAYERS, HEADS, EMBED, IMAGE, PATCH, CONTEXT = 32, 2, 4, 24, 32, 8, 16
WORDS = "a an the of photo image picture cat dog bird fish car tree house flower red blue green happy sad left".split()
START, END = "<|startoftext|>", "<|endoftext|>"


def byte_letters() -> list[str]:
    """The 256 printable stand-ins for bytes that byte-level BPE is written in, in CLIP's order."""
    return list(open_clip.tokenizer.bytes_to_unicode().values())


def merges(prefix: str, suffix: str) -> list[tuple[str, str]]:
    """Byte-pair merges that make one token of each word above, from its first letter on."""
    pairs = {}
    for word in WORDS:
        first, *rest = [*prefix, *word[:-1], word[-1] + suffix]
        for part in rest:
            pairs[first, part] = None
            first += part
    return list(pairs)


CLIP_MERGES = merges("", "</w>")
SIGLIP_MERGES = merges("\u0120", "")  # the stand-in for a space


def clip_vocabulary() -> dict[str, int]:
    letters = byte_letters()
    words = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, CLIP_MERGES)]
    return {word: index for index, word in enumerate([*words, START, END])}


def save_clip_tokenizer(folder: Path) -> int:
    """A byte-pair tokenizer in CLIP's form; returns the size of its vocabulary."""
    vocabulary = clip_vocabulary()
    CLIPTokenizer(vocab=vocabulary, merges=CLIP_MERGES, model_max_length=CONTEXT).save_pretrained(folder)
    return len(vocabulary)


def write_bpe(path: Path) -> Path:
    """The same merges in the file form of open_clip's SimpleTokenizer."""
    path.write_bytes(gzip.compress("\n".join(["#version", *map(" ".join, CLIP_MERGES), ""]).encode()))
    return path


def save_siglip_tokenizer(folder: Path, pad: str = "</s>") -> int:
    """A tokenizer framed as SigLIP's are: no start token, the end token after the words, padding after that."""
    tokens = ["<pad>", "</s>", "<unk>", *byte_letters(), *map("".join, SIGLIP_MERGES)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=SIGLIP_MERGES, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="</s>",
        pad_token=pad,
        unk_token="<unk>",
        model_max_length=CONTEXT,
        model_input_names=["input_ids"],
    ).save_pretrained(folder)
    return len(vocabulary)


def save_bert_tokenizer(folder: Path) -> int:
    """A tokenizer framed as BERT's are: start, words, end, and padding of another id."""
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *byte_letters(), *map("".join, SIGLIP_MERGES)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=SIGLIP_MERGES, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    frame = [("<s>", 0), ("</s>", 2)]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=frame)
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **named, model_max_length=CONTEXT, model_input_names=["input_ids"]
    ).save_pretrained(folder)
    return len(vocabulary)


def randomise(model: nn.Module, seed: int) -> None:
    """Move every weight, norms and biases too, so that none of them can be forgotten unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in sorted(model.state_dict().items()):
            if value.is_floating_point() and not name.endswith(("logit_scale", "logit_bias")):
                noise = 0.1 * torch.randn(value.shape, generator=generator)
                value.add_(noise.abs() if name.endswith("running_var") else noise)


def open_clip_config(vocabulary_size: int, vision: dict[str, Any], text: dict[str, Any], **model: Any) -> dict:
    """The settings of a model folder; a text setting of None is left out."""
    shape = {"image_size": IMAGE, "layers": LAYERS, "width": WIDTH, "head_width": 8, "patch_size": PATCH}
    words = {"context_length": CONTEXT, "vocab_size": vocabulary_size, "width": WIDTH, "heads": HEADS, "layers": LAYERS}
    words |= {"hf_tokenizer_name": "in this folder"} | text
    given = {name: value for name, value in words.items() if value is not None}
    model_cfg = {"embed_dim": EMBED, "vision_cfg": shape | vision, "text_cfg": given} | model
    return {"model_cfg": model_cfg, "preprocess_cfg": {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28]}}


def save_open_clip(
    folder: Path,
    vision: dict[str, Any] | None = None,
    text: dict[str, Any] | None = None,
    save_tokenizer: Callable[[Path], int] = save_clip_tokenizer,
    seed: int = 0,
    **model: Any,
) -> Path:
    """An open_clip model as a `local-dir:` folder."""
    folder.mkdir(parents=True, exist_ok=True)
    config = open_clip_config(save_tokenizer(folder), vision or {}, text or {}, **model)
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    settings = dict(config["model_cfg"])
    if "hf_model_name" in settings["text_cfg"]:
        place = str(folder / settings["text_cfg"]["hf_model_name"])
        settings["text_cfg"] |= {"hf_model_name": place, "hf_model_pretrained": False}
    kind = open_clip.CustomTextCLIP if settings.pop("custom_text", False) else open_clip.CLIP
    torch.manual_seed(seed)
    built = kind(**settings)
    randomise(built, seed)
    save_file(built.state_dict(), folder / "open_clip_model.safetensors")
    return folder


def save_bert(
    folder: Path, config: type[BertConfig | RobertaConfig] = BertConfig, pooler: str = "mean_pooler", **settings: Any
) -> Path:
    """An open_clip model whose text tower is a BERT of transformers, its configuration beside it in the folder."""
    shape = {"hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    shape |= {"vocab_size": 4 + 256 + len(SIGLIP_MERGES), "pad_token_id": 1, "max_position_embeddings": CONTEXT}
    config(**shape | settings).save_pretrained(folder / "text")
    text = {"hf_model_name": "./text", "hf_pooler_type": pooler, "hf_proj_type": "linear"}
    return save_open_clip(folder, text=text, save_tokenizer=save_bert_tokenizer, custom_text=True)


def timm_vit(**settings: Any) -> VisionTransformer:
    vit = VisionTransformer(
        img_size=IMAGE, patch_size=PATCH, embed_dim=WIDTH, depth=LAYERS, num_heads=HEADS, **settings
    )
    vit.default_cfg = {}  # open_clip asks it for a pool size
    return vit


@register_model
def small_timm_vit(pretrained: bool = False, **unused: Any) -> VisionTransformer:
    """Class and register tokens, norms of queries and keys, layer scale, a norm before the blocks."""
    return timm_vit(qk_norm=True, init_values=0.5, reg_tokens=2, pre_norm=True)


@register_model
def small_timm_map_vit(pretrained: bool = False, **unused: Any) -> VisionTransformer:
    """No class token, read by an attention pool, norms inside the attention and the feed-forward part."""
    return timm_vit(class_token=False, global_pool="map", scale_attn_norm=True, scale_mlp_norm=True)


class TwiceBlock(Block):
    """A block of a kind that no view describes."""

    def forward(self, x: Any, **settings: Any) -> Any:
        return super().forward(super().forward(x, **settings))


@register_model
def small_timm_twice_vit(pretrained: bool = False, **unused: Any) -> VisionTransformer:
    return timm_vit(block_fn=TwiceBlock)


TIMM_VIT = {"img_size": IMAGE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": LAYERS, "num_heads": HEADS}


def save_timm(folder: Path, name: str = "vit_tiny_patch16_224", seed: int = 0, **settings: Any) -> Path:
    """An image tower with a classifier of five classes, in timm's own form: by default a plain vision transformer."""
    torch.manual_seed(seed)
    arguments = (TIMM_VIT if "vit" in name else {}) | settings
    model = timm.create_model(name, **arguments, num_classes=5)
    randomise(model, seed)
    model.pretrained_cfg = model.pretrained_cfg | {"input_size": [3, IMAGE, IMAGE], "crop_pct": 1.0, "num_classes": 5}
    save_for_hf(model, folder, model_args=arguments, safe_serialization=True)
    return folder


def save_open_clip_resnet(folder: Path) -> Path:
    """A ResNet CLIP: an image tower without image tokens."""
    vision = {"layers": [1, 1, 1, 1], "width": 8, "head_width": 64, "patch_size": None}
    return save_open_clip(folder, vision, embed_dim=EMBED)


def save_hf_clip(folder: Path, seed: int = 0, **text: Any) -> Path:
    """A transformers CLIP model with its tokenizer and image processor."""
    size = save_clip_tokenizer(folder)
    shape = {
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
    }
    config = CLIPConfig(
        text_config=shape
        | {"vocab_size": size, "max_position_embeddings": CONTEXT, "eos_token_id": size - 1, "bos_token_id": size - 2}
        | text,
        vision_config=shape | {"image_size": IMAGE, "patch_size": PATCH},
        projection_dim=EMBED,
    )
    torch.manual_seed(seed)
    return save_hf(CLIPModel(config), CLIPImageProcessor(size={"shortest_edge": IMAGE}, crop_size=IMAGE), folder, seed)


def save_siglip(folder: Path, seed: int = 0, text: dict[str, Any] | None = None, **vision: Any) -> Path:
    """A transformers SigLIP model with its tokenizer and image processor."""
    size = save_siglip_tokenizer(folder)
    shape = {
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
    }
    config = SiglipConfig(
        text_config=shape
        | {"vocab_size": size, "max_position_embeddings": CONTEXT, "projection_size": WIDTH, "eos_token_id": 1}
        | (text or {}),
        vision_config=shape | {"image_size": IMAGE, "patch_size": PATCH} | vision,
    )
    torch.manual_seed(seed)
    model = SiglipModel(config)
    with torch.no_grad():
        model.logit_scale.fill_(2.0)
        model.logit_bias.fill_(-3.0)
    return save_hf(model, SiglipImageProcessor(size={"height": IMAGE, "width": IMAGE}), folder, seed)


def save_hf(model: Any, processor: Any, folder: Path, seed: int) -> Path:
    randomise(model, seed)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
