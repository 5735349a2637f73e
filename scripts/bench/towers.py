"""A text tower of ViT-B/16 sizes with random weights, and the class names that the benchmarks use."""

from __future__ import annotations

from pathlib import Path

import open_clip
import torch

from mmprompt.classification.template import ClassTemplate
from mmprompt.models.dual_encoder.encoder import FrozenDualEncoder, WordTokenizer
from mmprompt.models.dual_encoder.forward.vision import OpaqueTower
from mmprompt.models.dual_encoder.open_clip import read_text
from mmprompt.models.frozen import PixelTransform
from mmprompt.models.sites import TextSlots

CALTECH = Path(__file__).with_name("caltech101_names.txt").read_text(encoding="utf-8").splitlines()
IMAGENET = list(open_clip.IMAGENET_CLASSNAMES)


def vit_b_16(with_image_tower: bool = False) -> FrozenDualEncoder:
    """ViT-B/16 as published (quick GELU, 77 slots), random weights; the image tower is cut to a stub if not wanted."""
    torch.manual_seed(0)
    config = open_clip.get_model_config("ViT-B-16-quickgelu")
    if not with_image_tower:
        config["vision_cfg"] |= {"layers": 1, "width": 64}
    model = open_clip.CLIP(**config).eval().requires_grad_(False)
    library = open_clip.get_tokenizer("ViT-B-16")
    tokenizer = WordTokenizer(
        lambda text, n_slots: library(text, context_length=n_slots)[0].tolist(), library.decode, library.vocab_size
    )
    pixels = PixelTransform(lambda image: torch.empty(0), (0.5,) * 3, (0.5,) * 3, 224, "none")
    return FrozenDualEncoder(
        name="ViT-B/16 with random weights",
        model=model,
        text=read_text(model, tokenizer),
        vision=OpaqueTower(model.visual, "stub"),
        tokenizer=tokenizer,
        pixels=pixels,
        log_logit_scale=model.logit_scale,
        logit_bias=None,
    )


def slots_of(backbone: FrozenDualEncoder, template: ClassTemplate, names: list[str]) -> TextSlots:
    """The slots of names that need not differ: ImageNet's list has two twice."""
    return backbone.text_slots([template.row(backbone, name) for name in names])
