"""The datasets known by name: one YAML card each, from the package, the checkout or a folder of the user's.

This file finds the cards and turns a name into a dataset; what a card says is in `card`, how the images lie on the
disk in `layouts`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmprompt.data.card import DatasetCard
from mmprompt.data.class_names import expand_templates
from mmprompt.data.fewshot import draw_dataset
from mmprompt.data.folder import read_table
from mmprompt.data.layouts import given_root, read_layout, set_folder
from mmprompt.data.splits import SPLITS, Dataset, Splits, refuse_missing
from mmprompt.data.strict_yaml import read_yaml
from mmprompt.errors import UserError, bad_file, bad_value, unknown_name
from mmprompt.files import unpack
from mmprompt.settings import checked, validate

_PACKAGE = Path(__file__).resolve().parents[1]


@checked
def load_dataset(
    name: str,
    root: str | Path | None = None,
    shots: int | None = 16,
    seed: int = 1,
    datasets_dir: str | Path | None = None,
    protocol: str = "coop",
) -> Dataset:
    """Load a dataset by name, with its few-shot part drawn.

    Args:
        name: of a card, such as `openart-left`.
        root: the folder that holds the set's folder; not needed for the images in the package.
        shots: training images a class, at least 1, or None for all.
        seed: of the draw; the papers use 1, 2 and 3.
        datasets_dir: a folder with more cards.
        protocol: how the shots are drawn: `coop`, `clip-lora`, `tip-adapter`, or `jsonl` for the published lists in
            the folder `split_fewshot` of the set.
    Raises:
        UserError: the name is unknown, the card is bad, or images or split file are missing.
    """
    card = read_card(name, datasets_dir)
    splits = read_splits(card, root)
    dataset = draw_dataset(
        splits,
        card.name,
        shots,
        seed,
        template=card.template,
        templates=expand_templates(card.templates),
        protocol="official" if splits.is_official else "coop",
        augment=card.augment,
        licence=card.licence,
        recipe=card.recipe,
        rule=protocol,
        published=set_folder(card, root) / "split_fewshot" if protocol == "jsonl" and root is not None else None,
    )
    refuse_missing(item for split in SPLITS for item in dataset.items(split))
    return dataset


@checked
def list_datasets(datasets_dir: str | Path | None = None) -> tuple[DatasetCard, ...]:
    """Return the cards of all datasets known by name, sorted by name.

    Args:
        datasets_dir: a folder with more cards.
    Raises:
        UserError: a card is bad, or two have the same name.
    """
    return tuple(_read(path) for _, path in sorted(_card_paths(datasets_dir).items()))


def dataset_names(datasets_dir: str | Path | None = None) -> tuple[str, ...]:
    """List the names of all data sets, without a look into their cards."""
    return tuple(sorted(_card_paths(datasets_dir)))


def read_card(name: str, datasets_dir: str | Path | None = None) -> DatasetCard:
    """Return the card of one dataset; refuse an unknown name and name the nearest."""
    return _read(_path_of(name, datasets_dir))


def recipe_of(name: str, datasets_dir: str | Path | None = None) -> Mapping[str, Any]:
    """Return the recipe that a card suggests, unchecked: options start from it, and reading the set checks the card."""
    recipe = read_yaml(_path_of(name, datasets_dir)).get("recipe")
    return recipe if isinstance(recipe, dict) else {}


def read_splits(card: DatasetCard, root: str | Path | None = None) -> Splits:
    """Read all images of a dataset, before any draw; whether each one exists is not looked at.

    `root` is the folder that holds the set's folder, None for the images in the package.
    """
    if not card.archive:
        return read_layout(card, given_root(card, root))
    if root is not None:
        raise bad_value("root", root, f"the images of {card.name} are in the package", "Leave `root` out.")
    table, images = _PACKAGE / "assets" / card.csv, unpack(_PACKAGE / "assets" / card.archive)
    return read_table(table, images, rename=card.rename, rewrite=card.rewrite)


def cards_folder() -> Path:
    """Return the folder of the cards that come with the package; those of texts are in `texts` below it."""
    built_in = _PACKAGE / "datasets_cfg"  # an installed wheel; an editable install has only the checkout's
    return built_in if built_in.is_dir() else _PACKAGE.parent / "datasets_cfg"


def _card_paths(datasets_dir: str | Path | None) -> dict[str, Path]:
    paths = {path.stem: path for path in cards_folder().glob("*.yaml")}
    if datasets_dir is None:
        return paths
    if not Path(datasets_dir).is_dir():
        raise bad_file(datasets_dir, "is not a folder", "Give `datasets_dir` a folder of YAML files.")
    for path in sorted(Path(datasets_dir).glob("*.yaml")):
        if path.stem in paths:
            raise bad_file(path, f"is a second dataset named {path.stem!r}", "Give it another name.")
        paths[path.stem] = path
    return paths


def _path_of(name: str, datasets_dir: str | Path | None) -> Path:
    paths = _card_paths(datasets_dir)
    if name not in paths and "/" in name:
        raise UserError(f"there is no dataset named {name!r}. A folder is read by ImageFolder, a table by ImageTable.")
    if name not in paths:
        raise unknown_name("dataset", name, paths, "A folder of your own is read by ImageFolder.")
    return paths[name]


def _read(path: Path) -> DatasetCard:
    card = validate(DatasetCard, read_yaml(path), path)
    if card.name != path.stem:
        raise bad_file(path, f"name is {card.name!r}, but the file is named {path.stem!r}", "Make them the same.")
    return card
