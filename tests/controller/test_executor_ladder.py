"""The executor when actions stop coming, and when they are of no use: down the ladder and up."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.watchdog import LadderConfig, Mode, Reason
from tests.controller.executor_fakes import (
    ARM,
    PER_STEP,
    SLOW,
    SO101,
    TICK,
    TINY,
    Arm,
    glide,
    plan_of,
    stop_ticks,
    until,
)
from tests.controller.helpers import MS

RUNNING, COASTING, DECELERATING, HOLDING, FAULT = Mode


@pytest.mark.parametrize(
    ("rates", "speed"), [(SO101, 1.0), (SO101, 3.0), (SO101, 4.8), (SLOW, 0.3)]
)
def test_it_holds_within_the_analytic_time_after_the_last_action(rates, speed):
    """And for the SO-101's limits within 250 ms."""
    arm = Arm(rates=rates, start=(-1.5, 0, 0.5))
    steps = int(2.4 / speed / 0.04)
    plan = plan_of(glide(steps, speed, -1.5), renewed_ns=arm.now_ns + 10**10)
    arm.run(steps * PER_STEP, plan)
    assert arm.modes[-1] is RUNNING
    ticks = until(arm, HOLDING, plan=plan)
    assert ticks <= stop_ticks(rates) + 1  # the tick that says so is the one after the last motion
    if rates is SO101:
        assert ticks * 0.005 <= 0.25
    assert arm.results[-1].reason is Reason.NO_ACTION
    assert arm.modes.count(DECELERATING) + 1 >= ticks
    assert arm.excess() < TINY


@given(seed=st.integers(0, 2**32 - 1), steps=st.integers(1, 30))
@settings(max_examples=25, deadline=None)
def test_it_holds_within_250_ms_from_wherever_a_plan_has_led(seed, steps):
    """An acceleration that is under way has to be ended first, which takes another a/j."""
    arm, rng = Arm(), np.random.default_rng(seed)
    rows = rng.uniform(arm.limits.lower, arm.limits.upper, (steps, 3))
    plan = plan_of(rows, renewed_ns=arm.now_ns + 10**10)
    arm.run(steps * PER_STEP, plan)
    ticks = until(arm, HOLDING, plan=plan)
    assert ticks <= stop_ticks(SO101) + 5
    assert ticks * 0.005 <= 0.25


def test_the_whole_ladder_down_and_up_again():
    arm = Arm()
    plan = plan_of(glide(30), renewed_ns=arm.now_ns)
    arm.tick()
    arm.run(30 * PER_STEP + 60, plan)
    changes = [r.change for r in arm.results if r.change is not None]
    assert [(c.old, c.new) for c in changes] == [
        (HOLDING, RUNNING),
        (RUNNING, COASTING),
        (COASTING, DECELERATING),
        (DECELERATING, HOLDING),
    ]
    at = {c.new: c.now_ns for c in changes}
    assert at[COASTING] - plan.renewed_ns == pytest.approx(500 * MS, abs=TICK)
    assert at[DECELERATING] == arm.begin_ns + 30 * ARM.period_ns
    # An old plan that now has an action for this step starts nothing.
    step = (arm.now_ns - arm.begin_ns) // ARM.period_ns
    held = arm.executor.position
    old = plan_of(glide(30), step, plan.renewed_ns, version=2)
    assert {r.mode for r in arm.run(20, old)} == {HOLDING}
    np.testing.assert_array_equal(arm.executor.position, held)
    assert arm.tick(replace(old, renewed_ns=arm.now_ns, version=3)).mode is RUNNING


def test_a_gap_within_the_plan_decelerates_and_a_fresh_action_goes_on():
    arm = Arm()
    ids = np.full(40, 7)
    ids[15] = -1
    plan = plan_of(glide(40), renewed_ns=arm.now_ns + 10**10, ids=ids)
    results = arm.run(40 * PER_STEP, plan)
    modes = {r.step: r.mode for r in results}
    assert modes[14] is RUNNING
    assert modes[15] in (DECELERATING, HOLDING)
    assert modes[16] is RUNNING
    assert all(r.desired is None for r in results if r.step == 15)
    assert arm.excess() < TINY


def test_resuming_after_holding_is_blended():
    """To a plan that is far away by now the arm goes slowly, then it follows."""
    fast, blended = Arm(ladder=LadderConfig(resume_ns=0)), Arm()
    for arm in (fast, blended):
        plan = plan_of(np.tile([0.1, 0, 0.5], (200, 1)), renewed_ns=arm.now_ns + 10**10)
        arm.run(200, plan)
        assert arm.excess() < TINY
        np.testing.assert_allclose(arm.executor.position[0], 0.1, atol=1e-4)
    peak = [np.abs(np.diff(arm.commands[:, 0])).max() / 0.005 for arm in (fast, blended)]
    assert peak[1] < 0.8 * peak[0]
    targets = np.array([r.target[0] for r in blended.results])
    assert targets[0] < 0.001
    assert (np.diff(targets[:40]) >= -1e-12).all()
    np.testing.assert_allclose(targets[41:], 0.1, atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_action_that_is_not_finite_is_refused_and_the_arm_stops(bad):
    arm, rows = Arm(), glide(60)
    rows[20:] = [0.8, bad, 0.5]
    plan = plan_of(rows, renewed_ns=arm.now_ns + 10**10)
    results = arm.run(20 * PER_STEP, plan)
    assert not any(r.refused for r in results)
    results = arm.run(60, plan)
    assert all(r.refused for r in results)
    assert results[0].mode is DECELERATING
    assert results[-1].mode is HOLDING
    assert {r.reason for r in results} == {Reason.ACTION_REFUSED}
    assert {r.observation_id for r in results} == {-1}
    assert not np.isfinite(results[-1].desired).all()  # the record shows what came
    assert arm.excess() < TINY


@pytest.mark.parametrize("far", [1.8, 50.0, 3e38])
def test_an_action_out_of_range_is_cut_to_the_limit_and_flagged(far):
    arm = Arm()
    plan = plan_of(np.tile([far, 0.0, 0.5], (100, 1)), renewed_ns=arm.now_ns + 10**10)
    results = arm.run(600, plan)
    np.testing.assert_allclose(results[-1].command, [1.7, 0, 0.5], atol=1e-4)
    assert arm.excess() < TINY
    # For as long as it asks for more, also while it stands at the limit.
    assert all(r.clamped & 1 for r in results)
    assert not any(r.clamped & 0b110 for r in results[100:])


def test_what_the_rates_hold_back_is_flagged_too():
    arm = Arm(ladder=LadderConfig(resume_ns=0))
    plan = plan_of(np.tile([1.5, 0.0, 0.5], (100, 1)), renewed_ns=arm.now_ns + 10**10)
    results = arm.run(300, plan)
    assert results[2].clamped == 0b001
    assert results[-1].clamped == 0
