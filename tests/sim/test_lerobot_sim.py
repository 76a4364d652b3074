"""The whole hardware path without hardware: our units, LeRobot's SO-101 code, a simulated arm."""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lerobot")

from controller.errors import ErrorCode, OnsetError
from controller.robots.lerobot import LeRobotArm, LeRobotCameras, LeRobotJoints, LeRobotSetup
from controller.types import Command
from sim.device import SimDevice
from sim.lerobot_robot import OnsetSo101Sim, OnsetSo101SimConfig
from sim.lerobot_robot.bus import ZEROS
from sim.robots import so101

CAMERA = {"type": "onset_sim", "fps": 30, "width": 96, "height": 96}
TARGET = np.array([0.4, -0.5, 0.6, 0.9, 0.3, 0.8], np.float32)
TOLERANCE = 0.01  # the simulated servos have a little play under load [rad]


@pytest.fixture(scope="module")
def device():
    with SimDevice("whack") as device:
        yield device


def angles(device) -> np.ndarray:
    return device.capture().qpos[:6]


def setup_of(port: str, folder: Path, **options) -> LeRobotSetup:
    base = {"port": port, "calibration_dir": str(folder)}
    return LeRobotSetup(
        "onset_so101_sim",
        so101.spec(cameras=("front",)),
        {**base, "cameras": {"front": {**CAMERA, "port": port}}, **options},
        zeros=ZEROS,
        modules=("sim.lerobot_robot",),
    )


def write_until(joints, target, seconds: float) -> np.ndarray:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        joints.write(Command(0, target))
        joints.read_state()  # the velocity estimate lives on regular reads
        time.sleep(0.02)
    return joints.read_state()


@pytest.mark.parametrize("use_degrees", [True, False])
def test_a_command_in_our_units_comes_back_in_our_units(device, tmp_path, use_degrees):
    device.reset(0)
    arm = LeRobotArm(setup_of(device.segment, tmp_path, use_degrees=use_degrees))
    arm.connect()
    start = arm.read().state[:6]
    np.testing.assert_allclose(start, so101.to_normalised(angles(device)), atol=0.003)
    end = write_until(arm, TARGET, 1.5)
    np.testing.assert_allclose(end[:6], TARGET, atol=TOLERANCE)
    np.testing.assert_allclose(so101.to_joints(end[:6]), angles(device), atol=0.003)
    assert np.abs(end[6:]).max() < 0.1
    arm.close()


def test_connecting_moves_nothing_and_only_release_lets_go(device, tmp_path):
    device.reset(1)
    before = angles(device)
    joints = LeRobotJoints(setup_of(device.segment, tmp_path))
    joints.connect()
    time.sleep(0.3)
    np.testing.assert_allclose(angles(device), before, atol=0.005)
    joints.close()
    assert joints._robot.bus.torque
    joints.connect()
    joints.close(release=True)
    assert not joints._robot.bus.torque


def test_joints_and_cameras_need_not_know_of_each_other(device, tmp_path):
    prompt = device.reset(2)
    assert prompt == device.status().prompt
    setup = setup_of(device.segment, tmp_path)
    joints = LeRobotJoints(setup)
    joints.connect()
    with LeRobotCameras(setup) as cameras:
        captured, first = cameras.frames()
        assert 0 <= time.monotonic_ns() - captured < setup.frame_age_ns
        write_until(joints, TARGET, 0.5)
        later, second = cameras.frames()
    assert later > captured
    assert (first["front"] != second["front"]).any()
    joints.close()


def test_a_moving_arm_has_its_velocity(device, tmp_path):
    device.reset(3)
    joints = LeRobotJoints(setup_of(device.segment, tmp_path))
    joints.connect()
    start = joints.read_state()[:6]
    begin, estimates = time.monotonic(), []
    while (age := time.monotonic() - begin) < 1.0:
        target = start.copy()
        target[0] += 0.5 * age
        joints.write(Command(0, target))
        estimates.append(joints.read_state()[6])
        time.sleep(0.01)
    assert np.median(estimates[len(estimates) // 2 :]) == pytest.approx(0.5, abs=0.15)
    joints.close()


def test_an_arm_that_is_gone_is_told(tmp_path):
    with SimDevice("whack") as doomed:
        setup = setup_of(doomed.segment, tmp_path)
        arm = LeRobotArm(replace(setup, frame_age_ns=300_000_000))
        arm.connect()
        os.kill(doomed.pid, signal.SIGSTOP)
        time.sleep(0.6)
        with pytest.raises(OnsetError, match=r"camera\[front\].* ms old.*at most 300 ms"):
            arm.read()
        os.kill(doomed.pid, signal.SIGCONT)
        time.sleep(0.3)
        arm.read()
        os.kill(doomed.pid, signal.SIGKILL)
        time.sleep(0.1)
        time.sleep(1.0)
        with pytest.raises(OnsetError, match="is gone"):
            arm.read_state()
        arm.close()
    with pytest.raises(OnsetError, match="no simulated arm at port") as caught:
        LeRobotJoints(setup_of("nowhere", tmp_path)).connect()
    assert caught.value.code is ErrorCode.UNAVAILABLE


def test_lerobots_own_tools_get_a_robot_with_a_device_of_its_own(tmp_path):
    from lerobot.robots import make_robot_from_config

    from sim.lerobot_robot import OnsetSimCameraConfig

    cameras = {"front": OnsetSimCameraConfig(fps=30, width=96, height=96)}
    config = OnsetSo101SimConfig(calibration_dir=tmp_path, task="pick_place", cameras=cameras)
    robot = make_robot_from_config(config)
    assert isinstance(robot, OnsetSo101Sim)
    robot.connect()
    observation = robot.get_observation()
    assert observation.keys() == robot.observation_features.keys()
    sent = robot.send_action({**dict.fromkeys(robot.action_features, 0.0), "gripper.pos": 50.0})
    assert sent["gripper.pos"] == 50.0
    time.sleep(1.5)
    assert robot.get_observation()["gripper.pos"] == pytest.approx(50, abs=2)
    robot.disconnect()
    assert not robot.is_connected
