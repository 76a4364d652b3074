"""K and the executed part of a chunk, against the arithmetic and in closed loop."""

from __future__ import annotations

import numpy as np
import pytest

from controller.errors import OnsetError
from controller.types import Observation
from sim.cadence import Cadence, fastest_cadence
from sim.delay import Compute, Whole
from sim.env import SimRobot
from sim.rollout import expert, loop_config, run_episode
from sim.tasks import make_task

MS = 1_000_000
CONSTANT = np.full(32, 10)
# The horizon-aware table of 32 actions and 10 steps.
HAS = np.array([1, 3, 3, 4, 4, 5, 5, 5, 5, 6, 6, 6, 7, 7, 7, 7, 8, 8, 8, 8, 9, 9, 9, 9] + [10] * 8)
ONE_STEP = np.ones(32, int)


def compute(scale: float) -> Compute:
    return Compute(round(2.26 * scale * MS), round(1.25 * scale * MS))


@pytest.mark.parametrize(
    ("ready_at", "scale", "expected"),
    [
        (CONSTANT, 1, Cadence(1, 2)),  # 15 ms
        (CONSTANT, 4, Cadence(2, 4)),  # 59 ms: the actions of index 0 and 1 come too late
        (CONSTANT, 8, Cadence(3, 6)),  # 118 ms
        (HAS, 1, Cadence(1, 2)),
        (HAS, 4, Cadence(1, 2)),  # 14 ms, and 24 ms until index 1 is finished
        # 28 ms; index 1 comes at 48 ms, after its step began and after the next observation.
        (HAS, 8, Cadence(2, 4)),
        (ONE_STEP, 8, Cadence(1, 2)),  # 28 ms
    ],
)
def test_least_interval_that_one_server_sustains(ready_at, scale, expected) -> None:
    assert fastest_cadence(ready_at, compute(scale), 40 * MS, 10 * MS) == expected


def test_without_delay_one_action_of_each_chunk_is_enough() -> None:
    assert fastest_cadence(CONSTANT, Compute(0, 0), 40 * MS, 10 * MS) == Cadence(1, 1)


def test_a_floor_is_kept_and_an_early_stop_follows_it() -> None:
    found = fastest_cadence(HAS, compute(4), 40 * MS, 10 * MS, least_steps=2)
    assert found == Cadence(2, 3)


def test_a_server_that_is_too_slow_for_the_chunk_is_told() -> None:
    with pytest.raises(OnsetError, match="latency"):
        fastest_cadence(CONSTANT, compute(100), 40 * MS, 10 * MS)


@pytest.fixture(scope="module")
def robot() -> SimRobot:
    return SimRobot(make_task("whack"))


@pytest.mark.parametrize("scale", [1, 3, 4, 8, 13, 20])
@pytest.mark.parametrize("ready_at", [CONSTANT, HAS, ONE_STEP], ids=["constant", "has", "one"])
def test_no_step_is_starved_once_the_first_answer_is_there(robot, ready_at, scale) -> None:
    latency = compute(scale)
    cadence = fastest_cadence(ready_at, latency, 40 * MS, 10 * MS)
    plan = expert(robot, 32)

    def stream(observation: Observation) -> list[Whole]:
        """The expert's chunk, cut as the table says and stopped after what is executed."""
        chunk, ready = plan(observation)[: cadence.executed], ready_at[: cadence.executed]
        step = observation.step
        parts = [(steps, np.flatnonzero(ready == steps)) for steps in np.unique(ready)]
        return [
            Whole(step, step + i, chunk[i], int(steps), steps == ready.max()) for steps, i in parts
        ]

    config = loop_config(cadence.execute_steps)
    episode = run_episode(robot, stream, 3, latency=latency, config=config)
    # Those that the first chunk was too late for, and none after them.
    assert episode.counters.starved == cadence.executed - cadence.execute_steps
    assert episode.counters.steps > 30
