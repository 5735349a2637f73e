"""Where a command takes its pictures from: a data set known by name, or the user's own folder or table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from mmprompt.errors import UserError

if TYPE_CHECKING:
    from mmprompt.data.splits import Dataset, Splits

TABLES = {".csv", ".jsonl"}
DEFAULT_TEMPLATE = "a photo of a {}."


@dataclass(frozen=True)
class Pictures:
    """Which pictures."""

    dataset: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """A data set known by name; `mmprompt data list` shows them."""
    data: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """Your own pictures: a folder of class folders, or a CSV or JSONL table of path,label[,split]."""
    root: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """The folder that holds a named set's folder; the openart sets need none."""
    datasets_dir: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """A folder with YAML files of more data sets."""
    template: Annotated[str | None, tyro.conf.arg(metavar="WORDS")] = None
    """The hand-written template to compare with, such as "a photo of a {}."; a named set brings its own."""

    def __post_init__(self) -> None:
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
            reader: Any = ImageTable if self.data.suffix.lower() in TABLES else ImageFolder
            return reader(self.data, shots=shots, seed=seed, template=self.template or DEFAULT_TEMPLATE)
        loaded = load_dataset(str(self.dataset), self.root, shots, seed, self.datasets_dir)
        if self.template is None:
            return loaded
        check_template(self.template)
        return replace(loaded, template=self.template)

    def splits(self) -> Splits:
        """All pictures, before any draw.

        Raises:
            UserError: something about the set or its pictures is wrong.
        """
        from mmprompt.data.catalog import read_card, read_splits
        from mmprompt.data.folder import read_folder
        from mmprompt.data.table import read_table

        if self.data is not None:
            is_table = self.data.suffix.lower() in TABLES
            return read_table(self.data) if is_table else read_folder(self.data)
        return read_splits(read_card(str(self.dataset), self.datasets_dir), self.root)
