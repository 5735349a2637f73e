"""Where a verb writes: checked before any work; and the command that is kept beside what it wrote."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from mmprompt.core.header import check_new
from mmprompt.errors import bad_file


def check_folder(folder: Path) -> None:
    """Refuse a run folder that cannot be written or is taken, before any work.

    Raises:
        UserError: it holds a finished run, lies below a file, or may not be written to.
    """
    check_new(folder)
    check_place(folder)


def check_place(folder: Path) -> None:
    """Refuse a folder that cannot be made or written to, and make none.

    Raises:
        UserError: it lies below a file, or may not be written to.
    """
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise bad_file(place, f"is a file, so {folder} cannot be a folder", "Give another --out.")
    if not os.access(place, os.W_OK):
        raise bad_file(place, "may not be written to", "Give an --out that you may write to.")


def command_of(arguments: Sequence[str], prog: str) -> str:
    """The command line as it can be typed again."""
    return shlex.join([*prog.split(), *arguments])
