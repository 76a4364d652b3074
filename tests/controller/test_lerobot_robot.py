"""LeRobot's robots in our units: its SO-101 code over a bus in memory, and robots of no make."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest

pytest.importorskip("lerobot")

from controller.errors import ErrorCode, OnsetError
from controller.robots.lerobot import (
    DryRun,
    LeRobotArm,
    LeRobotCameras,
    LeRobotJoints,
    LeRobotSetup,
    make_cameras,
    make_joints,
)
from controller.types import CameraSpec, Command, Dimension, RobotSpec
from scripts.check_imports import ROOT
from tests.controller import lerobot_fakes as fakes
from tests.controller.lerobot_fakes import MOTORS, FakeBus

FAKES = ("tests.controller.config_lerobot_fakes", "tests.controller.lerobot_fakes")
HALF = (fakes.HIGH - fakes.LOW) / 2 * 2 * np.pi / 4095
TARGET = np.array([0.3, -0.6, 0.9, 0.1, -1.2, 0.75], np.float32)


@pytest.fixture
def bus(monkeypatch):
    """Puts the bus in memory under LeRobot's SO-101; yields those that were made."""
    monkeypatch.setattr("lerobot.robots.so_follower.so_follower.FeetechMotorsBus", FakeBus)
    monkeypatch.setattr(FakeBus, "made", [])
    return FakeBus.made


def so101(folder, spec=None, calibrated=True, **options) -> LeRobotSetup:
    if calibrated:
        fakes.calibrate(folder)
    base = {"port": "/dev/ttyACM0", "id": "a", "calibration_dir": str(folder)}
    return LeRobotSetup("so101_follower", spec or fakes.spec(), {**base, **options})


def fake(tmp_path, spec, units=None, **options) -> LeRobotSetup:
    options = {"id": "f", "calibration_dir": str(tmp_path), **options}
    return LeRobotSetup("fake_arm", spec, options, units or {}, modules=FAKES)


def command(values) -> Command:
    return Command(0, np.asarray(values, np.float32))


@pytest.mark.parametrize("use_degrees", [True, False])
def test_so101_goes_where_it_is_told_in_either_unit(bus, tmp_path, use_degrees):
    joints = LeRobotJoints(so101(tmp_path, use_degrees=use_degrees))
    joints.connect()
    joints.write(command(TARGET))
    np.testing.assert_allclose(joints.read_state()[:6], TARGET, atol=2e-3)
    np.testing.assert_allclose(joints.sent, TARGET, atol=1e-6)
    ticks = bus[0].goal["shoulder_pan"]
    assert abs((ticks - 2047.5) * 2 * np.pi / 4095 - 0.3) < 2e-3  # an angle is an angle
    assert joints.cut == 0


def test_connecting_moves_nothing_although_an_old_goal_is_in_the_motors(bus, tmp_path):
    joints = LeRobotJoints(so101(tmp_path))
    joints.connect()
    assert all(abs(ticks - 2000) <= 1 for ticks in bus[0].present.values())
    assert bus[0].slips == [False]  # LeRobot had torque off meanwhile


def test_an_arm_holds_at_the_end_and_goes_limp_only_when_released(bus, tmp_path):
    setup = so101(tmp_path, disable_torque_on_disconnect=True)
    joints = LeRobotJoints(setup)
    joints.connect()
    joints.close()
    assert (bus[0].is_connected, bus[0].torque) == (False, True)
    joints.connect()
    del joints  # LeRobot disconnects what is collected as garbage
    assert bus[0].torque
    joints = LeRobotJoints(setup)
    joints.connect()
    joints.close(release=True)
    assert not bus[1].torque


def test_what_lerobot_clips_is_told(bus, tmp_path):
    joints = LeRobotJoints(so101(tmp_path, max_relative_target=5.0))
    joints.connect()
    before = joints.read_state()[:6]
    joints.write(command([before[0] + 1.0, *before[1:]]))
    assert joints.sent[0] == pytest.approx(before[0] + np.deg2rad(5), abs=1e-3)
    assert (joints.cut, joints.cuts) == (0b1, 1)
    joints.write(command(before))
    assert (joints.cut, joints.cuts) == (0, 1)


