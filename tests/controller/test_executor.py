"""The executor keeps every limit, whatever it is given, and follows what it can."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.plan import EMPTY
from controller.watchdog import LadderConfig, Mode
from tests.controller.executor_fakes import (
    ARM,
    HOME,
    PER_STEP,
    SLOW,
    SO101,
    TINY,
    Arm,
    glide,
    plan_of,
    sway,
)
from tests.controller.helpers import MS

RUNNING, COASTING, DECELERATING, HOLDING, FAULT = Mode


# --- whatever comes ---------------------------------------------------------------------------


class Chaos:
    """A client, a network and a system that do what they like, from a seed."""

    def __init__(self, seed: int, rates) -> None:
        self.rng = np.random.default_rng(seed)
        ladder = LadderConfig(
            fresh_ns=int(self.rng.choice([80, 500])) * MS,
            resume_ns=int(self.rng.choice([0, 7, 200])) * MS,
            tracking=None,
        )
        self.arm = Arm(rates=rates, ladder=ladder, bandwidth=float(self.rng.choice([10, 30, 80])))
        self.version, self.plan = 0, EMPTY
        self.middle = HOME.copy()
        self.begun: set[tuple[int, int]] = set()
        self.episode = 0

    def renew(self) -> None:
        """Another plan: gaps, what is not finite, far jumps, far outside; or none at all."""
        rng, arm = self.rng, self.arm
        step = (arm.now_ns - arm.begin_ns) // ARM.period_ns
        count = int(rng.integers(0, 20))
        chance = rng.random()
        if chance < 0.15:
            self.middle = rng.uniform(arm.limits.lower, arm.limits.upper)
        spread = 10 ** rng.uniform(-4, 0.3)
        rows = self.middle + np.cumsum(spread * rng.normal(size=(count, 3)), axis=0)
        if chance < 0.05 and count:
            rows[rng.integers(count)] *= 1e30
        if chance < 0.1 and count:
            rows[rng.integers(count), rng.integers(3)] = rng.choice([np.nan, np.inf, -np.inf])
        ids = np.where(rng.random(count) < 0.05, -1, 7)
        first = int(step + rng.integers(-3, 3))
        renewed_ns = arm.now_ns - int(rng.choice([-5, 0, 100, 1000])) * MS
        self.version += 1
        self.plan = plan_of(rows, first, renewed_ns, self.version, ids)

    def tick(self, stop: bool) -> None:
        rng, arm = self.rng, self.arm
        if rng.random() < 0.2:
            self.renew()
        if rng.random() < 0.01:
            arm.begin()
            self.episode += 1
            self.version = 0
            self.renew()
        if rng.random() < 0.05 and arm.modes[-1:] == [FAULT] and arm.executor.at_rest:
            arm.clear(arm.executor.position + 0.01 * (HOME - arm.executor.position))
        skip = int(rng.choice([0, 1, 3, 9, 40], p=[0.9, 0.04, 0.03, 0.02, 0.01]))
        arm.now_ns += int(rng.choice([0, 123_456], p=[0.95, 0.05]))  # and off the grid
        result = arm.tick(self.plan, skip=skip, stop=stop, estop=rng.random() < 0.002)
        self.check(result)

    def check(self, result) -> None:
        if result.boundary:
            assert (self.episode, result.step) not in self.begun
            self.begun.add((self.episode, result.step))
        assert np.isfinite(result.command).all()
        assert np.isfinite(result.target).all()
        assert (result.observation_id >= 0) == (result.mode in (RUNNING, COASTING))
        if result.mode is HOLDING:
            assert self.arm.executor.at_rest
        if result.refused:
            assert result.mode not in (RUNNING, COASTING)


@pytest.mark.parametrize("rates", [SO101, SLOW, (9.0, 200.0, 2e4)])
@pytest.mark.parametrize("seed", range(4))
def test_no_limit_is_exceeded_whatever_comes(seed, rates):
    chaos, stop = Chaos(seed, rates), False
    for _ in range(1200):
        if chaos.rng.random() < 0.02:
            stop = not stop
        chaos.tick(stop)
    assert chaos.arm.excess() < TINY
    modes = set(chaos.arm.modes)
    assert {RUNNING, COASTING, DECELERATING, HOLDING} <= modes


@given(seed=st.integers(0, 2**32 - 1), ticks=st.integers(1, 80), stops=st.sets(st.integers(0, 79)))
@settings(max_examples=40, deadline=None)
def test_no_limit_is_exceeded_in_any_short_run(seed, ticks, stops):
    chaos = Chaos(seed, SO101)
    for k in range(ticks):
        chaos.tick(k in stops)
    assert chaos.arm.excess() < TINY


# --- following --------------------------------------------------------------------------------


@pytest.mark.parametrize("rates", [SO101, SLOW])
@pytest.mark.parametrize("way", [0.002, 0.02, 0.08, 0.15, 0.3, 0.8, 1.5, 1.7])
def test_a_pose_is_gone_to_and_stood_at_without_a_swing(way, rates):
    arm = Arm(rates=rates)
    plan = plan_of(np.tile([way, 0, 0.5], (130, 1)), renewed_ns=arm.now_ns + 10**10)
    arm.run(1000, plan)
    pan = arm.commands[:, 0]
    assert pan.max() <= 1.25 * way + 1e-4
    np.testing.assert_allclose(pan[-50:], np.float32(way), atol=1e-4)
    assert np.abs(arm.commands[:, 1]).max() < TINY
    assert arm.excess() < TINY


@pytest.mark.parametrize(("rates", "most"), [(SO101, 0.01), (SLOW, 0.06)])
def test_actions_are_followed_through_new_chunks_with_the_scatter_smoothed(rates, most):
    arm, smooth = Arm(rates=rates), sway(400)
    noisy = sway(400, scatter=0.005)
    for k in range(1600):
        step = k // PER_STEP
        arm.tick(plan_of(noisy[step : step + 30], step, arm.now_ns, version=step))
    # The action of step s is where the arm is to be at its end.
    ends = arm.commands[PER_STEP - 1 :: PER_STEP]
    assert np.abs(ends - smooth[: len(ends)])[25:].max() < most
    scatter = np.abs(np.diff(noisy - smooth, n=2, axis=0)).mean()
    left = np.abs(np.diff(ends - smooth[: len(ends)], n=2, axis=0))[25:].mean()
    assert left < scatter / 5
    assert arm.excess() < TINY


def test_a_step_begins_once_and_the_policys_action_is_told_as_it_came():
    arm = Arm()
    rows = sway(12)
    plan = plan_of(rows, renewed_ns=arm.now_ns)
    results = arm.run(12 * PER_STEP, plan)
    assert [r.step for r in results if r.boundary] == list(range(12))
    assert [r.boundary for r in results] == [k % PER_STEP == 0 for k in range(len(results))]
    for r in results:
        np.testing.assert_array_equal(r.desired, rows[r.step].astype(np.float32))
        assert r.observation_id == 7


def test_steps_that_time_passed_over_are_left_out():
    arm = Arm()
    plan = plan_of(glide(40), renewed_ns=arm.now_ns)
    arm.run(20, plan)
    before = arm.results[-1]
    result = arm.tick(plan, skip=2 * PER_STEP)
    assert result.boundary
    assert result.step == before.step + 2
    # One period of motion, as ever.
    arm.run(20, plan)
    assert arm.excess() < TINY
    assert np.abs(result.command - before.command).max() <= 5.0 * 0.005


def test_a_plan_that_changes_within_a_step_is_taken_at_once():
    arm = Arm()
    arm.run(PER_STEP + 3, plan_of(glide(30, 0.2), renewed_ns=arm.now_ns))
    first = arm.results[-1]
    assert not arm.tick(plan_of(glide(30, 2.0), renewed_ns=arm.now_ns, version=2)).boundary
    assert arm.results[-1].step == first.step
    assert arm.results[-1].desired[0] > first.desired[0]
    assert arm.results[-1].target[0] > first.target[0] + 0.001
