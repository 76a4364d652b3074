"""Statistics of episodes."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb, sqrt
from statistics import fmean, stdev


def wilson(wins: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a success rate.

    Args:
        wins: Successes.
        count: Episodes, at least 1.
        z: Normal quantile; 1.96 for 95%.

    Returns:
        Lower and upper end, in 0..1.
    """
    rate = wins / count
    centre = rate + z * z / (2 * count)
    spread = z * sqrt(rate * (1 - rate) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def mean_interval(values: Sequence[float], z: float = 1.96) -> tuple[float, float, float]:
    """A mean and its interval, mean ± z standard errors.

    Args:
        values: At least 2.
        z: Normal quantile; 1.96 for 95%.

    Returns:
        Mean, lower and upper end, in the unit of the values.
    """
    mean, error = fmean(values), stdev(values) / sqrt(len(values))
    return mean, mean - z * error, mean + z * error


def sign_test(one: int, other: int) -> float:
    """Exact two-sided sign test (McNemar's) of paired successes.

    Args:
        one: Pairs that only the one won.
        other: Pairs that only the other won.

    Returns:
        How likely so uneven a split is where both are equally good, in 0..1.
    """
    count, less = one + other, min(one, other)
    return min(1.0, 2 * sum(comb(count, i) for i in range(less + 1)) / 2**count)
