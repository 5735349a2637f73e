"""Writes what the package ships of `tiny`: both models' folders, the tasks' images, scenes with captions, licences.

The scenes are new compositions; their artwork is of styles that pretraining saw. A second set shows the style that it
never saw. References of one focus differ in their words, never in what they name.
"""

import csv
import io
import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from open_clip.model import CLIP
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from openart import words
from openart.artwork import new_folder
from openart.captions import FOCUSES, OBJECTS, Content, SceneMaker, content_of, quarter_scenes, sentences
from openart.model import MEAN, STD
from openart.tasks import Pool, draw_pool
from openart.tokenizer import write_tokenizer_config

CAPTIONER_FILES = ("vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json")
TOKENIZER_FILES = (*CAPTIONER_FILES, "bpe.txt.gz")
POOL_SEED = 11
STYLES = ("twemoji", "noto", "fluent-flat")
SPLITS = {"train": 320, "val": 100, "test": 300}
N_NEW_STYLE = 200
N_REFERENCES = 3


def write_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors in half precision, without open_clip's causal mask."""
    halves = {n: t.detach().half().contiguous().cpu() for n, t in weights.items() if n != "attn_mask"}
    save_file(halves, path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors lets nobody else read its files


def write_configuration(config: dict[str, Any], name: str, preprocess: dict[str, Any], folder: Path) -> None:
    """Write open_clip's configuration of a model whose texts are in lower case."""
    text = {**config["text_cfg"], "hf_tokenizer_name": name, "tokenizer_kwargs": {"clean": "lower"}}
    described = {"model_cfg": {**config, "text_cfg": text}, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(described, indent=1) + "\n")


def copy_tokenizer(tokenizer: Path, folder: Path, names: Iterable[str] = TOKENIZER_FILES) -> None:
    """Copy the files of a tokenizer."""
    for name in names:
        shutil.copyfile(tokenizer / name, folder / name)


def export_model(model: CLIP, config: dict[str, Any], tokenizer: Path, folder: Path) -> None:
    """Write weights, configuration and tokenizer for open_clip's `local-dir:`; other models in the folder stay."""
    preprocess = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "squash"}
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        part = Path(place)
        write_weights(model.state_dict(), part / "open_clip_model.safetensors")
        write_configuration(config, "tiny", preprocess, part)
        copy_tokenizer(tokenizer, part)
        for path in part.iterdir():
            path.replace(folder / path.name)


def export_captioner(model: Any, tokenizer: Path, folder: Path, encoder: str | None = None) -> None:
    """Write decoder (fp16), mapper and tokenizer as a folder of transformers' own form.

    A mapper that does not know its settings is a layer norm and a linear map; `encoder` is None for `tiny`.
    """
    mapper: nn.Sequential = model.projector
    width, image_width = mapper[1].weight.shape
    linear = {"kind": "linear", "n_prefix": None, "image_width": image_width, "width": width}
    described = linear if encoder is None else {**asdict(mapper.settings), "encoder": encoder}
    with new_folder(folder) as part:
        model.decoder.half().save_pretrained(part)
        (part / "model.safetensors").chmod(0o644)  # safetensors lets nobody else read its files
        write_weights(mapper.state_dict(), part / "mapper.safetensors")
        (part / "mapper.json").write_text(json.dumps(described, indent=1) + "\n")
        copy_tokenizer(tokenizer, part, CAPTIONER_FILES)
        write_tokenizer_config(part, model.decoder.config.max_position_embeddings)


