"""One writer a run folder: a lock file that the system lets go when its process ends, however it ends."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from mmprompt.errors import bad_file
from mmprompt.files import locked, make_folder

NAME = "run.lock"


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold a run folder, so that no other process writes into it at the same time.

    The folder is made if it is not there, and then taken away again if nothing was written to it. The lock of a
    process that died is taken over.

    Args:
        folder: of the run.
    Raises:
        UserError: another process holds it, or the folder cannot be made.
    """
    is_new = not folder.exists()
    make_folder(folder)
    advice = "Wait until it has ended, or give another `out`."
    try:
        with locked(folder / NAME, bad_file(folder, "is being written by another training", advice)):
            yield
    finally:
        if is_new:
            with contextlib.suppress(OSError):  # it holds something
                folder.rmdir()
