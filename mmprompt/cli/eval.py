"""`mmprompt eval`: a run of any kind on labelled data, beside the frozen model without what it learned."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

from mmprompt.core.header import read_header
from mmprompt.errors import UserError

OPTION_OF_RUN = {"captioning": "--prompts", "language": "--prompt"}
"""What the verbs that measure several prompts at once call a run."""


def run(arguments: Sequence[str], prog: str) -> None:
    """Measure and print, by the verb of the room that the run is of.

    Raises:
        UserError: no run is named, or run or data cannot be used.
    """
    if not arguments or (arguments[0].startswith("-") and not {"-h", "--help"} & set(arguments)):
        raise UserError(f"the run folder is missing. Write {prog} RUN [options].")
    kind = "classification" if {"-h", "--help"} & set(arguments[:1]) else read_header(Path(arguments[0]))["kind"]
    verb = importlib.import_module(f"mmprompt.{kind}.cli.eval")
    named = [OPTION_OF_RUN[kind]] if kind in OPTION_OF_RUN else []
    verb.run([*named, *arguments], prog)
