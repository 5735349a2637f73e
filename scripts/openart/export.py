"""Writes what the package ships: the model folder that open_clip loads, and the tasks' pictures with their licences."""

import csv
import io
import json
import shutil
import zipfile
from pathlib import Path

import torch
from open_clip.model import CLIP
from PIL import Image
from safetensors.torch import save_file

from openart.model import MEAN, STD
from openart.tasks import Pool

TOKENIZER_FILES = ("vocab.json", "merges.txt", "bpe.txt.gz", "special_tokens_map.json", "tokenizer_config.json")


def export_model(model: CLIP, config: dict, tokenizer: Path, folder: Path) -> None:
    """Write weights (fp16), configuration and tokenizer as one folder for open_clip's `local-dir:`."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    weights = {n: t.detach().to(torch.float16).contiguous().cpu() for n, t in model.state_dict().items()}
    weights.pop("attn_mask", None)
    save_file(weights, part / "open_clip_model.safetensors", metadata={"format": "pt"})
    text = {**config["text_cfg"], "hf_tokenizer_name": "tiny", "tokenizer_kwargs": {"clean": "lower"}}
    preprocess = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "squash"}
    described = {"model_cfg": {**config, "text_cfg": text}, "preprocess_cfg": preprocess}
    (part / "open_clip_config.json").write_text(json.dumps(described, indent=1) + "\n")
    for name in TOKENIZER_FILES:
        shutil.copyfile(tokenizer / name, part / name)
    shutil.rmtree(folder, ignore_errors=True)
    part.replace(folder)


def encoded(picture: Image.Image) -> bytes:
    """One small PNG of at most 64 colours."""
    stream = io.BytesIO()
    picture.quantize(64, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(stream, "png", optimize=True)
    return stream.getvalue()


def export_pools(pools: dict[str, Pool], folder: Path) -> None:
    """Write `pictures.zip` (always the same bytes) and one CSV a task."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / "pictures.zip.part"
    with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
        for name, pool in pools.items():
            for i, pixels in enumerate(pool.pictures):
                entry = zipfile.ZipInfo(f"{name}/{i:04d}.png", date_time=(2026, 1, 1, 0, 0, 0))
                archive.writestr(entry, encoded(Image.fromarray(pixels)))
    part.replace(folder / "pictures.zip")
    for name, pool in pools.items():
        for task, rows in pool.rows.items():
            trained = {label for _, label, split, _ in rows if split == "train"}
            known = [row for row in rows if row[1] in trained]
            write_table(folder / f"{task}.csv", name, known)
            if len(known) < len(rows):  # classes without a training picture are a set of their own
                write_table(folder / f"{task}-novel.csv", name, [row for row in rows if row[1] not in trained])


def write_table(path: Path, pool: str, rows: list[tuple[int, str, str, bool]]) -> None:
    """One task's pictures, labels and splits."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("path", "label", "split", "novel"))
        writer.writerows((f"{pool}/{i:04d}.png", label, split, int(novel)) for i, label, split, novel in rows)


def attribution(sources: list[dict[str, str]], roles: tuple[str, ...]) -> str:
    """A Markdown list of the sources of some roles, as their own packages state them."""
    lines = []
    for s in sources:
        if s["role"] in roles:
            where = f" ({s['author_url']})" if s["author_url"] else ""
            lines.append(f"* **{s['style']}**: {s['author']}{where}. {s['licence']} {s['licence_url']}".rstrip())
            lines.append(f"  Package `{s['package']}`, sha256 `{s['sha256']}`.")
    return "\n".join(lines)


def write_licences(sources: list[dict[str, str]], assets: Path) -> None:
    """Write the attribution of the weights and of the pictures."""
    licences = assets / "licences"
    licences.mkdir(parents=True, exist_ok=True)
    tiny = TINY_README.format(styles=attribution(sources, ("train",)), text=attribution(sources, ("text",)))
    (licences / "tiny.md").write_text(tiny, encoding="utf-8")
    pictures = OPENART_README.format(style=attribution(sources, ("test",)))
    (assets / "openart" / "README.md").write_text(pictures, encoding="utf-8")


TINY_README = """# What the embedded model `tiny` was made from

The weights in `tiny/` were trained by `scripts/pretrain_tiny.py`, those in `tiny/captioner/` by
`scripts/pretrain_tiny_captioner.py`, from scenes composed of this artwork; the artists are thanked and named here. The
weights are under the licence of the code. Of the artwork only the scenes in [scenes/](../scenes) are in the package.

{styles}

Names, keywords and groups:

{text}

The package of the icon sets is made by Iconify (https://github.com/iconify/icon-sets); each set keeps its own licence.
The full texts of the licences are beside this file.
"""
OPENART_README = """# The pictures of the openart tasks

`pictures.zip` holds small scenes composed of OpenMoji artwork by `scripts/pretrain_tiny.py`; the `.csv` files beside it
say for each task which picture has which label and split. `openart-scenes-new-style.zip` holds further scenes, with
captions, made by `scripts/pretrain_tiny_captioner.py`. The pictures are adapted from

{style}

All emojis were designed by OpenMoji, the open-source emoji and icon project (https://openmoji.org), licence CC BY-SA
4.0. They were cropped, scaled, tilted, mirrored and pasted on coloured backgrounds. **The pictures in this folder are
therefore under CC BY-SA 4.0 (https://creativecommons.org/licenses/by-sa/4.0/)**, not under the licence of the code.
The model `tiny` never saw this style in pretraining. The full text of the licence is in
[licences/CC-BY-SA-4.0.txt](../licences/CC-BY-SA-4.0.txt).
"""
