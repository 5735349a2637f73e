"""Where a command takes its images from: a data set known by name, or the user's own folder or table."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from mmprompt.errors import UserError
from mmprompt.settings import expanded
from mmprompt.training.run_files import place_of_data

if TYPE_CHECKING:
    from mmprompt.data.splits import Dataset, Splits

TABLES = {".csv", ".jsonl", ".json"}
DEFAULT_TEMPLATE = "a photo of a {}."


@dataclass(frozen=True)
class ImagePlace:
    """Where images lie."""

    data: Annotated[str | None, tyro.conf.arg(metavar="NAME|PATH")] = None
    """A data set known by name (`mmprompt data list`), or your own images: a folder of class folders, a CSV or JSONL
    table of path,label[,split], or a split file."""
    root: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """The folder that holds a named set's folder, or that the paths of a table start from; openart needs none."""
    datasets_dir: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """A folder with YAML files of more data sets."""

    @property
    def path(self) -> Path | None:
        """The user's own images, None where `data` is the name of a data set."""
        return None if self.data is None else own_path(self.data, self.datasets_dir)

    @property
    def is_table(self) -> bool:
        """Whether the user's own images are listed in a file."""
        return self.path is not None and self.path.suffix.lower() in TABLES

    def splits(self, hold_out: bool = True) -> Splits:
        """Return all images, before any draw; `hold_out` a test part where one's own images have none."""
        from mmprompt.data.catalog import read_card, read_splits
        from mmprompt.data.folder import read_folder, read_table

        path = self.path
        if path is not None:
            return read_table(path, self.root, hold_out) if self.is_table else read_folder(path, hold_out)
        return read_splits(read_card(str(self.data), self.datasets_dir), self.root)


@dataclass(frozen=True)
class Images(ImagePlace):
    """Which images."""

    template: Annotated[str | None, tyro.conf.arg(metavar="WORDS")] = None
    """The hand-written template to compare with, such as "a photo of a {}."; a named set brings its own."""
    protocol: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Whose rule draws the shots: coop (the default), clip-lora, tip-adapter, or jsonl for published lists."""
    strict: bool = False
    """Stop at the start if an image is broken, as is the rule; it undoes --skip-broken of a run or a file."""
    skip_broken: bool = False
    """Leave broken images out, and say which."""

    def __post_init__(self) -> None:
        if self.strict and self.skip_broken:
            raise UserError("strict and skip_broken are both given, but one was expected. Leave one out.")

    def or_of_run(self, run: Path, training: Mapping[str, Any]) -> Images:
        """Return these images, or where no `data` is named those that a run learned from, as its header says."""
        return self if self.data is not None else self.at(place_of_data(run, training))

    def at(self, place: Mapping[str, Any]) -> Images:
        """Return these images, with what `place_of_data` says where nothing else was said."""
        root, folder = (Path(place[name]) if place.get(name) else None for name in ("root", "datasets_dir"))
        try:
            own_path(place["data"], folder)
        except UserError:
            if "run" not in place:
                raise
            where = "which is neither a data set nor a folder here. Give `data=PATH`."
            raise UserError(f"{place['run']} was learned from {place['data']}, {where}") from None
        return replace(
            self,
            data=place["data"],
            root=self.root or root,
            datasets_dir=self.datasets_dir or folder,
            template=self.template or place.get("template"),
            protocol=self.protocol or place.get("protocol"),
            skip_broken=(self.skip_broken or bool(place.get("skip_broken"))) and not self.strict,
        )

    def load(self, shots: int | None, seed: int) -> Dataset:
        """Return the data set with its shots drawn: `shots` training images of each class, None for all."""
        from mmprompt.data.catalog import load_dataset
        from mmprompt.data.class_names import check_template
        from mmprompt.data.folder import ImageFolder, ImageTable

        path, rule = self.path, self.protocol or "coop"
        if path is not None:
            template = self.template or DEFAULT_TEMPLATE
            if self.is_table:
                return ImageTable(path, self.root, shots, seed, template, protocol=rule)
            return ImageFolder(path, shots, seed, template, protocol=rule)
        loaded = load_dataset(str(self.data), self.root, shots, seed, self.datasets_dir, rule)
        return loaded if self.template is None else replace(loaded, template=check_template(self.template))

    def load_as_drawn(self, training: Mapping[str, Any]) -> Dataset:
        """Return the data set with the shots and seed that a training says of itself."""
        drawn = training.get("data", {})
        seed = drawn.get("seed")
        return self.load(drawn.get("shots"), 1 if seed is None else seed)

    def sound(
        self, data: Dataset, progress: Callable[[int, int], None] | None = None, known: Collection[Path] = ()
    ) -> Dataset:
        """Return the data set after every image of it was opened, so that a broken one is not met at hour three.

        Those that are `known` were decoded before as they are now.
        """
        from mmprompt.data.check import drop_broken, find_broken, refuse_broken

        broken = find_broken(data, progress=progress, known=known)
        if not self.skip_broken:
            refuse_broken(broken, "Or leave broken pictures out with --skip-broken.")
        return drop_broken(data, broken)


def own_path(data: str, datasets_dir: Path | None = None) -> Path | None:
    """Return the path that is meant, None for the name of a data set; write `./NAME` for a folder of such a name."""
    from mmprompt.data.catalog import dataset_names
    from mmprompt.errors import unknown_name

    names = dataset_names(datasets_dir)
    if data in names:
        return None
    path = expanded(data)
    if path.exists() or path.suffix or len(path.parts) > 1:
        return path
    raise unknown_name("data set or folder", data, names, "Or give the path of a folder with a folder for each class.")
