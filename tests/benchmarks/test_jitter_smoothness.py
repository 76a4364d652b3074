"""What benchmarks/smoothness.py computes from an episode and from pairs of episodes."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.smoothness import mcnemar, peak


def test_peak_is_the_jerk_of_a_cubic() -> None:
    t = np.arange(50) * 0.01
    positions = np.stack([7.0 / 6 * t**3, 0.1 * t**2], axis=1)
    assert peak(positions, 3, 0.01) == pytest.approx(7.0)
    assert peak(positions[:2], 3, 0.01) == 0.0  # too short to have one


def test_mcnemar_is_the_sign_test_of_the_pairs_that_differ() -> None:
    assert mcnemar([True] * 5, [True] * 5) == 1.0
    assert mcnemar([True] * 6 + [False], [False] * 6 + [False]) == pytest.approx(2 / 2**6)
    assert mcnemar([True, False], [False, True]) == 1.0
