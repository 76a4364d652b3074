"""Flickering light: where it is, that seed and time repeat it, that it has no colour."""

from __future__ import annotations

import numpy as np
import pytest

from controller.errors import ErrorCode, OnsetError
from sim.env import SimRobot
from sim.flicker import BLOCK, Flicker
from sim.tasks import make_task

SHARE = 0.375


def frames_of(flicker: Flicker | None, seed: int) -> list[np.ndarray]:
    robot = SimRobot(make_task("whack"), flicker=flicker)
    robot.reset(seed)
    frames = []
    for step in range(1, 4):
        robot.advance_to(step * robot.spec.period_ns)
        frames.append(robot.render("front"))
        assert np.array_equal(robot.render("front"), frames[-1])
    robot.close()
    return frames


def test_only_the_lower_part_changes_and_differently_in_every_frame():
    steady, lit = frames_of(None, 5), frames_of(Flicker(SHARE), 5)
    rows = round(SHARE * len(steady[0]))
    for before, after in zip(steady, lit, strict=True):
        assert np.array_equal(before[:-rows], after[:-rows])
        assert not np.array_equal(before[-rows:], after[-rows:])
    apart = [
        after[-rows:].astype(int) - before[-rows:]
        for before, after in zip(steady, lit, strict=True)
    ]
    assert not np.array_equal(apart[0], apart[1])


def test_the_same_seed_gives_the_same_light_and_another_one_another():
    first, again = frames_of(Flicker(SHARE), 5), frames_of(Flicker(SHARE), 5)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    grey = np.full((96, 96, 3), 128, np.uint8)
    flicker = Flicker(SHARE)
    assert not np.array_equal(flicker.light(grey, 1, 7), flicker.light(grey, 2, 7))


def test_blocks_are_brighter_or_darker_by_the_size_that_was_asked_for():
    grey = np.full((96, 96, 3), 128, np.uint8)
    lit = np.stack([Flicker(SHARE, 0.1).light(grey, 0, n) for n in range(200)])
    low = lit[:, -36:].astype(float) - 128
    assert np.ptp(low, axis=-1).max() == 0  # no colour
    blocks = low[..., 0].reshape(200, 3, BLOCK, 8, BLOCK)
    assert np.ptp(blocks, axis=(2, 4)).max() == 0
    assert abs(blocks.mean()) < 2
    assert blocks.std() == pytest.approx(25.5, rel=0.05)


@pytest.mark.parametrize("values", [(0.0, 0.1), (1.5, 0.1), (0.5, 0.0), (float("nan"), 0.1)])
def test_values_out_of_range_are_refused(values: tuple[float, float]):
    with pytest.raises(OnsetError) as caught:
        Flicker(*values)
    assert caught.value.code is ErrorCode.BAD_VALUE
