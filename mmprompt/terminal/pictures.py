"""Where a command takes its pictures from: a data set known by name, or the user's own folder or table."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from mmprompt.errors import UserError

if TYPE_CHECKING:
    from mmprompt.data.splits import Dataset, Splits

TABLES = {".csv", ".jsonl", ".json"}
DEFAULT_TEMPLATE = "a photo of a {}."


@dataclass(frozen=True)
class Pictures:
    """Which pictures."""

    dataset: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """A data set known by name; `mmprompt data list` shows them."""
    data: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """Your own pictures: a folder of class folders, a CSV or JSONL table of path,label[,split], or a split file."""
    root: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """The folder that holds a named set's folder, or that the paths of a table start from; openart needs none."""
    datasets_dir: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """A folder with YAML files of more data sets."""
    template: Annotated[str | None, tyro.conf.arg(metavar="WORDS")] = None
    """The hand-written template to compare with, such as "a photo of a {}."; a named set brings its own."""
    protocol: Annotated[str, tyro.conf.arg(metavar="NAME")] = "coop"
    """Whose rule draws the shots: coop, clip-lora, tip-adapter, or jsonl for published lists."""
    strict: bool = False
    """Stop at the start if a picture is broken, naming the first and how many there are (the default)."""
    skip_broken: bool = False
    """Leave broken pictures out, and say which."""

    def __post_init__(self) -> None:
        refuse_both(self.strict, self.skip_broken)
        if self.dataset is not None and self.data is not None:
            raise UserError(
                f"dataset is {self.dataset} and data is {self.data}, but one place of pictures was expected. "
                "Give --dataset or --data."
            )

    def load(self, shots: int | None, seed: int) -> Dataset:
        """The data set with its shots drawn.

        Args:
            shots: training pictures of each class, None for all.
            seed: of the draw.
        Raises:
            UserError: something about the set or its pictures is wrong.
        """
        from dataclasses import replace

        from mmprompt.data.catalog import load_dataset
        from mmprompt.data.folder import ImageFolder, ImageTable
        from mmprompt.data.templates import check_template

        if self.data is not None:
            template = self.template or DEFAULT_TEMPLATE
            if self.is_table:
                return ImageTable(self.data, self.root, shots, seed, template, rule=self.protocol)
            return ImageFolder(self.data, shots, seed, template, rule=self.protocol)
        loaded = load_dataset(str(self.dataset), self.root, shots, seed, self.datasets_dir, self.protocol)
        if self.template is None:
            return loaded
        check_template(self.template)
        return replace(loaded, template=self.template)

    @property
    def is_table(self) -> bool:
        """Whether the user's own pictures are listed in a file."""
        return self.data is not None and self.data.suffix.lower() in TABLES

    def sound(
        self, data: Dataset, progress: Callable[[int, int], None] | None = None, known: Collection[Path] = ()
    ) -> Dataset:
        """The data set after every picture of it was opened, so that a broken one is not met at hour three.

        Args:
            data: with its shots drawn.
            progress: called with how many pictures are done and how many there are.
            known: pictures that were decoded before as they are now, which are not opened again.
        Raises:
            UserError: one is broken, unless they are to be left out.
        """
        from mmprompt.data.broken import drop_broken, find_broken, refuse_broken

        broken = find_broken(data, progress=progress, known=known)
        if not self.skip_broken:
            refuse_broken(broken, "Or leave broken pictures out with --skip-broken.")
        return drop_broken(data, broken)

    def splits(self, hold_out: bool = True) -> Splits:
        """All pictures, before any draw.

        Args:
            hold_out: whether a test part is held out where one's own pictures have none.
        Raises:
            UserError: something about the set or its pictures is wrong.
        """
        from mmprompt.data.catalog import read_card, read_splits
        from mmprompt.data.folder import read_folder
        from mmprompt.data.table import read_table

        if self.data is not None:
            return read_table(self.data, self.root, hold_out) if self.is_table else read_folder(self.data, hold_out)
        return read_splits(read_card(str(self.dataset), self.datasets_dir), self.root)


def refuse_both(strict: bool, skip_broken: bool) -> None:
    """Refuse two answers to what is done with broken pictures.

    Raises:
        UserError: both are given.
    """
    if strict and skip_broken:
        raise UserError("strict and skip_broken are both given, but one was expected. Leave one out.")
