"""Writes what the package ships for captions: the decoder's folder, and scenes with their captions.

The scenes are new compositions; their artwork is of styles that pretraining saw. A second set shows the style that it
never saw. References of one focus differ in their words, never in what they name.
"""

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from openart import words
from openart.captions import FOCUSES, OBJECTS, Content, SceneMaker, content_of, quarter_scenes, sentences
from openart.export import attribution, encoded
from openart.tasks import draw_pool
from openart.tokenizer import write_tokenizer_config

POOL_SEED = 11
STYLES = ("twemoji", "noto", "fluent-flat")
SPLITS = {"train": 320, "val": 100, "test": 300}
N_NEW_STYLE = 200
N_REFERENCES = 3
TOKENIZER_FILES = ("vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json")
SCENES_README = """# The scenes of openart-scenes

`openart-scenes.zip` holds small scenes composed by `scripts/pretrain_tiny_captioner.py`, `openart-scenes.jsonl` what
can be said of them. Each scene is adapted from the artwork of one of these sets, which was cropped, scaled, tilted,
mirrored and pasted on coloured backgrounds:

{}

The scenes keep the licences of their artwork: CC BY 4.0, Apache 2.0 and MIT. The full texts are in
[licences/](../licences). The artwork was seen by the pretraining of `tiny`, the scenes were not. The same kind of
scenes in a style that it never saw is in [openart/](../openart).
"""


def export_captioner(model: Any, tokenizer: Path, folder: Path) -> None:
    """Write decoder (fp16), mapper and tokenizer as a folder of transformers' own form."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    model.decoder.half().save_pretrained(part)
    mapper: nn.Sequential = model.projector
    weights = {name: tensor.detach().half().contiguous() for name, tensor in mapper.state_dict().items()}
    save_file(weights, part / "mapper.safetensors", metadata={"format": "pt"})
    width, image_width = mapper[1].weight.shape
    described = {"kind": "linear", "n_prefix": None, "image_width": image_width, "width": width}
    (part / "mapper.json").write_text(json.dumps(described, indent=1) + "\n")
    for name in TOKENIZER_FILES:
        shutil.copyfile(tokenizer / name, part / name)
    write_tokenizer_config(part, model.decoder.config.max_position_embeddings)
    shutil.rmtree(folder, ignore_errors=True)
    part.replace(folder)


def export_scenes(maker: SceneMaker, assets: Path, sources: list[dict[str, str]]) -> None:
    """Write both sets of scenes: a ZIP of pictures, a JSONL of captions, and what they can name.

    The set in the style of OpenMoji goes beside the other pictures of that licence.
    """
    write_set(maker, assets / "scenes", "openart-scenes", STYLES, SPLITS)
    write_set(maker, assets / "openart", "openart-scenes-new-style", ("openmoji",), {"test": N_NEW_STYLE})
    drawn = [source for source in sources if source["style"] in STYLES]
    readme = SCENES_README.format(attribution(drawn, ("train",)))
    (assets / "scenes" / "README.md").write_text(readme, encoding="utf-8")


def write_set(maker: SceneMaker, folder: Path, name: str, styles: tuple[str, ...], splits: dict[str, int]) -> None:
    """Write one set of scenes."""
    rng = np.random.default_rng([POOL_SEED, len(styles)])
    pictures, lines = {}, []
    for split, n in splits.items():
        drawn, contents = draw(maker, rng, styles, n)
        for number, (pixels, content) in enumerate(zip(drawn, contents, strict=True)):
            image = f"{split}/{number:04d}.png"
            pictures[image] = encoded(Image.fromarray(pixels))
            lines += [
                json.dumps({"image": image, "image_id": image[:-4], "captions": said, "focus": focus, "split": split})
                for focus, said in references(content, rng).items()
            ]
    (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with zipfile.ZipFile(folder / f"{name}.zip", "w", zipfile.ZIP_STORED) as archive:
        for image, data in pictures.items():
            archive.writestr(zipfile.ZipInfo(image, date_time=(2026, 1, 1, 0, 0, 0)), data)
    (folder / f"{name}.lexicon.json").write_text(json.dumps(lexicon(), indent=1) + "\n", encoding="utf-8")


def draw(
    maker: SceneMaker, rng: np.random.Generator, styles: tuple[str, ...], n: int
) -> tuple[np.ndarray, list[Content]]:
    """Scenes of several styles, each style in turn: [n, S, S, 3] uint8, and what they show."""
    composer = maker.composer
    concepts = np.stack([maker.drawn_in(rng, styles[i % len(styles)]) for i in range(n)])
    scenes = quarter_scenes(rng, concepts)
    each = [draw_pool(rng, composer.prepared, style, scenes) for style in styles]
    pictures = np.stack([each[i % len(styles)][i] for i in range(n)])
    return pictures, [content_of(composer.concepts, row, "") for row in concepts]


def references(content: Content, rng: np.random.Generator) -> dict[str, list[str]]:
    """Captions of every focus, and of none under the empty name."""
    said = {focus: sentences(content, focus, rng, N_REFERENCES) for focus in FOCUSES}
    return said | {"": list(dict.fromkeys(f"{content.mixed(rng)}." for _ in range(N_REFERENCES)))}


def lexicon() -> dict[str, dict[str, str]]:
    """What captions can name, by focus: surface form to item."""
    actions = [*words.ACTIONS, *words.EXTRA_ACTION_LABELS]
    named = {"objects": OBJECTS, "emotions": words.EMOTIONS, "actions": actions}
    return {focus: {name: name for name in names} for focus, names in named.items()}
