"""The executor told to stop, in a fault, parking, and as an episode begins."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from controller.errors import ErrorCode, OnsetError
from controller.executor import Executor, ExecutorConfig
from controller.park import ParkMotion
from controller.plan import EMPTY, Plan
from controller.watchdog import LadderConfig, Mode, Reason
from tests.controller.executor_fakes import (
    ARM,
    HOME,
    SLOW,
    SO101,
    TICK,
    TINY,
    Arm,
    glide,
    limits_of,
    plan_of,
    stop_ticks,
    until,
)
from tests.controller.helpers import MS

RUNNING, COASTING, DECELERATING, HOLDING, FAULT = Mode


# --- stops and faults -------------------------------------------------------------------------


def moving(**settings) -> tuple[Arm, Plan]:
    arm = Arm(**settings)
    plan = plan_of(glide(200), renewed_ns=arm.now_ns + 10**10)
    arm.run(80, plan)
    return arm, plan


def test_told_to_stop_it_holds_until_let_go():
    arm, plan = moving()
    ticks = until(arm, HOLDING, plan=plan, stop=True)
    assert ticks <= stop_ticks(SO101) + 1
    assert arm.results[-1].reason is Reason.STOPPING
    held = arm.executor.position
    arm.run(50, plan, stop=True)
    np.testing.assert_array_equal(arm.executor.position, held)
    assert arm.tick(plan).mode is RUNNING
    arm.run(100, plan)
    assert arm.excess() < TINY


def test_an_emergency_stop_latches_and_stops_within_the_limits():
    arm, plan = moving()
    assert arm.tick(plan, estop=True).reason is Reason.ESTOP
    results = arm.run(stop_ticks(SO101), plan)
    assert {r.mode for r in results} == {FAULT}
    assert arm.executor.at_rest
    assert arm.excess() < TINY
    held = arm.executor.position
    arm.run(50, plan)
    np.testing.assert_array_equal(arm.executor.position, held)


def test_clear_begins_where_the_arm_is_measured_and_waits_for_fresh_actions():
    arm, plan = moving()
    arm.run(60, plan, estop=True)
    there = arm.executor.position - [0.3, 0.1, 0.0]
    change = arm.clear(there)
    assert (change.old, change.new) == (FAULT, HOLDING)
    np.testing.assert_array_equal(arm.executor.position, there)
    assert arm.tick().mode is HOLDING
    np.testing.assert_array_equal(arm.executor.position, there)
    step = arm.results[-1].step  # steps are counted on
    assert step == (arm.now_ns - TICK - arm.begin_ns) // ARM.period_ns
    first = arm.tick(plan)
    assert first.mode is RUNNING
    assert np.abs(first.command - there).max() < 1e-3
    arm.run(200, plan)
    assert arm.excess() < TINY


def test_clear_is_for_an_arm_at_rest_in_a_fault():
    arm, plan = moving()
    assert arm.executor.clear(arm.now_ns, HOME) is None
    arm.run(5, plan)
    arm.tick(plan, estop=True)
    with pytest.raises(OnsetError) as raised:
        arm.executor.clear(arm.now_ns, HOME)
    assert raised.value.code is ErrorCode.UNAVAILABLE
    arm.run(60, plan)
    assert arm.excess() < TINY
    with pytest.raises(OnsetError, match="by hand"):
        arm.executor.clear(arm.now_ns, np.array([0.0, 1.9, 0.5]))
    assert arm.tick(plan).mode is FAULT


def test_a_joint_too_far_from_its_command_is_a_fault_when_it_lasts():
    ladder = LadderConfig(tracking=0.2, tracking_ns=100 * MS)
    arm = Arm(ladder=ladder)
    off = [0.0, 0.25, 0.5, 0.0]
    for _ in range(3):  # off and back again
        assert FAULT not in {r.mode for r in arm.run(20, measured=off)}
        arm.tick(measured=arm.measured())
    assert arm.run(20, measured=off)[-1].mode is HOLDING
    result = arm.tick(measured=off)
    assert (result.mode, result.reason) == (FAULT, Reason.TRACKING)
    careless = Arm(ladder=replace(ladder, tracking=None))
    assert {r.mode for r in careless.run(99, measured=off)} == {HOLDING}


@pytest.mark.parametrize(
    ("measured", "reason"),
    [
        ([1.7 + 0.18, 0, 0.5, 0], Reason.LIMIT),
        ([0, -1.2 - 0.14, 0.5, 0], Reason.LIMIT),
        ([np.nan, 0, 0.5, 0], Reason.ROBOT),
        ([0, -np.inf, 0.5, 0], Reason.ROBOT),
    ],
)
def test_a_measurement_that_cannot_be_is_a_fault_at_once(measured, reason):
    arm, plan = moving()
    result = arm.tick(plan, measured)
    assert (result.mode, result.reason) == (FAULT, reason)
    assert result.change.new is FAULT
    arm.run(60, plan)
    assert arm.executor.at_rest
    assert arm.excess() < TINY


@pytest.mark.parametrize(
    "measured",
    [
        [1.7 + 0.16, 0, 0.5, 0],  # within 5 % of the range
        [0, 0, 5.0, 0],  # a gripper, stopped by what it holds
        [0, 0, np.nan, 0],
        [0, 0, 0.5, np.nan],  # no joint's place
    ],
)
def test_what_is_no_fault(measured):
    arm = Arm(ladder=LadderConfig(tracking=None))
    assert {r.mode for r in arm.run(200, measured=measured)} == {HOLDING}
    if measured[0] == 0:
        arm = Arm()
        assert {r.mode for r in arm.run(200, measured=measured)} == {HOLDING}


def test_a_command_that_is_not_finite_is_a_fault(monkeypatch):
    arm, plan = moving()
    broken = [(np.nan, 0.0, 0.0)] * 3
    monkeypatch.setattr(
        arm.executor._limiter, "follow", lambda *_: arm.executor._limiter._set(broken)
    )
    result = arm.tick(plan)
    assert (result.mode, result.reason) == (FAULT, Reason.NOT_FINITE)


# --- parking, episodes, set-up ----------------------------------------------------------------


@pytest.mark.parametrize("rates", [SO101, SLOW])
def test_a_goal_is_gone_to_once_stopped_and_left_for_nothing(rates):
    arm, plan = moving(rates=rates)
    until(arm, HOLDING, plan=plan, stop=True)
    park = np.array([-1.0, 1.2, 0.0])
    motion = ParkMotion(arm.executor.position, park, arm.limits, arm.now_ns)
    count = motion.duration_ns // TICK + 3
    for _ in range(count):
        result = arm.tick(plan, stop=True, goal=motion.at(arm.now_ns + TICK))
        assert (result.mode, result.reason) == (HOLDING, Reason.STOPPING)
    np.testing.assert_allclose(arm.executor.position, park, atol=1e-6)
    assert arm.executor.at_rest
    assert arm.excess() < TINY


def test_a_goal_is_no_way_out_of_a_fault_or_of_running():
    goal = np.array([1.0, 1.0, 1.0]), np.zeros(3)
    arm, plan = moving()
    arm.run(60, plan, estop=True)
    held = arm.executor.position
    arm.run(20, plan, stop=True, goal=goal)
    np.testing.assert_array_equal(arm.executor.position, held)


def test_a_new_episode_goes_on_from_where_the_arm_is():
    arm, _ = moving()
    arm.begin()
    result = arm.tick(plan_of(glide(30, start=0.5), renewed_ns=arm.now_ns, version=1))
    assert (result.step, result.boundary, result.mode) == (0, True, RUNNING)
    arm.run(100, plan_of(glide(30, start=0.5), renewed_ns=arm.now_ns, version=1))
    assert arm.excess() < TINY


def test_before_its_episode_begins_nothing_stands():
    """The client says when step 0 was; a tick may have been due before."""
    arm = Arm()
    arm.executor.begin(arm.now_ns + 3 * MS)
    plan = plan_of(glide(30), renewed_ns=arm.now_ns)
    first, second = arm.run(2, plan)
    assert (first.step, first.boundary, first.mode) == (-1, False, HOLDING)
    assert (second.step, second.boundary, second.mode) == (0, True, RUNNING)


def test_it_is_told_where_the_arm_is_first():
    executor = Executor(ARM, limits_of(), ExecutorConfig(TICK))
    with pytest.raises(OnsetError) as raised:
        executor.tick(0, EMPTY)
    assert raised.value.code is ErrorCode.NOT_OPEN
    with pytest.raises(OnsetError, match="lift"):
        executor.reset(0, np.array([0.0, 2.0, 0.5]))


@pytest.mark.parametrize(
    ("limits", "period_ns", "code"),
    [
        (replace(limits_of(), names=("a", "b", "c")), TICK, ErrorCode.BAD_NAMES),
        (limits_of(), 7 * MS, ErrorCode.BAD_VALUE),
    ],
)
def test_what_does_not_fit_is_refused(limits, period_ns, code):
    with pytest.raises(OnsetError) as raised:
        Executor(ARM, limits, ExecutorConfig(period_ns))
    assert raised.value.code is code