def test_commands_that_are_not_allowed_are_refused_and_not_sent(bus, tmp_path):
    joints = LeRobotJoints(so101(tmp_path))
    joints.connect()
    goal = dict(bus[0].goal)
    with pytest.raises(OnsetError, match=r"elbow_flex\.pos.*-1\.5"):
        joints.write(command([0, 0, 1.6, 0, 0, 0]))
    with pytest.raises(OnsetError, match=r"wrist_flex\.pos.*finite"):
        joints.write(command([0, 0, 0, np.nan, 0, 0]))
    with pytest.raises(OnsetError, match="bad_shape"):
        joints.write(command([0, 0]))
    assert bus[0].goal == goal


def test_limits_that_lerobot_would_clip_are_refused(bus, tmp_path):
    with pytest.raises(OnsetError, match=r"shoulder_pan\.pos.*calibrated range \[-1\.57"):
        LeRobotJoints(so101(tmp_path, fakes.spec(limit=1.6)))


def test_an_arm_that_is_not_calibrated_says_what_to_run(bus, tmp_path):
    with pytest.raises(
        OnsetError, match="lerobot-calibrate --robot.type=so101_follower --robot.port=/dev/ttyACM0"
    ):
        LeRobotJoints(so101(tmp_path, calibrated=False)).connect()
    joints = LeRobotJoints(so101(tmp_path))
    bus[-1].is_calibrated = False
    with pytest.raises(OnsetError, match=r"motors' calibration.*lerobot-calibrate"):
        joints.connect()
    assert not bus[-1].is_connected


def test_a_lost_packet_is_an_error_of_ours_and_is_not_tried_again_in_the_tick(bus, tmp_path):
    joints = LeRobotJoints(so101(tmp_path))
    joints.connect()
    bus[0].lost = 1
    with pytest.raises(OnsetError, match="Failed to sync read") as caught:
        joints.read_state()
    assert caught.value.code is ErrorCode.UNAVAILABLE
    joints.read_state()


def test_rates_are_estimated_from_positions(bus, tmp_path):
    class Clock:
        now = 0

        def now_ns(self):
            return self.now

    clock = Clock()
    joints = LeRobotJoints(so101(tmp_path), clock)  # pyright: ignore
    joints.connect()
    for i in range(60):
        clock.now = i * 10_000_000
        joints.write(command([0.4 * i * 0.01, 0, 0, 0, 0, 0.5]))
        state = joints.read_state()
    assert state[6] == pytest.approx(0.4, abs=0.05)
    assert state[7] == 0
    without = LeRobotJoints(so101(tmp_path, fakes.spec(velocities=False)))
    without.connect()
    assert without.read_state().shape == (6,)


def test_two_arms_have_names_with_a_prefix(bus, tmp_path):
    for side in ("left", "right"):
        fakes.calibrate(tmp_path, f"a_{side}")
    names = [f"{side}_{motor}" for side in ("left", "right") for motor in MOTORS]
    camera = {"type": "fake_camera", "fps": 30, "width": 32, "height": 24}
    options = {
        "id": "a",
        "calibration_dir": str(tmp_path),
        "left_arm_config": {"port": "l", "cameras": {"wrist": camera}},
        "right_arm_config": {"port": "r", "use_degrees": False},
        "cameras": {"front": camera},
    }
    spec = fakes.spec(names, cameras=("left_wrist", "front"))
    arm = LeRobotArm(LeRobotSetup("bi_so_follower", spec, options, modules=FAKES))
    arm.connect()
    target = np.concatenate([TARGET, -TARGET[:5], TARGET[5:]])
    arm.write(command(target))
    reading = arm.read()
    np.testing.assert_allclose(reading.state[:12], target, atol=2e-3)
    assert list(reading.frames) == ["left_wrist", "front"]
    arm.close()
    assert [b.torque for b in bus] == [True, True]
    assert not any(b.is_connected for b in bus)


