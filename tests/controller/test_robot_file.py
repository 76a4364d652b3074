"""Robots from files: the bundled ones, and what is refused with which words."""

from __future__ import annotations

import re

import numpy as np
import pytest
import yaml

from controller.errors import OnsetError
from controller.limits import LimitCode, Limiter
from controller.robot_file import ROBOTS, load_robot, robot_names
from controller.types import FrameEncoding
from sim.robots import so101

GOOD = """
name: two
period_ms: 40
joints:
  - {name: pan, unit: rad, position: [-1, 2], velocity: 3, acceleration: 20, jerk: 500,
     home: 0.5, park: -1}
  - {name: grip, unit: "1", position: [0, 1], velocity: 2, acceleration: 10, jerk: 1.0e+2,
     home: 0, park: 1}
cameras:
  - {name: front, height: 24, width: 32, encoding: jpeg, lags: [0, 2]}
"""


def load(tmp_path, text: str):
    file = tmp_path / "two.yaml"
    file.write_text(text, encoding="utf-8")
    return load_robot(file)


def test_a_file_says_spec_limits_home_and_park(tmp_path):
    robot = load(tmp_path, GOOD)
    assert robot.spec.action_names == robot.limits.names == ("pan.pos", "grip.pos")
    assert robot.spec.state_names == ("pan.pos", "grip.pos", "pan.vel", "grip.vel")
    assert [d.unit for d in robot.spec.state] == ["rad", "1", "rad/s", "1/s"]
    assert [(d.lower, d.upper) for d in robot.spec.state] == [(-1, 2), (0, 1), (-3, 3), (-2, 2)]
    assert robot.spec.period_ns == 40_000_000
    camera = robot.spec.camera("front")
    assert (camera.height, camera.width, camera.lags) == (24, 32, (0, 2))
    assert camera.encoding is FrameEncoding.JPEG
    limits = robot.limits
    rows = [limits.lower, limits.upper, limits.velocity, limits.acceleration, limits.jerk]
    assert np.array(rows).tolist() == [[-1, 0], [2, 1], [3, 2], [20, 10], [500, 100]]
    assert robot.home.tolist() == [0.5, 0]
    assert robot.park.tolist() == [-1, 1]


def test_the_state_can_do_without_velocities(tmp_path):
    robot = load(tmp_path, GOOD + "velocity_in_state: false\n")
    assert robot.spec.state == robot.spec.action


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("velocity: 3, ", "", ["joints[pan].velocity", "given nothing", "must be given"]),
        ("velocity: 3", "velocty: 3", ["joints[pan]", "'velocty'", "did you mean 'velocity'?"]),
        ("velocity: 3", "velocity: 0", ["joints[pan].velocity", "given 0", "above 0"]),
        ("jerk: 500", "jerk: .inf", ["joints[pan].jerk", "given inf"]),
        ("jerk: 500", "jerk: 5e2", ["joints[pan].jerk", "'5e2'", "1.0e+3"]),
        ("jerk: 500", "jerk: yes", ["joints[pan].jerk", "True", "a number"]),
        ("jerk: 500", "jerk: 500, jerk: 5", ["'jerk' stands twice", "line 5"]),
        ("[-1, 2]", "[2, -1]", ["joints[pan].position", "[2, -1]", "lower < upper"]),
        ("[-1, 2]", "[-1]", ["joints[pan].position", "[-1]", "[lower, upper]"]),
        ("[-1, 2]", "[-1, .nan]", ["joints[pan].position", "nan"]),
        ("[0, 1]", "[0, 100]", ["joints[grip].position", "[0, 1]"]),
        ("home: 0.5", "home: 2.5", ["joints[pan].home", "2.5", "-1.0..2.0"]),
        ("park: -1", "park: -1.1", ["joints[pan].park", "-1.1", "-1.0..2.0"]),
        ("unit: rad", "unit: deg", ["joints[pan].unit", "'deg'", "'rad', 'm', '1'"]),
        ("unit: rad", "unit: rads", ["joints[pan].unit", "did you mean 'rad'?"]),
        ("name: grip", "name: pan", ["joints.name", "pan twice"]),
        ("{name: pan, ", "{", ["joints[0].name", "must be given"]),
        ("name: pan", "name: 7", ["joints[0].name", "given 7", "a name"]),
        ("period_ms: 40", "period_ms: -1", ["period_ms", "-1"]),
        ("period_ms: 40", "period: 40", ["'period'", "did you mean 'period_ms'?"]),
        ("name: two", "", ["two.yaml: name", "must be given"]),
        ("name: two", "name: two\nvelocity_in_state: 1", ["velocity_in_state", "true or false"]),
        ("height: 24", "height: 0", ["cameras[front].height", "given 0"]),
        ("encoding: jpeg", "encoding: jpg", ["cameras[front].encoding", "did you mean 'jpeg'?"]),
        ("lags: [0, 2]", "lags: [-1]", ["cameras[front].lags", "[-1]"]),
        ("cameras:\n", "cameras: []\n#", ["cameras", "given []", "one or more"]),
        ("name: two", "name: {", ["two.yaml", "a robot in YAML"]),
        (GOOD, "", ["two.yaml", "given None"]),
        (GOOD, "!!python/object/apply:os.getcwd []", ["two.yaml", "could not determine"]),
    ],
)
def test_what_is_wrong_is_named(tmp_path, old, new, words):
    assert old in GOOD
    with pytest.raises(OnsetError) as raised:
        load(tmp_path, GOOD.replace(old, new, 1))
    message = str(raised.value)
    assert "two.yaml" in message
    assert [word for word in words if word not in message] == []


