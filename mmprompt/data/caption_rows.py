"""One row of a file of captions, and the text that all readers start from.

The readers in `caption_files` turn files into rows; `captions` turns rows into data.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from mmprompt.errors import bad_file
from mmprompt.files import read_bytes

MAX_BYTES = 2**30
"""Of a file of captions; the captions of COCO with Karpathy's split take 144 MB."""


class CaptionRow(NamedTuple):
    """Captions of one picture as a file gives them, before pictures are looked for.

    Args:
        place: where the file has it, such as `line 3`.
        picture: its path as the file spells it, below the folder of pictures.
        image_id: its name in the file; None for its path.
        captions: as the file spells them.
        focus: what they speak of; `""` for captions of no focus.
        label: a finer name within the focus, such as `positive`.
        split: `train`, `val` or `test`; None where the file divides nothing.
    """

    place: str
    picture: str
    image_id: str | None
    captions: tuple[str, ...]
    focus: str = ""
    label: str = ""
    split: str | None = None


def read_text(path: Path) -> str:
    """The text of a file, without a byte order mark.

    Raises:
        UserError: it cannot be read, is larger than 1 GiB, or a line is not UTF-8.
    """
    data = read_bytes(path, MAX_BYTES)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise bad_file(path, "is not UTF-8 text", "Save it as UTF-8.", line) from None
