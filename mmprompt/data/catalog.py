"""The datasets known by name: one YAML card each, from the package, the checkout or a folder of the user's.

A card says where the pictures lie, how they are split, what the classes are called and which template
suits them. This file knows the layouts, and no dataset by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mmprompt.data.archive import unpack
from mmprompt.data.coop_split import read_coop_split
from mmprompt.data.fewshot import draw_dataset
from mmprompt.data.folder import read_folder
from mmprompt.data.splits import SPLITS, Dataset, SplitName, Splits, refuse_missing
from mmprompt.data.strict_yaml import read_yaml, validate
from mmprompt.data.table import read_table
from mmprompt.data.templates import check_template
from mmprompt.errors import UserError, bad_file, bad_value, unknown_name
from mmprompt.files import safe_join

_PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class DatasetCard:
    """What a YAML file says about a dataset.

    Args:
        name: what `load_dataset` takes; the file's own name without `.yaml`.
        title: one line for lists.
        layout: `"csv"` (a table of path, label, split), `"coop"` (a split file of CoOp's) or `"folder"`.
        template: the hand-written prompt, with one `{}`.
        licence: of the pictures.
        source: where to get them.
        folder: the set's folder below the root that the user gives.
        images: the folder of pictures below that one, for layout coop.
        split: the split file below that one, for layout coop.
        archive: a zip of the package's own pictures, which needs no root.
        csv: the table, beside the archive or below the set's folder.
        n_classes: how many there should be.
        sizes: pictures in train, val and test.
        rename: class names to replace, as folders and split files spell them.
        templates: the ensemble.
        augment: what suits these pictures in training; mirrored pictures would not know left from right.
        notes: what a reader of results should know.
        recipe: settings of the training recipe, chosen on validation.
    """

    name: str
    title: str
    layout: Literal["csv", "coop", "folder"]
    template: str
    licence: str
    source: str
    folder: str = ""
    images: str = ""
    split: str = ""
    archive: str = ""
    csv: str = ""
    n_classes: int | None = None
    sizes: dict[SplitName, int] = field(default_factory=dict)
    rename: dict[str, str] = field(default_factory=dict)
    templates: tuple[str, ...] = ()
    augment: Literal["none", "coop"] = "coop"
    notes: str = ""
    recipe: dict[str, str | int | float | bool | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for template in (self.template, *self.templates):
            check_template(template)
        needed = {"csv": ("csv",), "coop": ("images", "split"), "folder": ()}[self.layout]
        for key in needed:
            if not getattr(self, key):
                raise bad_value(key, "empty", f"the layout {self.layout} needs it", "Add it.")
        if self.archive and self.layout != "csv":
            raise bad_value("archive", self.archive, f"the layout {self.layout} cannot have one", "Use layout: csv.")


def load_dataset(
    name: str,
    root: str | Path | None = None,
    shots: int | None = 16,
    seed: int = 1,
    datasets_dir: str | Path | None = None,
) -> Dataset:
    """A dataset by name, with its few-shot part drawn by protocol `coop`.

    Args:
        name: of a card, such as `openart-left`.
        root: the folder that holds the set's folder; not needed for the pictures in the package.
        shots: training pictures a class, at least 1, or None for all.
        seed: of the draw; the papers use 1, 2 and 3.
        datasets_dir: a folder with more cards.
    Raises:
        UserError: the name is unknown, the card is bad, or pictures or split file are missing.
    """
    card = read_card(name, datasets_dir)
    splits = read_splits(card, root)
    dataset = draw_dataset(
        splits,
        card.name,
        shots,
        seed,
        template=card.template,
        templates=card.templates,
        augment=card.augment,
        licence=card.licence,
        recipe=card.recipe,
    )
    refuse_missing(item for split in SPLITS for item in dataset.items(split))
    return dataset


def list_datasets(datasets_dir: str | Path | None = None) -> tuple[DatasetCard, ...]:
    """The cards of all datasets known by name, sorted by name.

    Args:
        datasets_dir: a folder with more cards.
    Raises:
        UserError: a card is bad, or two have the same name.
    """
    return tuple(_read(path) for _, path in sorted(_card_paths(datasets_dir).items()))


def read_card(name: str, datasets_dir: str | Path | None = None) -> DatasetCard:
    """The card of one dataset.

    Args:
        name: of the set.
        datasets_dir: a folder with more cards.
    Raises:
        UserError: there is none of that name (the nearest is named), or it is bad.
    """
    paths = _card_paths(datasets_dir)
    if name not in paths:
        raise unknown_name("dataset", name, paths, "Folders of your own go to --data.")
    return _read(paths[name])


def read_splits(card: DatasetCard, root: str | Path | None = None) -> Splits:
    """All pictures of a dataset, before any draw. Whether each one exists is not looked at.

    Args:
        card: what its YAML says.
        root: the folder that holds the set's folder; None for the pictures in the package.
    Raises:
        UserError: no root was given where one is needed, or folder or split file are missing.
    """
    if card.archive:
        if root is not None:
            raise bad_value("root", root, f"the pictures of {card.name} are in the package", "Leave --root out.")
        assets = _PACKAGE / "assets"
        return read_table(assets / card.csv, unpack(assets / card.archive))
    folder = _set_folder(card, root)
    if card.layout == "csv":
        return read_table(safe_join(folder, card.csv))
    if card.layout == "folder":
        return read_folder(folder)
    split, images = safe_join(folder, card.split), safe_join(folder, card.images)
    for path in (split, images):
        if not path.exists():
            raise bad_file(path, "is not there, and is never made up", f"Get it from {card.source}")
    return read_coop_split(split, images, card.rename)


def _set_folder(card: DatasetCard, root: str | Path | None) -> Path:
    where = f"a folder {card.folder!r} of {card.name}"
    if root is None:
        raise UserError(f"no root was given, but {where} is looked for below it. Use --root, or get it: {card.source}")
    folder = safe_join(Path(root), card.folder)
    if not folder.is_dir():
        raise bad_file(folder, "is not there", f"Give the --root that holds {where}, or get it: {card.source}")
    return folder


def _card_paths(datasets_dir: str | Path | None) -> dict[str, Path]:
    paths = {path.stem: path for path in _built_in_folder().glob("*.yaml")}
    for path in _users_cards(datasets_dir):
        if path.stem in paths:
            raise bad_file(path, f"is a second dataset named {path.stem!r}", "Give it another name.")
        paths[path.stem] = path
    return paths


def _built_in_folder() -> Path:
    packaged = _PACKAGE / "datasets_cfg"  # an installed wheel; an editable install has only the checkout's
    return packaged if packaged.is_dir() else _PACKAGE.parent / "datasets_cfg"


def _users_cards(datasets_dir: str | Path | None) -> Iterator[Path]:
    if datasets_dir is None:
        return
    folder = Path(datasets_dir)
    if not folder.is_dir():
        raise bad_file(folder, "is not a folder", "Give --datasets-dir a folder of YAML files.")
    yield from sorted(folder.glob("*.yaml"))


def _read(path: Path) -> DatasetCard:
    card = validate(DatasetCard, read_yaml(path), path)
    if card.name != path.stem:
        raise bad_file(path, f"name is {card.name!r}, but the file is named {path.stem!r}", "Make them the same.")
    return card