def test_a_dry_run_reads_and_computes_but_writes_nothing(bus, tmp_path):
    lines = []
    dry = DryRun(LeRobotJoints(so101(tmp_path)), lines.append, every=2)
    dry.connect()
    goal = dict(bus[0].goal)
    for _ in range(3):
        dry.write(command(TARGET))
    assert bus[0].goal == goal
    assert (dry.writes, len(lines)) == (3, 2)
    assert dry.would is not None
    assert dry.would[5] == pytest.approx(75)
    assert "shoulder_pan.pos 17.19" in lines[0]
    assert dry.read_state().shape == (12,)
    with pytest.raises(OnsetError, match="shoulder_pan"):
        dry.write(command([9, 0, 0, 0, 0, 0]))


def two(*dimensions: Dimension) -> RobotSpec:
    return RobotSpec("two", dimensions, dimensions, (CameraSpec("front", 24, 32),), 1)


def test_a_robot_that_does_not_say_its_units_has_to_be_told(tmp_path):
    spec = two(Dimension("a.pos", "rad", -3, 3), Dimension("b.pos", "m", 0, 1))
    with pytest.raises(OnsetError, match=r"units\[a\.pos\].*not said.*deg"):
        LeRobotJoints(fake(tmp_path, spec))
    joints = LeRobotJoints(fake(tmp_path, spec, {"a.pos": "deg", "b.pos": "same"}))
    joints.connect()
    joints.write(command([np.pi / 2, 0.5]))
    assert joints._robot.last == pytest.approx({"a.pos": 90, "b.pos": 0.5})
    np.testing.assert_allclose(joints.read_state(), [np.pi / 2, 0.5], atol=1e-6)
    with pytest.raises(OnsetError, match="furlong"):
        fake(tmp_path, spec, {"a.pos": "furlong"})
    with pytest.raises(OnsetError, match=r"c\.pos"):
        fake(tmp_path, spec, {"c.pos": "deg"})


def test_dimensions_have_to_be_those_of_the_robot(tmp_path):
    units = {"a.pos": "same"}
    with pytest.raises(OnsetError, match=r"\['a\.pos'\].*\['a\.pos', 'b\.pos'\]"):
        LeRobotJoints(fake(tmp_path, two(Dimension("a.pos", "rad", -1, 1)), units))


def test_a_base_stands_still_where_nobody_drives_it(tmp_path):
    spec = two(Dimension("a.pos", "rad", -1, 1))
    setup = fake(tmp_path, spec, {"a.pos": "same"}, joints=["a.pos"], extra=["x.vel"])
    joints = LeRobotJoints(setup)
    joints.connect()
    joints.write(command([0.5]))
    assert joints._robot.last == {"a.pos": 0.5, "x.vel": 0.0}
    driven = two(Dimension("a.pos", "rad", -1, 1), Dimension("x.vel", "m/s", -1, 1))
    with pytest.raises(OnsetError, match=r"x\.vel.*drives on"):
        LeRobotJoints(fake(tmp_path, driven, joints=["a.pos"], extra=["x.vel"]))


def test_unknown_robots_and_options_are_refused_with_what_there_is(tmp_path):
    with pytest.raises(OnsetError, match=r"so100_follower.*so101_follower"):
        LeRobotJoints(LeRobotSetup("so102", fakes.spec()))
    with pytest.raises(OnsetError, match="baud.*disable_torque_on_disconnect"):
        LeRobotJoints(LeRobotSetup("so101_follower", fakes.spec(), {"port": "x", "baud": 1}))


PLUGIN = """
from dataclasses import dataclass
from lerobot.robots import RobotConfig
from tests.controller.lerobot_fakes import FakeArm

@RobotConfig.register_subclass("bench_arm")
@dataclass
class BenchArmConfig(RobotConfig):
    joints: tuple = ("a.pos",)
    extra: tuple = ()

class BenchArm(FakeArm):
    config_class, name = BenchArmConfig, "bench_arm"
"""


