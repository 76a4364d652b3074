"""Preview control: the solution is the optimum, and does with plans and with scatter as it says."""

from __future__ import annotations

import numpy as np
import pytest

from controller.errors import ErrorCode, OnsetError
from controller.preview import PreviewTracker, sample_weights
from tests.controller.helpers import MS

T = 0.005
CASES = [(5 * MS, 30.0), (10 * MS, 30.0), (2 * MS, 30.0), (5 * MS, 80.0)]


def jerk_of(tracker: PreviewTracker, state, reference):
    """The jerk of the next period, without limits; as the executor and the limiter make it."""
    position, velocity, acceleration = state
    k = tracker.feedback
    return tracker.weights @ reference - k[0] * position - k[1] * velocity - k[2] * acceleration


def model(t: float):
    """One period of constant jerk."""
    a = np.array([[1, t, t * t / 2], [0, 1, t], [0, 0, 1.0]])
    return a, np.array([t**3 / 6, t * t / 2, t])


def optimum(state, reference, t: float, bandwidth: float):
    """The first jerk of the least-squares solution over a finite time. ``reference``: (N,)."""
    a, b = model(t)
    count = len(reference)
    response, free = np.empty(count), np.empty(count)
    push, rest = b.copy(), np.array(state, dtype=float)
    for i in range(count):
        rest = a @ rest
        response[i], free[i] = push[0], rest[0]
        push = a @ push
    m = np.zeros((count, count))
    for column in range(count):
        m[column:, column] = response[: count - column]
    # Stacked, not squared: jerks are large numbers and positions small ones.
    weight = bandwidth**-3
    stacked = np.vstack([m / weight, np.eye(count)])
    wanted = np.concatenate([(reference - free) / weight, np.zeros(count)])
    return np.linalg.lstsq(stacked, wanted, rcond=None)[0][0]


@pytest.mark.parametrize(("period_ns", "bandwidth"), CASES)
def test_the_jerk_is_the_optimum_of_a_long_finite_time(period_ns, bandwidth):
    """That time is three times the preview; what lies beyond the preview is held there, too."""
    tracker, t = PreviewTracker(period_ns, bandwidth), period_ns * 1e-9
    rng = np.random.default_rng(0)
    for _ in range(4):
        p, v, a = rng.normal(size=3) * [1, bandwidth, bandwidth**2]
        seen = np.cumsum(rng.normal(size=tracker.ticks))
        held = np.append(seen, np.full(2 * tracker.ticks, seen[-1]))
        got = jerk_of(tracker, (np.array([p]), np.array([v]), np.array([a])), seen[:, None])
        scale = bandwidth**3 * np.abs(seen).max()
        assert got[0] == pytest.approx(optimum((p, v, a), held, t, bandwidth), abs=1e-3 * scale)