def encoded(image: Image.Image) -> bytes:
    """One small PNG of at most 64 colours."""
    stream = io.BytesIO()
    image.quantize(64, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(stream, "png", optimize=True)
    return stream.getvalue()


def write_archive(images: Iterable[tuple[str, np.ndarray]], path: Path) -> None:
    """Write a ZIP of PNG files by name, always the same bytes."""
    part = path.with_suffix(".part")
    with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
        for name, pixels in images:
            entry = zipfile.ZipInfo(f"{name}.png", date_time=(2026, 1, 1, 0, 0, 0))
            archive.writestr(entry, encoded(Image.fromarray(pixels)))
    part.replace(path)


def export_pools(pools: dict[str, Pool], folder: Path) -> None:
    """Write `pictures.zip` and one CSV a task."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = ((f"{name}/{i:04d}", pixels) for name, pool in pools.items() for i, pixels in enumerate(pool.images))
    write_archive(drawn, folder / "pictures.zip")
    for name, pool in pools.items():
        for task, rows in pool.rows.items():
            trained = {label for _, label, split, _ in rows if split == "train"}
            known = [row for row in rows if row[1] in trained]
            write_table(folder / f"{task}.csv", name, known)
            if len(known) < len(rows):  # classes without a training image are a set of their own
                write_table(folder / f"{task}-novel.csv", name, [row for row in rows if row[1] not in trained])


def write_table(path: Path, pool: str, rows: list[tuple[int, str, str, bool]]) -> None:
    """One task's images, labels and splits."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("path", "label", "split", "novel"))
        writer.writerows((f"{pool}/{i:04d}.png", label, split, int(novel)) for i, label, split, novel in rows)


def export_scenes(maker: SceneMaker, assets: Path, sources: list[dict[str, str]]) -> None:
    """Write both sets of scenes: a ZIP of images, a JSONL of captions, and what they can name.

    The set in the style of OpenMoji goes beside the other images of that licence.
    """
    write_set(maker, assets / "scenes", "openart-scenes", STYLES, SPLITS)
    write_set(maker, assets / "openart", "openart-scenes-new-style", ("openmoji",), {"test": N_NEW_STYLE})
    drawn = [source for source in sources if source["style"] in STYLES]
    readme = SCENES_README.format(attribution(drawn, ("train",)))
    (assets / "scenes" / "README.md").write_text(readme, encoding="utf-8")


def write_set(maker: SceneMaker, folder: Path, name: str, styles: tuple[str, ...], splits: dict[str, int]) -> None:
    """Write one set of scenes."""
    rng = np.random.default_rng([POOL_SEED, len(styles)])
    images, lines = {}, []
    for split, n in splits.items():
        drawn, contents = draw(maker, rng, styles, n)
        for number, (pixels, content) in enumerate(zip(drawn, contents, strict=True)):
            place = f"{split}/{number:04d}"
            images[place] = pixels
            said = {focus: sentences(content, focus, rng, N_REFERENCES) for focus in FOCUSES}
            said[""] = list(dict.fromkeys(f"{content.mixed(rng)}." for _ in range(N_REFERENCES)))
            for focus, captions in said.items():
                line = {"image": f"{place}.png", "image_id": place, "captions": captions}
                lines.append(json.dumps(line | {"focus": focus, "split": split}))
    actions = [*words.ACTIONS, *words.EXTRA_ACTION_LABELS]
    named = {"objects": OBJECTS, "emotions": words.EMOTIONS, "actions": actions}
    lexicon = {focus: {item: item for item in items} for focus, items in named.items()}
    (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_archive(images.items(), folder / f"{name}.zip")
    (folder / f"{name}.lexicon.json").write_text(json.dumps(lexicon, indent=1) + "\n", encoding="utf-8")


def draw(
    maker: SceneMaker, rng: np.random.Generator, styles: tuple[str, ...], n: int
) -> tuple[np.ndarray, list[Content]]:
    """Scenes of several styles, each style in turn: [n, S, S, 3] uint8, and what they show."""
    composer = maker.composer
    concepts = np.stack([maker.drawn_in(rng, styles[i % len(styles)]) for i in range(n)])
    scenes = quarter_scenes(rng, concepts)
    each = [draw_pool(rng, composer.prepared, style, scenes) for style in styles]
    images = np.stack([each[i % len(styles)][i] for i in range(n)])
    return images, [content_of(composer.concepts, row, "") for row in concepts]


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
    """Write the attribution of the weights and of the images."""
    licences = assets / "licences"
    licences.mkdir(parents=True, exist_ok=True)
    tiny = TINY_README.format(styles=attribution(sources, ("train",)), text=attribution(sources, ("text",)))
    (licences / "tiny.md").write_text(tiny, encoding="utf-8")
    pictures = OPENART_README.format(style=attribution(sources, ("test",)))
    (assets / "openart" / "README.md").write_text(pictures, encoding="utf-8")


TINY_README = """# What the embedded model `tiny` was made from

The weights in `tiny/` were trained by `scripts/pretrain_tiny.py`, those in `tiny/captioner/` by
`scripts/pretrain_tiny_captioner.py`, from scenes composed of this artwork, and those in `tiny/language/` from the
latter and the names below, by `scripts/pretrain_tiny_language.py`; the artists are thanked and named here. The
weights are under the licence of the code. Of the artwork only the scenes in [scenes/](../scenes) are in the package.

{styles}

Names, keywords and groups:

{text}

The names of this package, those in six more languages too, are from Unicode's CLDR.

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
SCENES_README = """# The scenes of openart-scenes

`openart-scenes.zip` holds small scenes composed by `scripts/pretrain_tiny_captioner.py`, `openart-scenes.jsonl` what
can be said of them. Each scene is adapted from the artwork of one of these sets, which was cropped, scaled, tilted,
mirrored and pasted on coloured backgrounds:

{}

The scenes keep the licences of their artwork: CC BY 4.0, Apache 2.0 and MIT. The full texts are in
[licences/](../licences). The artwork was seen by the pretraining of `tiny`, the scenes were not. The same kind of
scenes in a style that it never saw is in [openart/](../openart).
"""