def test_an_installed_plugin_is_found_by_name(tmp_path, monkeypatch):
    (tmp_path / "lerobot_robot_bench").mkdir()
    (tmp_path / "lerobot_robot_bench/__init__.py").write_text(PLUGIN)
    info = tmp_path / "lerobot_robot_bench-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: lerobot_robot_bench\nVersion: 1.0\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = two(Dimension("a.pos", "rad", -1, 1))
    options = {"calibration_dir": str(tmp_path)}
    joints = LeRobotJoints(LeRobotSetup("bench_arm", spec, options, {"a.pos": "deg"}))
    joints.connect()
    joints.write(command([1.0]))
    assert joints._robot.last == pytest.approx({"a.pos": np.rad2deg(1)})


def eyes(tmp_path, fit="refuse", age_ms=200, **sizes) -> LeRobotSetup:
    camera = {"type": "fake_camera", "fps": 30, "width": 32, "height": 24, **sizes}
    spec = two(Dimension("a.pos", "rad", -1, 1), Dimension("b.pos", "rad", -1, 1))
    options = {"calibration_dir": str(tmp_path), "cameras": {"front": camera, "spare": camera}}
    units = {"a.pos": "same", "b.pos": "same"}
    return LeRobotSetup(
        "fake_arm", spec, options, units, modules=FAKES, fit=fit, frame_age_ns=age_ms * 1_000_000
    )


def test_a_stalled_camera_is_told_and_never_repeated(tmp_path):
    with LeRobotCameras(eyes(tmp_path)) as cameras:
        captured, frames = cameras.frames()
        assert 0 <= time.monotonic_ns() - captured < 200_000_000
        assert frames["front"].shape == (24, 32, 3)
        cameras._cameras["front"].latest_timestamp -= 0.3
        with pytest.raises(OnsetError, match=r"camera\[front\].*\d+\.\d ms.*at most 200 ms"):
            cameras.frames()
        cameras._cameras["front"].latest_timestamp += 0.3
        cameras.frames()


def test_frames_of_another_size_are_fitted_only_on_request(tmp_path):
    with pytest.raises(OnsetError, match=r"front.*480x640.*24x32.*crop"):
        LeRobotCameras(eyes(tmp_path, width=640, height=480))
    for fit in ("crop", "stretch"):
        with LeRobotCameras(eyes(tmp_path, fit, width=640, height=360)) as cameras:
            assert cameras.frames()[1]["front"].shape == (24, 32, 3)
    with pytest.raises(OnsetError, match="fit.*crop"):
        eyes(tmp_path, "squeeze")


def test_joints_do_not_open_the_cameras(tmp_path):
    joints = LeRobotJoints(eyes(tmp_path))
    joints.connect()
    assert joints._robot.config.cameras == {}


def test_cameras_of_another_computer_are_refused(tmp_path):
    camera = {"type": "opencv", "index_or_path": 0, "fps": 30, "width": 32, "height": 24}
    options = {"remote_ip": "10.0.0.1", "cameras": {"front": camera}}
    with pytest.raises(OnsetError, match=r"lekiwi_client.*own computer"):
        LeRobotCameras(LeRobotSetup("lekiwi_client", fakes.spec(), options))


def test_a_process_makes_them_from_json(bus, tmp_path):
    setup = so101(tmp_path)
    fakes.calibrate(tmp_path, low=0, high=4095)
    options = {"robot": "so101", "type": setup.type, "options": dict(setup.options)}
    joints = make_joints(json.loads(json.dumps(options)))
    joints.connect()
    assert joints.read_state().shape == (12,)
    assert isinstance(make_joints({**options, "dry_run": True}), DryRun)
    with pytest.raises(OnsetError, match=r"portt.*velocity_ns"):
        make_joints({**options, "portt": "x"})
    with pytest.raises(OnsetError, match=r"cameras.*front"):
        make_cameras(options)


def test_without_lerobot_it_says_what_to_install():
    program = """
import sys
sys.modules["lerobot"] = None
from controller.robots.lerobot import LeRobotJoints, LeRobotSetup, make_cameras, make_joints
from controller.types import *
d = (Dimension("a.pos", "rad", -1, 1),)
LeRobotJoints(LeRobotSetup("so101_follower", RobotSpec("r", d, d, (CameraSpec("f", 1, 1),), 1)))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "unavailable: lerobot: given cannot import" in done.stderr
    assert "pip install 'onset[serve]'" in done.stderr
