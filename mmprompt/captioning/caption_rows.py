"""One row of a file of captions.

The readers in `caption_files` turn files into rows; `captions` turns rows into data.
"""

from __future__ import annotations

from typing import NamedTuple


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
