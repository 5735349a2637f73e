"""Figures as the pages in docs/ show them."""

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines)


def percent(value: float) -> str:
    """A share in %, with one digit."""
    return f"{100 * value:.1f}"


def gain(value: float, interval: Sequence[float]) -> str:
    """A difference of shares in points, with its interval."""
    low, high = (100 * bound for bound in interval)
    return f"{100 * value:+.1f} ({low:+.1f} to {high:+.1f})"


def several(values: Sequence[float]) -> str:
    """The mean of shares in %, and each of them."""
    return f"{percent(sum(values) / len(values))} ({', '.join(map(percent, values))})" if values else ""
