"""Numbers as people read them: in pages, where they are filters of the templates, and on a console."""

from __future__ import annotations

from collections.abc import Sequence

CONSOLE = str.maketrans({"\N{NARROW NO-BREAK SPACE}": " ", "\N{MINUS SIGN}": "-"})
"""For `str.translate`: not every console has these two characters."""


def percent(share: float) -> str:
    """Return a share in 0..1 as `62.4 %`, with the thin space that typography asks for."""
    return f"{100 * share:.1f}\N{NARROW NO-BREAK SPACE}%"


def signed(share: float) -> str:
    """Return a difference of shares in points, `+31.2`, with a real minus."""
    return f"{100 * share:+.1f}".replace("-", "\N{MINUS SIGN}")


def between(interval: Sequence[float], with_sign: bool = False) -> str:
    """Return an interval of shares as `59.1 to 65.5`."""
    low, high = (signed(bound) if with_sign else f"{100 * bound:.1f}" for bound in interval)
    return f"{low} to {high}"


def verdict(interval: Sequence[float], better: str, worse: str, unclear: str) -> str:
    """Return what the 95 % interval of a difference allows to claim: one of three texts."""
    low, high = interval
    return better if low > 0 else worse if high < 0 else unclear


def counted(n: int, noun: str) -> str:
    """Return `1 trial` or `1,200 trials`."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def in_shots(shots: int | None) -> str:
    """Return how a number of training images per class is called: `4 shots`, `zero-shot`, `all shots`."""
    return "all shots" if shots is None else "zero-shot" if shots == 0 else counted(shots, "shot")