@pytest.mark.parametrize(("period_ns", "bandwidth"), CASES)
def test_each_gain_is_that_of_the_optimum(period_ns, bandwidth):
    tracker, t = PreviewTracker(period_ns, bandwidth), period_ns * 1e-9
    count = 3 * tracker.ticks
    for i in range(3):
        state = np.eye(3)[i]
        best = -optimum(state, np.zeros(count), t, bandwidth)
        assert tracker.feedback[i] == pytest.approx(best, rel=1e-5)
    largest = np.abs(tracker.weights).max()
    for i in (0, 1, tracker.ticks // 3, tracker.ticks // 2, tracker.ticks - 2):
        best = optimum(np.zeros(3), np.eye(count)[i], t, bandwidth)
        assert tracker.weights[i] == pytest.approx(best, abs=1e-5 * largest)


@pytest.mark.parametrize("bandwidth", [3.0, 30.0, 100.0])
def test_the_poles_are_those_of_a_butterworth_filter(bandwidth):
    t = 0.01 / bandwidth
    tracker = PreviewTracker(round(t * 1e9), bandwidth)
    t = round(t * 1e9) * 1e-9
    a, b = model(t)
    poles = np.log(np.linalg.eigvals(a - np.outer(b, tracker.feedback)).astype(complex)) / t
    np.testing.assert_allclose(np.abs(poles), bandwidth, rtol=0.01)
    angles = np.sort(np.degrees(np.angle(-poles)))
    np.testing.assert_allclose(angles, [-60, 0, 60], atol=1)


def follow(tracker: PreviewTracker, reference, state=(0.0, 0.0, 0.0), t: float = T):
    """Where a motion without limits goes. Takes (N,), returns positions (N - ticks,)."""
    a, b = model(t)
    now, places = np.array(state, dtype=float), []
    for k in range(len(reference) - tracker.ticks):
        p, v, acc = now[:, None]
        jerk = jerk_of(tracker, (p, v, acc), reference[k : k + tracker.ticks, None])
        now = a @ now + b * jerk[0]
        places.append(now[0])
    return np.array(places)


@pytest.mark.parametrize("bandwidth", [12.0, 30.0, 90.0])
def test_a_constant_is_met_exactly(bandwidth):
    tracker = PreviewTracker(5 * MS, bandwidth)
    places = follow(tracker, np.full(1200, 0.7), state=(-0.4, 1.0, 5.0))
    assert places[-1] == pytest.approx(0.7, abs=1e-9)
    # At rest on it, it stays there.
    np.testing.assert_allclose(follow(tracker, np.full(400, 0.7), (0.7, 0, 0)), 0.7, atol=1e-12)


def test_a_straight_line_that_is_known_is_followed_without_lag():
    """What a preview of finite length leaves of the lag is below 1 ms."""
    tracker, rate = PreviewTracker(5 * MS, 30.0), 1.5
    line = rate * T * np.arange(1, 1001)
    places = follow(tracker, line)
    lag_s = (line[: len(places)] - places)[-100:] / rate
    assert np.abs(lag_s).max() < 0.001


def test_a_step_that_is_known_is_begun_before_it_and_met_half_way():
    tracker = PreviewTracker(5 * MS, 30.0)
    at = 200
    places = follow(tracker, (np.arange(600) >= at).astype(float))
    assert places[at - 8] > 0.05
    assert places[at] == pytest.approx(0.5, abs=0.1)
    assert places.max() < 1.1
    assert places[-1] == pytest.approx(1, abs=1e-6)


def test_the_scatter_of_actions_is_smoothed_and_slow_motion_is_not():
    tracker = PreviewTracker(5 * MS, 30.0)
    steps = np.arange(121)
    ticks = np.arange(1, 961) / 8  # [steps]
    scatter = np.interp(ticks, steps, 0.01 * (-1.0) ** steps)
    places = follow(tracker, scatter)
    assert np.abs(places[200:]).max() < 0.01 * 0.01
    slow = 0.3 * np.sin(2 * np.pi * 0.5 * 0.04 * steps)
    places = follow(tracker, np.interp(ticks, steps, slow))
    error = places[200:] - np.interp(ticks, steps, slow)[200 : len(places)]
    assert np.abs(error).max() < 0.003


def test_dimensions_are_independent():
    tracker = PreviewTracker(5 * MS, 30.0)
    rng = np.random.default_rng(1)
    state, seen = rng.normal(size=(3, 4)), rng.normal(size=(tracker.ticks, 4))
    whole = jerk_of(tracker, (state[0], state[1], state[2]), seen)
    for i in range(4):
        alone = jerk_of(
            tracker,
            (state[0, i : i + 1], state[1, i : i + 1], state[2, i : i + 1]),
            seen[:, i : i + 1],
        )
        assert whole[i] == pytest.approx(alone[0], rel=1e-9)


@pytest.mark.parametrize(
    ("period_ns", "bandwidth"),
    [(0, 30.0), (-1, 30.0), (5 * MS, 0.0), (5 * MS, 100.1), (5 * MS, -1.0), (5 * MS, np.nan)],
)
def test_what_has_no_solution_is_refused(period_ns, bandwidth):
    with pytest.raises(OnsetError) as raised:
        PreviewTracker(period_ns, bandwidth)
    assert raised.value.code is ErrorCode.BAD_VALUE


def test_the_reference_goes_straight_from_knot_to_knot_and_is_held():
    knots = np.array([[0.0, 1.0], [8.0, 1.0], [0.0, 3.0]])
    seen = sample_weights(0.5, 14, 0.125, 3) @ knots
    assert seen[:, 0].tolist() == [5, 6, 7, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0, 0]
    assert seen[3:12, 1].tolist() == np.linspace(1, 3, 9).tolist()
    assert seen[-1].tolist() == [0, 3]
    # With nothing behind the step under way.
    assert (sample_weights(0.875, 3, 0.125, 2) @ knots[:2])[:, 0].tolist() == [8, 8, 8]
    weights = sample_weights(0.3, 40, 0.125, 8)
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    assert (weights >= 0).all()
