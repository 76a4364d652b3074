"""The servo model against closed forms and a fine simulation; forecasts by names and kinds."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from controller.errors import ErrorCode, OnsetError
from controller.forecast import (
    LastCommand,
    ServoForecast,
    ServoModel,
    load_servo,
    to_set_points,
)
from controller.types import ActionKind
from tests.controller.helpers import ROBOT

PERIOD_S = 0.04
STEPS = 12


def servo(stiffness=6000.0, damping=300.0, acceleration=1e9, stall=np.inf) -> ServoModel:
    """One joint."""
    values = (np.array([float(v)]) for v in (stiffness, damping, acceleration, stall))
    return ServoModel(("pan.pos",), ("rad",), *values)


# Of the robot with a velocity of pan, and none of the gripper.
PAIR = ServoModel(
    ("pan.pos", "grip.pos"),
    ("rad", "1"),
    np.array([6000.0, 1700.0]),
    np.array([300.0, 100.0]),
    np.array([110.0, 80.0]),
    np.array([np.inf, 0.01]),
)


def roll_one(model: ServoModel, x: float, v: float, set_point: float, actions):
    """Position and velocity after each action. Shape (n,) each."""
    row = np.array([[x]]), np.array([[v]]), np.array([[set_point]])
    positions, velocities = model.roll(*row, np.asarray(actions, float)[None, :, None], PERIOD_S)
    return positions[0, :, 0], velocities[0, :, 0]


@pytest.mark.parametrize("ratio", [0.05, 0.7, 1.0, 1.6, 20.0])
@pytest.mark.parametrize("natural", [8.0, 80.0])
def test_unsaturated_step_response_is_the_closed_form(ratio, natural):
    x0, v0, target = 0.3, -1.2, 0.9
    x, v = roll_one(servo(natural**2, 2 * ratio * natural), x0, v0, target, np.full(STEPS, target))
    t = PERIOD_S * np.arange(1, STEPS + 1)
    # The roots' two exponentials, with the weights that the start asks for.
    if ratio == 1.0:
        a, b = x0 - target, v0 + natural * (x0 - target)
        decay = np.exp(-natural * t)
        expected, rate = (a + b * t) * decay, (b - natural * (a + b * t)) * decay
    else:
        roots = np.roots([1.0, 2 * ratio * natural, natural**2]).astype(complex)
        weights = np.linalg.solve(np.stack([np.ones(2), roots]), [x0 - target, v0])
        modes = weights * np.exp(roots * t[:, None])
        expected, rate = modes.sum(1).real, (modes * roots).sum(1).real
    np.testing.assert_allclose(x, target + expected, atol=1e-7)
    np.testing.assert_allclose(v, rate, atol=1e-6 * natural)


def test_great_damping_is_a_first_order_lag():
    lag_s = 0.05
    x, _ = roll_one(servo(1e6 / lag_s, 1e6), 0.0, 0.0, 1.0, np.ones(STEPS))
    t = PERIOD_S * np.arange(1, STEPS + 1)
    np.testing.assert_allclose(x, 1 - np.exp(-t / lag_s), atol=1e-4)


def fine(model: ServoModel, x: float, v: float, set_point: float, actions) -> np.ndarray:
    """Positions by tiny Euler steps, with four set-points a period written on the way."""
    dt, found, start = 2e-5, [], set_point
    k, c, most = (float(a[0]) for a in (model.stiffness, model.damping, model.acceleration))
    for action in actions:
        for fraction in (0.25, 0.5, 0.75, 1.0):
            target = start + (action - start) * fraction
            for _ in range(round(PERIOD_S / 4 / dt)):
                v += dt * min(max(k * (target - x) - c * v, -most), most)
                x += dt * v
        found.append(x)
        start = action
    return np.array(found)


@pytest.mark.parametrize("seed", range(4))
def test_saturated_motion_is_that_of_a_fine_simulation(seed):
    model = servo(acceleration=100.0)
    actions = np.cumsum(np.random.default_rng(seed).normal(0, 0.3, STEPS))
    x, _ = roll_one(model, 0.1, 2.0, 0.0, actions)
    expected = fine(model, 0.1, 2.0, 0.0, actions)
    free, _ = roll_one(servo(), 0.1, 2.0, 0.0, actions)
    assert np.abs(free - expected).max() > 0.05  # the limit matters here
    np.testing.assert_allclose(x, expected, atol=0.01)


def test_a_stiff_servo_stays_stable():
    x, v = roll_one(servo(1e8, 3e4, 1e3), 0.0, 0.0, 0.0, np.sin(np.arange(STEPS)))
    assert np.abs(x).max() < 2
    assert np.isfinite(v).all()


def test_a_blocked_gripper_stays_while_pressed_and_follows_when_opened():
    gripper = servo(1700, 100, 80, stall=0.01)
    x, v = roll_one(gripper, 0.4, 0.002, 0.1, [0.0, 0.1, 0.3, 0.0])
    np.testing.assert_array_equal(x, np.full(4, 0.4))
    np.testing.assert_array_equal(v, np.zeros(4))
    opened, _ = roll_one(gripper, 0.4, 0.0, 0.1, [0.1, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8])
    assert opened[0] == 0.4
    assert opened[-1] == pytest.approx(0.8, abs=0.01)


def test_a_gripper_on_its_way_is_not_blocked():
    with_stall, _ = roll_one(servo(1700, 100, 80, stall=0.01), 0.4, -3.0, 0.2, np.full(8, 0.1))
    without, _ = roll_one(servo(1700, 100, 80), 0.4, -3.0, 0.2, np.full(8, 0.1))
    np.testing.assert_array_equal(with_stall, without)
    assert with_stall[-1] == pytest.approx(0.1, abs=0.01)


def test_a_batch_is_its_rows_one_by_one():
    rng = np.random.default_rng(0)
    x, v, start = (scale * rng.normal(size=(32, 2)) for scale in (0.3, 2.0, 0.3))
    v[::2] = 0  # some of them blocked
    actions = rng.normal(0, 0.5, (32, 6, 2))
    together = PAIR.roll(x, v, start, actions, PERIOD_S)
    for i in range(32):
        one = slice(i, i + 1)
        alone = PAIR.roll(x[one], v[one], start[one], actions[one], PERIOD_S)
        for all_rows, row in zip(together, alone, strict=True):
            np.testing.assert_array_equal(all_rows[one], row)


def floats(low: float, high: float, shape) -> st.SearchStrategy[np.ndarray]:
    return hnp.arrays(np.float32, shape, elements=st.floats(low, high, width=32))


@given(floats(-1.5, 1.5, 2), floats(-3, 3, 1), st.floats(8, 90), st.floats(0.7, 3.0))
def test_a_constant_command_is_where_the_joint_ends(ends, speed, natural, ratio):
    model = servo(natural**2, 2 * ratio * natural, acceleration=60.0)
    x, v = roll_one(model, ends[0], speed[0], ends[1], np.full(200, ends[1]))
    assert x[-1] == pytest.approx(ends[1], abs=1e-3)
    assert v[-1] == pytest.approx(0, abs=1e-2)


@settings(max_examples=50)
@given(floats(-30, 30, 3), floats(-9, 9, 2), floats(-9, 9, (5, 2)))
def test_forecasts_are_finite_and_within_the_limits(state, set_point, actions):
    for forecaster in (ServoForecast(PAIR, ROBOT), LastCommand(ROBOT)):
        ahead = forecaster.forecast(state, set_point, actions)
        assert ahead.dtype == np.float32
        assert np.isfinite(ahead).all()
        assert -2 <= ahead[0] <= 2
        assert 0 <= ahead[1] <= 1
        np.testing.assert_array_equal(forecaster.forecast(state, set_point, actions[:0]), state)


def test_a_forecast_is_the_roll_laid_out_by_names():
    state = np.array([0.2, 0.5, -1.0], np.float32)  # pan.pos, grip.pos, pan.vel
    set_point, actions = np.float32([0.1, 0.5]), np.float32([[0.0, 0.6], [-0.1, 0.7]])
    ahead = ServoForecast(PAIR, ROBOT).forecast(state, set_point, actions)
    start = np.array([[0.2, 0.5]]), np.array([[-1.0, 0.0]]), set_point[None]
    x, v = PAIR.roll(*start, actions[None], PERIOD_S)
    np.testing.assert_allclose(ahead, [*x[0, -1], v[0, -1, 0]], rtol=1e-6)


def test_without_velocity_a_joint_is_taken_to_stand_still():
    spec = replace(ROBOT, state=ROBOT.state[:2])
    still = ServoForecast(PAIR, ROBOT).forecast(
        np.float32([0.2, 0.5, 0.0]), np.float32([0.2, 0.5]), np.full((3, 2), 0.4, np.float32)
    )
    ahead = ServoForecast(PAIR, spec).forecast(
        np.float32([0.2, 0.5]), np.float32([0.2, 0.5]), np.full((3, 2), 0.4, np.float32)
    )
    np.testing.assert_array_equal(ahead, still[:2])


def test_last_command_is_the_last_action_and_its_rate():
    last = LastCommand(ROBOT)
    state, set_point = np.zeros(3, np.float32), np.float32([0.1, 0.5])
    actions = np.float32([[0.2, 0.5], [0.4, 0.6]])
    np.testing.assert_allclose(last.forecast(state, set_point, actions), [0.4, 0.6, 5.0], rtol=1e-6)
    one = last.forecast(state, set_point, actions[:1])
    np.testing.assert_allclose(one, [0.2, 0.5, 2.5], rtol=1e-6)


def test_each_kind_of_action_becomes_set_points_by_its_own_rule():
    kinds = (ActionKind.DELTA_PREVIOUS, ActionKind.DELTA_STATE)
    spec = replace(
        ROBOT,
        action=tuple(replace(d, kind=k) for d, k in zip(ROBOT.action, kinds, strict=True)),
    )
    state, set_point = np.float32([0.3, 0.5, 0.0]), np.float32([0.25, 0.9])
    actions = np.float32([[0.5, 0.125], [-0.25, 0.25]])
    points = to_set_points(actions, state, set_point, spec)
    np.testing.assert_allclose(points, [[0.75, 0.625], [0.5, 0.75]])
    np.testing.assert_array_equal(to_set_points(actions, state, set_point, ROBOT), actions)
    np.testing.assert_array_equal(
        ServoForecast(PAIR, spec).forecast(state, set_point, actions),
        ServoForecast(PAIR, ROBOT).forecast(state, set_point, points),
    )


@pytest.mark.parametrize(
    ("state", "set_point", "actions", "code"),
    [
        (np.zeros(2), np.zeros(2), np.zeros((3, 2)), ErrorCode.BAD_SHAPE),
        (np.zeros(3), np.zeros(3), np.zeros((3, 2)), ErrorCode.BAD_SHAPE),
        (np.zeros(3), np.zeros(2), np.zeros((3, 1)), ErrorCode.BAD_SHAPE),
        (np.zeros(3), np.zeros(2), np.full((3, 2), np.nan), ErrorCode.NON_FINITE),
    ],
)
def test_bad_arrays_are_refused(state, set_point, actions, code):
    for forecaster in (ServoForecast(PAIR, ROBOT), LastCommand(ROBOT)):
        with pytest.raises(OnsetError) as error:
            forecaster.forecast(state, set_point, actions)
        assert error.value.code is code


def test_a_model_of_another_robot_is_refused():
    with pytest.raises(OnsetError, match=r"servo.dimensions.*pan.pos.*grip.pos"):
        ServoForecast(servo(), ROBOT)
    with pytest.raises(OnsetError, match=r"with grip.pos"):
        LastCommand(replace(ROBOT, state=ROBOT.state[::2]))


def test_a_model_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "folder" / "two.json"
    PAIR.save(path)
    back = ServoModel.load(path)
    assert (back.names, back.units) == (PAIR.names, PAIR.units)
    for field in ("stiffness", "damping", "acceleration", "stall"):
        np.testing.assert_array_equal(getattr(back, field), getattr(PAIR, field))


def test_the_bundled_model_is_found_by_name_and_the_others_are_listed():
    assert load_servo("so101-sim").names[-1] == "gripper.pos"
    with pytest.raises(OnsetError, match=r"given so999; allowed: .*so101-sim"):
        load_servo("so999")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda d: d["dimensions"][0].pop("damping"), r"servo\[pan.pos\].damping"),
        (lambda d: d["dimensions"][1].update(stiffness=-1), r"servo\[grip.pos\].stiffness"),
        (lambda d: d["dimensions"][1].update(stall="much"), r"servo\[grip.pos\].stall"),
        (lambda d: d["dimensions"][1].update(acceleration=np.inf), r"grip.pos\].acceleration"),
        (lambda d: d["dimensions"][1].update(damping=np.nan), r"servo\[grip.pos\].damping"),
        (lambda d: d["dimensions"][1].update(name="pan.pos"), r"servo.names"),
        (lambda d: d["dimensions"][1].pop("unit"), r"servo.dimensions\[1\].unit"),
        (lambda d: d.update(dimensions=[]), r"servo.names"),
        (lambda d: d.update(dimensions=[3]), r"servo.dimensions"),
        (lambda d: d["units"].update(damping="1/min"), r"servo.units"),
    ],
)
def test_a_bad_file_is_refused_with_the_field(tmp_path, change, field):
    path = tmp_path / "two.json"
    PAIR.save(path)
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(OnsetError, match=field):
        ServoModel.load(path)


def test_what_is_no_json_is_refused(tmp_path):
    for name, text in (("text.json", "pan 3"), ("list.json", "[1]"), ("none.json", None)):
        if text is not None:
            (tmp_path / name).write_text(text)
        with pytest.raises(OnsetError, match=r"servo\."):
            ServoModel.load(tmp_path / name)
