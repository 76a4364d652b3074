"""Statistics of episodes."""

from __future__ import annotations

from math import sqrt


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
