"""What a search varies: settings of the recipe and of the method, each over a range."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmprompt.errors import UserError, bad_value, unknown_name

ADVICE = "Write `search='lr=1e-3:0.5,n_ctx=1:16,epochs'`."


@dataclass(frozen=True)
class Range:
    """The values a setting may take.

    Args:
        low, high: both may be taken; ints where only whole numbers are.
        is_whole: only whole numbers.
        is_log: drawn evenly over the logarithm, since factors matter and not differences.
    """

    low: float
    high: float
    is_whole: bool
    is_log: bool = True

    def suggest(self, trial: Any, name: str) -> int | float:
        """The value that an Optuna trial tries."""
        if self.is_whole:
            return trial.suggest_int(name, self.low, self.high, log=self.is_log)
        return trial.suggest_float(name, self.low, self.high, log=self.is_log)

    def holds(self, value: float) -> bool:
        """Whether a value lies in the range."""
        return self.low <= value <= self.high


KNOWN: Mapping[str, Range] = {
    "lr": Range(1e-4, 1.0, False),
    "epochs": Range(10, 200, True),
    "weight_decay": Range(1e-6, 1e-2, False),
    "batch_size": Range(8, 128, True),
    "n_ctx": Range(1, 16, True),
    "n_visual": Range(1, 32, True),
    "depth": Range(1, 12, True),
}


def read_space(texts: Sequence[str], settings: Sequence[str]) -> dict[str, Range]:
    """The ranges that a search is asked for.

    Args:
        texts: names, or `name=low:high`.
        settings: what the method has; those of the recipe are always there.
    Raises:
        UserError: a name is unknown or repeated, or a range is none.
    """
    space: dict[str, Range] = {}
    recipe = {"lr", "epochs", "weight_decay", "batch_size"}
    for text in texts:
        name, _, limits = text.partition("=")
        name = name.strip().replace("-", "_")
        if name not in KNOWN or not (name in recipe or name in settings):
            raise unknown_name("setting to search", name, [n for n in KNOWN if n in recipe or n in settings], ADVICE)
        if name in space:
            raise bad_value("search", f"{name} twice", "each setting may be named once", ADVICE)
        space[name] = _narrowed(KNOWN[name], name, limits) if limits else KNOWN[name]
    if not space:
        raise UserError(f"nothing was named to search. {ADVICE}")
    return space


def _narrowed(known: Range, name: str, text: str) -> Range:
    low, colon, high = text.partition(":")
    try:
        limits = (float(low), float(high))
    except ValueError:
        limits = (math.nan, math.nan)
    is_whole = not known.is_whole or all(limit.is_integer() for limit in limits)
    if not colon or not is_whole or not 0 < limits[0] <= limits[1] < math.inf:
        kind = "whole numbers" if known.is_whole else "numbers"
        raise bad_value(name, repr(text), f"low:high was expected, {kind} above 0", ADVICE)
    low_end, high_end = map(int, limits) if known.is_whole else limits
    return Range(low_end, high_end, known.is_whole, known.is_log)
