"""The limiter: no limit is exceeded whatever is asked, and what is within them is followed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruckig import ControlInterface, InputParameter, Ruckig, Synchronization, Trajectory

from controller.axis import Axis
from controller.errors import ErrorCode, OnsetError
from controller.limits import LimitCode, Limiter, MotionLimits
from tests.controller.limit_cases import (
    MS,
    SO101,
    Run,
    hermite,
    same_limits,
    sine,
    wild_run,
)

T = 0.005
TINY = 1e-9


@pytest.mark.parametrize("seed", range(10))
def test_no_limit_is_ever_exceeded(seed):
    """100 000 targets over the ten seeds, for random joints and periods."""
    run = wild_run(seed, count=50, steps=200)
    assert max(run.excess().values()) < TINY
    assert run.excess()["position"] <= 0
    assert {"clipped", "error"} <= set(run.codes)


@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 4), steps=st.integers(1, 60))
@settings(max_examples=60, deadline=None)
def test_no_limit_is_exceeded_by_any_wild_run(seed, count, steps):
    assert max(wild_run(seed, count, steps).excess().values()) < TINY


@given(
    moves=st.lists(
        st.tuples(
            st.one_of(st.floats(-4, 4), st.sampled_from([-1.7, 1.7, np.nan, np.inf, 1e300])),
            st.one_of(st.none(), st.floats(-9, 9), st.sampled_from([5.0, -5.0, np.nan, 1e300])),
            st.integers(1, 40),
        ),
        max_size=12,
    ),
    limits=st.sampled_from([SO101, (2.0, 10.0, 100.0), (0.3, 8.0, 9e4)]),
)
@settings(max_examples=100, deadline=None)
def test_no_limit_is_exceeded_by_targets_that_stay_a_while(moves, limits):
    run = Run(same_limits(1, *limits), 5 * MS, np.zeros(1))
    for position, velocity, times in moves:
        for _ in range(times):
            run.towards([position], None if velocity is None else [velocity])
    assert max(run.excess().values()) < TINY


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_a_brake_ends_at_rest_in_the_least_time(seed):
    run = wild_run(seed, count=3, steps=40)
    limiter, limits = run.limiter, run.limiter.limits
    states = [v.tolist() for v in (limiter.velocity, limiter.acceleration)]
    ask, trajectory = InputParameter(3), Trajectory(3)
    ask.control_interface = ControlInterface.Velocity
    ask.synchronization = Synchronization.No
    ask.current_velocity, ask.current_acceleration = states
    ask.max_acceleration, ask.max_jerk = limits.acceleration.tolist(), limits.jerk.tolist()
    ask.current_position = limiter.position.tolist()
    Ruckig(3).calculate(ask, trajectory)
    least = np.array(trajectory.independent_min_durations)
    ended = trajectory.at_time(float(least.max()) + 1)[0]
    periods = 0
    while not limiter.at_rest:
        run.brake()
        periods += 1
    assert periods <= np.ceil(least.max() / run.t - 1e-6) + 1
    assert periods >= np.floor(least.max() / run.t - 1e-6)
    scale = np.maximum(np.abs(limits.lower), np.abs(limits.upper))
    np.testing.assert_allclose(limiter.position / scale, ended / scale, atol=1e-9)
    assert run.brake() is LimitCode.ON_TARGET
    assert max(run.excess().values()) < TINY


def test_a_step_response_is_the_fastest_there_is():
    limits = same_limits(3)
    run = Run(limits, 5 * MS, np.zeros(3))
    goal = np.array([1.0, -0.3, 0.01])
    ask, trajectory = InputParameter(3), Trajectory(3)
    ask.synchronization = Synchronization.No
    ask.target_position = goal.tolist()
    ask.max_velocity, ask.max_acceleration = limits.velocity.tolist(), limits.acceleration.tolist()
    ask.max_jerk = limits.jerk.tolist()
    Ruckig(3).calculate(ask, trajectory)
    steps = int(np.ceil(trajectory.duration / T)) + 2
    for k in range(1, steps + 1):
        run.towards(goal)
        np.testing.assert_allclose(run.now(), trajectory.at_time(k * T), atol=1e-6)
    assert run.codes[-1] is LimitCode.ON_TARGET
    assert run.limiter.limited == 0
    assert run.limiter.at_rest


@pytest.mark.parametrize(("share", "caught"), [(0.3, 100), (0.6, 150), (0.9, 400)])
def test_a_sine_within_the_limits_is_caught_and_then_followed(share, caught):
    """Each joint uses ``share`` of the velocity or of the acceleration limit."""
    rng = np.random.default_rng(0)
    hertz = rng.uniform(0.5, 3, 8)
    w = 2 * np.pi * hertz
    amplitude = np.minimum(share * 40 / w**2, np.minimum(share * 5 / w, 1.6))
    p, v = sine(amplitude, hertz, rng.uniform(0, 6, 8), T, 800)
    run = Run(same_limits(8), 5 * MS, p[0])
    for position, velocity in zip(p, v, strict=True):
        run.towards(position, velocity)
    assert set(run.codes[caught:]) == {LimitCode.ON_TARGET}
    np.testing.assert_allclose(run.positions[1 + caught :], p[caught:], atol=1e-9)
    jerk = np.abs(np.diff([s[2] for s in run.states[1 + caught :]], axis=0)).max(0) / T
    np.testing.assert_array_less(jerk, 1.05 * amplitude * w**3)
    assert max(run.excess().values()) < TINY


@pytest.mark.parametrize("limits", [SO101, (2.0, 10.0, 100.0)])
@pytest.mark.parametrize("share", [0.3, 0.8])
def test_a_target_that_glides_is_met_also_from_afar(limits, share):
    """From ahead of it, from where it begins, and from behind it."""
    run = Run(same_limits(3, *limits, reach=20.0), 5 * MS, np.array([-9.0, -10.0, -10.3]))
    speed = share * limits[0]
    for k in range(1, 600):
        code = run.towards(np.full(3, -10 + speed * k * T), np.full(3, speed))
    assert code is LimitCode.ON_TARGET
    assert max(run.excess().values()) < TINY


def test_a_cubic_through_way_points_is_followed_within_a_milliradian():
    """A reference with steps of acceleration at its knots, which no jerk limit allows exactly."""
    rng = np.random.default_rng(1)
    times = np.arange(0, 6, 0.04)[:, None]
    points = 0.5 * np.sin(2 * np.pi * 0.5 * times + rng.uniform(0, 6, 6))
    p, v = hermite(points, 0.04, T)
    run = Run(same_limits(6), 5 * MS, p[0])
    for position, velocity in zip(p, v, strict=True):
        run.towards(position, velocity)
    assert np.abs(run.positions[201:] - p[200:]).max() < 1e-3
    assert max(run.excess().values()) < TINY


def test_a_target_outside_is_cut_to_the_limit_and_said_so():
    run = Run(same_limits(2), 5 * MS, np.zeros(2))
    for _ in range(400):
        code = run.towards([3.0, 0.0], [4.0, 0.0])
        assert code is LimitCode.CLIPPED
        assert run.limiter.limited == 0b01
    np.testing.assert_allclose(run.limiter.position, [1.7, 0.0], atol=1e-9)


@pytest.mark.parametrize(
    ("position", "velocity"),
    [([np.nan, 0], None), ([0, 0], [0, -np.inf]), ([0, 0, 0], None), ([0, 0], [0]), ([], None)],
)
def test_a_target_that_is_no_target_brakes(position, velocity):
    run = Run(same_limits(2), 5 * MS, np.zeros(2))
    for _ in range(30):
        run.towards([1.0, 1.0])
    twin = Run(same_limits(2), 5 * MS, np.zeros(2))
    for _ in range(30):
        twin.towards([1.0, 1.0])
    for _ in range(60):
        assert run.towards(position, velocity) is LimitCode.ERROR
        assert run.limiter.limited == 0b11
        twin.brake()
        np.testing.assert_array_equal(run.now(), twin.now())
    assert run.limiter.at_rest


def test_a_failure_of_ruckig_is_a_code(monkeypatch):
    run = Run(same_limits(2), 5 * MS, np.zeros(2))
    run.towards([1.0, 1.0], [0.0, 0.0])
    monkeypatch.setattr(run.limiter._approach, "step", lambda *_: None)
    assert run.towards([1.0, 1.0], [0.0, 0.0]) is LimitCode.ERROR
    assert max(run.excess().values()) < TINY


def test_reset_takes_a_little_outside_as_the_nearest_allowed():
    limiter = Limiter(same_limits(2), 5 * MS)
    limiter.reset(np.array([1.75, -1.72]))
    assert limiter.position.tolist() == [1.7, -1.7]
    assert limiter.at_rest


@pytest.mark.parametrize(
    ("position", "words"),
    [
        ([0.0, 1.9], ["joint 1", "1.9", "-1.7..1.7", "by hand"]),
        ([np.nan, 0.0], ["joint 0", "nan"]),
        ([0.0], ["(1,)", "(2,)"]),
    ],
)
def test_reset_refuses_with_joint_place_and_limits(position, words):
    limiter = Limiter(same_limits(2), 5 * MS)
    with pytest.raises(OnsetError) as raised:
        limiter.reset(np.array(position))
    assert all(word in str(raised.value) for word in words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"velocity": [1.0, 0.0]}, "limits[b].velocity: given 0.0; allowed: above 0"),
        ({"jerk": [np.inf, 1.0]}, "limits[a].jerk: given inf"),
        ({"acceleration": [-1.0, 1.0]}, "limits[a].acceleration: given -1.0"),
        ({"lower": [0.0, np.nan]}, "limits[b].lower: given nan; allowed: a finite value"),
        ({"lower": [0.0, 2.0]}, "limits[b].position: given [2.0, 1.0]; allowed: lower < upper"),
        ({"upper": [1.0]}, "limits.upper: given shape (1,)"),
        ({"names": ("a", "a")}, "limits.names"),
    ],
)
def test_limits_refuse_with_joint_and_limit(change, words):
    good = MotionLimits(("a", "b"), np.zeros(2), np.ones(2), np.ones(2), np.ones(2), np.ones(2))
    with pytest.raises(OnsetError) as raised:
        replace(good, **change)
    assert words in str(raised.value)


def test_a_period_must_be_positive():
    with pytest.raises(OnsetError) as raised:
        Limiter(same_limits(1), 0)
    assert raised.value.code is ErrorCode.BAD_VALUE


def test_the_exact_step_does_not_take_what_the_stop_could_not_end():
    """On the reference, but too fast for the limit ahead."""
    axis = Axis(-1.0, 1.0, 5.0, 40.0, 2000.0, T, (0.05,))
    assert axis.exact((0.5, 2.0, 0.0), 0.51, 2.0) == pytest.approx((0.51, 2.0, 0.0), abs=TINY)
    assert axis.exact((0.94, 2.0, 0.0), 0.95, 2.0) is None
