"""Images of one person's own: by class, read whole as they come in, small copies kept.

It knows no page. Names of classes and files are never names on the disk: a copy is named after its pixels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from mmprompt.classification.template import check_class_names
from mmprompt.data.folder import ImageTable
from mmprompt.data.images import read_image
from mmprompt.data.splits import Dataset
from mmprompt.errors import UserError, bad_value
from mmprompt.files import make_folder, read_json, write_bytes, write_json

MOST_IMAGES = 1000
"""Of one person."""
LONGEST_SIDE = 512
"""Pixels of what is kept of an image; no backbone here sees more."""
TABLE, INDEX = "images.jsonl", "classes.json"


@dataclass(frozen=True)
class Added:
    """What became of images that somebody gave: how many are new, were there already, and why others were refused."""

    n_new: int
    n_known: int
    refused: tuple[str, ...]


class OwnImages:
    """Images by class, in a folder that keeps them; `classes` has the file names of each."""

    def __init__(self, folder: Path) -> None:
        self.folder, index = folder, folder / INDEX
        self.classes: dict[str, list[str]] = read_json(index) if index.is_file() else {}

    def add(
        self, class_name: str, paths: Sequence[Path], tell: Callable[[int, int], None] = lambda done, total: None
    ) -> Added:
        """Take image files into a class, which is made if need be; an image of another class moves.

        Nothing is taken where the name is none, or there would be more images than are kept. `tell` is called with how
        many were looked at and how many there are.
        """
        name = " ".join(class_name.split())
        check_class_names([name])
        n_here = sum(map(len, self.classes.values()))
        if n_here + len(paths) > MOST_IMAGES:
            expected = f"a person has {MOST_IMAGES:,} at most, and {n_here:,} are here"
            raise bad_value("the number of images", f"{len(paths):,}", expected, "Give fewer.")
        new, known, refused = [], 0, []
        for place, path in enumerate(paths):
            try:
                file = self._keep(path)
            except UserError as error:
                refused.append(str(error).replace(f"{path.parent}/", ""))
                continue
            finally:
                tell(place + 1, len(paths))
            if file in self.classes.get(name, ()) or file in new:
                known += 1
            else:
                new.append(file)
        for files in self.classes.values():
            files[:] = [file for file in files if file not in new]
        if new:
            self.classes.setdefault(name, []).extend(new)
        self.classes = {each: files for each, files in self.classes.items() if files}
        self._write()
        return Added(len(new), known, tuple(refused))

    def remove(self, class_name: str) -> None:
        """Forget a class with its images."""
        self.classes.pop(class_name, None)
        self._write()

    def paths(self, class_name: str) -> list[Path]:
        """Return the images of a class."""
        return [self.folder / file for file in self.classes[class_name]]

    def check(self) -> None:
        """Refuse to learn from fewer than two classes, or where no class has two images."""
        if len(self.classes) < 2:
            have = "one class has" if self.classes else "no class has"
            raise UserError(f"{have} images, but two were expected. Name another class and drop images into it.")
        if all(len(files) == 1 for files in self.classes.values()):
            raise UserError("every class has one image, so none could be kept for testing. Add more images.")

    def data(self, table: Path, shots: int | None) -> Dataset:
        """Write down the images as they are now, so that a run finds them again, and return them as a data set."""
        self.check()
        rows = [{"path": file, "label": name} for name, files in self.classes.items() for file in files]
        write_bytes(table, "".join(json.dumps(row) + "\n" for row in rows).encode())
        return self.read(table, shots)

    def read(self, table: Path, shots: int | None) -> Dataset:
        """Return images that were written down as a data set."""
        return ImageTable(table, self.folder, shots=shots)

    def _keep(self, path: Path) -> str:
        image = read_image(path)
        image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
        name = f"{hashlib.sha256(image.tobytes()).hexdigest()[:24]}.png"
        if not (self.folder / name).exists():
            make_folder(self.folder)
            image.save(self.folder / f"{name}.part", "PNG")
            (self.folder / f"{name}.part").replace(self.folder / name)
        return name

    def _write(self) -> None:
        write_json(make_folder(self.folder) / INDEX, self.classes)
