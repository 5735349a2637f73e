"""Numbers as people read them in a report."""

from __future__ import annotations

from collections.abc import Sequence


def percent(share: float) -> str:
    """A share in 0..1 as `62.4 %`, with the thin space that typography asks for."""
    return f"{100 * share:.1f}\N{NARROW NO-BREAK SPACE}%"


def signed(share: float) -> str:
    """A difference of shares in points, `+31.2`, with a real minus."""
    return f"{100 * share:+.1f}".replace("-", "\N{MINUS SIGN}")


def between(interval: Sequence[float], with_sign: bool = False) -> str:
    """An interval of shares as `59.1 to 65.5`."""
    low, high = (signed(bound) if with_sign else f"{100 * bound:.1f}" for bound in interval)
    return f"{low} to {high}"


def missing_pictures(n_missing: int) -> str:
    """That some pictures are no longer where they were, or nothing."""
    return f"{n_missing} of the pictures that were to be shown can no longer be read." if n_missing else ""
