"""The control loop within limits, in virtual time: a link that falls silent and comes back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from controller.clock import ManualClock
from controller.errors import ErrorCode, OnsetError
from controller.loop import ControlLoop
from controller.loop_types import LoopConfig, TickCode
from controller.robot import FakeRobot
from controller.types import ActionSlice
from controller.watchdog import LadderConfig, Mode
from tests.controller.executor_fakes import ARM, SO101, TICK, limits_of
from tests.controller.helpers import MS
from tests.controller.loop_fakes import FakeLink

RUNNING, COASTING, DECELERATING, HOLDING, FAULT = Mode
CONFIG = LoopConfig(control_period_ns=TICK, execute_steps=4)


class Swaying(FakeLink):
    """A policy of the arm: the action of a step depends on the step only."""

    silent = False
    broken: float | None = None

    def chunk(self, observation):
        steps = observation.step + np.arange(self.horizon)
        t = 0.04 * steps[:, None]
        rows = np.array([0.5, 0.4, 0.3]) * np.sin(2 * np.pi * 0.5 * t) + [0, 0, 0.5]
        if self.broken is not None:
            rows[:, 1] = self.broken
        return ActionSlice(
            observation.id, observation.step, steps, rows.astype(np.float32), final=True
        )

    def poll(self, now_ns: int):
        if self.silent:
            self.due = []  # lost
            return []
        return super().poll(now_ns)


class Loop:
    """A loop within limits, its robot and link, and what it did."""

    def __init__(self, *, latency_ns=60 * MS, horizon=20, ladder=None, **changes) -> None:
        self.clock = ManualClock(5 * MS)
        self.link = Swaying(self.clock, latency_ns, horizon=horizon)
        self.robot = FakeRobot(ARM, self.clock)
        self.robot.state[2] = 0.5
        self.loop = ControlLoop(
            self.robot,
            self.link,
            replace(CONFIG, **changes),
            "sway",
            limits=limits_of(),
            ladder=ladder or LadderConfig(fresh_ns=250 * MS),
        )
        self.results = []

    def run(self, ticks: int):
        for _ in range(ticks):
            self.results.append(self.loop.tick(self.clock.now_ns()))
            self.clock.sleep_until_ns(self.clock.now_ns() + TICK)
        return self.results[-ticks:]

    @property
    def modes(self):
        """Without repetition."""
        seen = [r.execution.mode for r in self.results]
        return [m for i, m in enumerate(seen) if not i or m is not seen[i - 1]]

    def excess(self) -> float:
        """Of velocity, acceleration and jerk, from what was decided and what was written."""
        limits, t = limits_of(), TICK * 1e-9
        p = np.array([r.execution.command for r in self.results])
        worst = [
            (np.abs(np.diff(p, n=n, axis=0)).max(axis=0) / t**n / rate).max()
            for n, rate in ((1, SO101[0]), (2, SO101[1]), (3, SO101[2]))
        ]
        written = np.array([c.position for c in self.robot.commands])
        np.testing.assert_allclose(written, p, atol=1e-6)
        assert (p >= limits.lower).all()
        assert (p <= limits.upper).all()
        return max(worst) - 1


def test_a_link_that_falls_silent_and_comes_back():
    rig = Loop()
    rig.run(400)
    assert rig.modes == [HOLDING, RUNNING]
    # The first reply came after 60 ms: two steps began without an action.
    assert rig.loop.counters.starved == 2
    rig.link.silent = True
    rig.run(400)
    assert rig.modes == [HOLDING, RUNNING, COASTING, DECELERATING, HOLDING]
    # Played out to the last step of the last chunk, then stopped: at most 250 ms.
    last = max(r.step for r in rig.results if r.execution.mode is COASTING)
    holding = [r for r in rig.results[400:] if r.execution.mode is HOLDING]
    assert (holding[0].step - last - 1) * 0.04 <= 0.25
    assert rig.results[-1].code is TickCode.STARVED
    assert len({tuple(r.execution.command) for r in holding}) == 1
    starved = rig.loop.counters.starved
    assert starved == 2 + rig.results[-1].step - last
    rig.link.silent = False
    rig.run(400)
    assert rig.modes[-2:] == [HOLDING, RUNNING]
    counters = rig.loop.counters
    assert starved <= counters.starved <= starved + 4
    assert counters.steps == 150
    assert counters.ticks == 1200
    assert (counters.refused, counters.missed_deadlines, counters.errors) == (0, 0, 0)
    assert rig.excess() < 1e-6
    # And it is back on the motion.
    step = rig.results[-1].step
    wanted = 0.5 * np.sin(2 * np.pi * 0.5 * 0.04 * step)
    assert rig.results[-1].set_point[0] == pytest.approx(wanted, abs=0.01)


def test_a_short_silence_coasts_and_nothing_stops():
    rig = Loop()
    rig.run(400)
    rig.link.silent = True
    rig.run(80)
    rig.link.silent = False
    rig.run(200)
    assert rig.modes == [HOLDING, RUNNING, COASTING, RUNNING]
    assert rig.loop.counters.starved == 2


def test_coasting_ends_where_it_is_told_to():
    rig = Loop(ladder=LadderConfig(fresh_ns=250 * MS, coast_ns=300 * MS))
    rig.run(400)
    rig.link.silent = True
    rig.run(200)
    assert rig.modes == [HOLDING, RUNNING, COASTING, DECELERATING, HOLDING]
    coasting = [r for r in rig.results if r.execution.mode is COASTING]
    assert len(coasting) == 10  # 50 ms
    assert coasting[0].code is TickCode.RUNNING


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_actions_that_are_not_finite_are_refused_and_counted_by_step(bad):
    rig = Loop(latency_ns=0)
    rig.run(80)
    rig.link.broken = bad
    results = rig.run(160)
    refused = [r for r in results if r.code is TickCode.REFUSED]
    assert refused
    assert rig.results[-1].execution.mode is HOLDING
    counters = rig.loop.counters
    steps = {r.step for r in refused}
    assert len(steps) <= counters.refused <= len(steps) + 1  # one was amended under way
    assert counters.starved == 0
    assert rig.excess() < 1e-6


def test_actions_out_of_range_are_clamped_and_counted_by_step():
    rig = Loop(latency_ns=0)
    rig.run(80)
    before = rig.loop.counters.clamped
    rig.link.broken = 9.0
    results = rig.run(160)
    steps = {r.step for r in results if r.execution.desired[1] > 1.5}
    assert len(steps) >= 16  # the chunk before is played out first
    assert rig.loop.counters.clamped - before == len(steps)
    assert all(r.clamped for r in results[40:])
    assert rig.results[-1].set_point[1] == pytest.approx(1.5, abs=1e-3)
    assert rig.excess() < 1e-6


def test_late_ticks_are_counted_and_make_no_jump():
    rig = Loop()
    rig.run(200)
    rig.clock.sleep_until_ns(rig.clock.now_ns() + 100 * MS)
    rig.run(200)
    counters = rig.loop.counters
    assert counters.missed_deadlines == 20
    assert counters.skipped == 2
    assert rig.excess() < 1e-6


def test_a_new_episode_begins_where_the_robot_is():
    rig = Loop()
    rig.run(200)
    rig.robot.state[:3] = [-0.3, 0.2, 0.1]
    rig.link.silent = True
    rig.loop.reset(rig.clock.now_ns(), "sway", "2")
    (first,) = rig.run(1)
    assert (first.step, first.boundary, first.execution.mode) == (0, True, HOLDING)
    np.testing.assert_allclose(first.set_point, [-0.3, 0.2, 0.1], atol=1e-6)
    assert rig.loop.counters.ticks == 1


def test_without_limits_there_is_no_executor():
    rig = Loop()
    assert rig.loop.executor is not None
    plain = ControlLoop(rig.robot, rig.link, CONFIG, "sway")
    assert plain.executor is None
    assert plain.tick(0).execution is None


def test_limits_of_another_robot_are_refused():
    wrong = replace(limits_of(), names=("a", "b", "c"))
    clock = ManualClock()
    with pytest.raises(OnsetError) as raised:
        ControlLoop(FakeRobot(ARM, clock), FakeLink(clock), CONFIG, "sway", limits=wrong)
    assert raised.value.code is ErrorCode.BAD_NAMES
