"""Writes what the package ships of `photo`: the text tower with the projection, its tokenizer and configuration."""

import json
import shutil
from pathlib import Path

import torch
from open_clip.model import CLIP
from safetensors.torch import save_file
from torch import Tensor

from openart.export import TOKENIZER_FILES
from photo_text.training import configuration

LOGIT_SCALE = 30.0
PREPROCESS = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}


def export(model: CLIP, projection: Tensor, work: Path, assets: Path) -> None:
    """Write the folder `photo` of the assets in half precision; what was there is replaced.

    Args:
        model: the text tower; its image tower is empty.
        projection: [E, F], the image tower's last map.
        work: holds the tokenizer.
        assets: the package's assets folder.
    """
    part = assets / "photo.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    weights = {name: value.detach() for name, value in model.state_dict().items() if name != "attn_mask"}
    weights |= {"visual.head.proj.weight": projection, "logit_scale": torch.tensor(LOGIT_SCALE).log()}
    save_file({n: w.to(torch.float16).contiguous() for n, w in weights.items()}, part / "text.safetensors")
    config = configuration(len(model.token_embedding.weight))
    config["text_cfg"] |= {"hf_tokenizer_name": "photo", "tokenizer_kwargs": {"clean": "lower"}}
    described = {"model_cfg": config, "preprocess_cfg": PREPROCESS}
    (part / "open_clip_config.json").write_text(json.dumps(described, indent=1) + "\n")
    for name in TOKENIZER_FILES:
        shutil.copyfile(work / "tokenizer" / name, part / name)
    (part / "text.safetensors").chmod(0o644)
    shutil.rmtree(assets / "photo", ignore_errors=True)
    part.replace(assets / "photo")
