"""How the papers make one number of many: over seeds, over data sets, over base and new classes.

It sees accuracies alone, in whatever unit; it never chooses a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, pstdev


def mean_and_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard deviation over seeds.

    Args:
        values: one a seed, at least one.
    Returns:
        The mean, and the standard deviation of the seeds at hand (divided by their number, as the released code of
        CoOp does); None for a single seed, which has none.
    """
    return fmean(values), pstdev(values) if len(values) > 1 else None


def harmonic_mean(base: float, new: float) -> float:
    """The harmonic mean of base and new accuracy (Zhou et al. 2022, CoCoOp, section 4.1); 0 if one of them is 0.

    For an average over data sets it is taken of the two averages; it is not the average of harmonic means.
    """
    return 2 * base * new / (base + new) if base + new else 0.0


def mean_of_means(values: Sequence[Sequence[float]]) -> float:
    """The average row of a table: the mean over data sets of each one's mean over seeds.

    Args:
        values: of each data set one value a seed; both at least one. A data set counts once, however many seeds it has.
    """
    return fmean(fmean(seeds) for seeds in values)