def test_a_robot_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    with pytest.raises(OnsetError, match=r"did you mean 'so101.*so101-sim") as raised:
        load_robot("s0101")
    assert "so101.yaml" not in str(raised.value)
    with pytest.raises(OnsetError, match=r"none\.yaml"):
        load_robot(tmp_path / "none.yaml")


@pytest.mark.parametrize("name", robot_names())
def test_a_bundled_robot_goes_home_and_parks(name):
    robot = load_robot(name)
    limiter = Limiter(robot.limits, 5_000_000)
    limiter.reset(robot.home)
    for goal in (robot.park, robot.home):
        for _ in range(2000):
            if limiter.towards(goal) is LimitCode.ON_TARGET:
                break
            # The tip's lowest part is 8 mm ahead of it and 9 mm beside.
            tip = so101.forward(so101.to_joints(limiter.position))
            assert tip[2] - 0.008 * np.sin(tip[3]) - 0.009 * np.cos(tip[3]) > 0.015
        np.testing.assert_allclose(limiter.position, goal, atol=1e-9)


def test_the_simulated_arm_is_the_simulation_s():
    robot = load_robot("so101-sim")
    assert robot.spec == so101.spec()
    np.testing.assert_allclose(robot.home, so101.to_normalised(so101.HOME), atol=1e-15)
    gripper = robot.limits.names.index("gripper.pos")
    for rates, arm in ((robot.limits.acceleration, 80.0), (robot.limits.jerk, 8000.0)):
        expected = np.full(6, arm)
        expected[gripper] /= so101.GRIPPER_RANGE
        np.testing.assert_allclose(rates, expected)


def test_the_real_arm_agrees_with_the_simulated_one_and_is_slower():
    real, simulated = load_robot("so101"), load_robot("so101-sim")
    assert real.spec.action == simulated.spec.action
    assert real.spec.state_names == simulated.spec.state_names
    for rate in ("velocity", "acceleration", "jerk"):
        assert (getattr(real.limits, rate) < getattr(simulated.limits, rate) / 2).all()


@pytest.mark.parametrize("name", robot_names())
def test_a_bundled_file_begins_with_what_its_numbers_are(name):
    text = (ROBOTS / f"{name}.yaml").read_text(encoding="utf-8")
    header = re.match(r"(#.*\n)+", text)
    assert header is not None
    keys = {"position", "velocity", "acceleration", "jerk", "home", "park"}
    assert [key for key in keys if f"# {key} " not in header[0]] == []
    assert yaml.safe_load(text)["name"] == name
