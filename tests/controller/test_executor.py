"""The executor: it keeps every limit, whatever it is given, and goes by the ladder."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.errors import ErrorCode, OnsetError
from controller.executor import Executor, ExecutorConfig
from controller.park import ParkMotion
from controller.plan import EMPTY, Plan
from controller.watchdog import LadderConfig, Mode, Reason
from tests.controller.executor_fakes import ARM, SO101, TICK, Arm, limits_of, plan_of
from tests.controller.helpers import MS

RUNNING, COASTING, DECELERATING, HOLDING, FAULT = Mode
TINY = 1e-9
PER_STEP = ARM.period_ns // TICK
SLOW = (2.0, 10.0, 100.0)
HOME = np.array([0.0, 0.0, 0.5])


def glide(count: int, rate: float = 1.0, start: float = 0.0):
    """Actions of a pan that moves at so many rad/s. Shape (count, A)."""
    pan = start + rate * 0.04 * np.arange(1, count + 1)
    return np.column_stack([pan, np.zeros(count), np.full(count, 0.5)])


def sway(count: int, scatter: float = 0.0, seed: int = 0):
    """Actions of a motion that uses the arm and half its limits. Shape (count, A)."""
    times = 0.04 * np.arange(count)[:, None]
    rows = HOME + np.array([0.6, 0.5, 0.3]) * np.sin(2 * np.pi * times * [0.5, 0.7, 0.4])
    return rows + scatter * np.random.default_rng(seed).normal(size=rows.shape)


def until(arm: Arm, mode: Mode, most: int = 400, **asked) -> int:
    """Ticks until it is in a mode [count]."""
    for count in range(1, most + 1):
        if arm.tick(**asked).mode is mode:
            return count
    raise AssertionError(f"not {mode.name} after {most} ticks")


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


# --- the ladder -------------------------------------------------------------------------------


def stop_ticks(rates) -> int:
    """Until rest from full speed: v/a + a/j, and a tick."""
    v, a, j = rates
    return int(np.ceil((v / a + a / j) / 0.005 - 1e-9)) + 1


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
