"""A motor bus in memory, under LeRobot's own SO-101 code; and a robot and a camera of no make."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from lerobot.cameras import Camera
from lerobot.motors.motors_bus import SerialMotorsBus
from lerobot.robots import Robot

from controller.types import CameraSpec, Dimension, RobotSpec
from tests.controller.config_lerobot_fakes import FakeArmConfig

MOTORS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
LOW, HIGH = (
    1024,
    3071,
)  # calibrated ticks: 90 degrees to either side of the middle, and a tick's half


class FakeBus:
    """Servos that are at once where they are told to be, while torque is on.

    As real ones, they go to the goal they were given last when torque comes on.
    """

    model_resolution_table = {"sts3215": 4096}
    apply_drive_mode = True
    made: list[FakeBus] = []
    _normalize = SerialMotorsBus._normalize
    _unnormalize = SerialMotorsBus._unnormalize

    def __init__(self, port, motors, calibration):
        self.port, self.motors, self.calibration = port, motors, calibration
        self.is_connected, self.is_calibrated = False, True
        self.present = dict.fromkeys(motors, 2000)
        self.goal = dict.fromkeys(motors, 1100)  # given last week
        self.torque, self.lost, self.slips = True, 0, []
        self.made.append(self)

    def _id_to_name(self, number):
        return next(name for name, motor in self.motors.items() if motor.id == number)

    def _id_to_model(self, number):
        return self.motors[self._id_to_name(number)].model

    def connect(self):
        self.is_connected = True

    def disconnect(self, disable_torque=True):
        self.is_connected = False
        self.torque = self.torque and not disable_torque

    def configure_motors(self):
        self.slips.append(self.torque)

    def write(self, data_name, motor, value):
        pass

    @contextmanager
    def torque_disabled(self):
        self.disable_torque()
        yield
        self.enable_torque()

    def disable_torque(self, motors=None, num_retry=0):
        self.torque = False

    def enable_torque(self, motors=None, num_retry=0):
        self.torque = True
        self.present = dict(self.goal)

    def sync_read(self, data_name, motors=None, *, normalize=True, num_retry=0):
        if self.lost > num_retry:
            self.lost -= 1 + num_retry
            raise ConnectionError("Failed to sync read 'Present_Position'")
        raw = {name: self.present[name] for name in motors or self.motors}
        if not normalize:
            return raw
        values = self._normalize({self.motors[name].id: ticks for name, ticks in raw.items()})
        return {self._id_to_name(number): value for number, value in values.items()}

    def sync_write(self, data_name, values, *, normalize=True, num_retry=0):
        if normalize:
            ids = {self.motors[name].id: value for name, value in values.items()}
            raw = self._unnormalize(ids)
            values = {self._id_to_name(number): ticks for number, ticks in raw.items()}
        self.goal.update(values)
        if self.torque:
            self.present.update(values)


class FakeArm(Robot):
    """A robot without a bus: it reports what it likes, in units that only its maker knows."""

    config_class = FakeArmConfig
    name = "fake_arm"

    def __init__(self, config):
        super().__init__(config)
        self.config = config
        self.at = dict.fromkeys(config.joints, 0.0)
        self.connected = False

    observation_features = property(lambda self: dict.fromkeys(self.at, float))
    action_features = property(
        lambda self: {**dict.fromkeys(self.at, float), **dict.fromkeys(self.config.extra, float)}
    )
    is_connected = property(lambda self: self.connected)
    is_calibrated = property(lambda self: True)

    def connect(self, calibrate=True):
        self.connected = True

    def calibrate(self):
        raise NotImplementedError

    def configure(self):
        pass

    def get_observation(self):
        return dict(self.at)

    def send_action(self, action):
        self.last = action
        self.at.update({name: action[name] for name in self.at})
        return action

    def disconnect(self):
        self.connected = False


class FakeCamera(Camera):
    """A camera whose newest frame gets old."""

    def __init__(self, config):
        super().__init__(config)
        self.latest_timestamp = 0.0
        self.is_open = False

    is_connected = property(lambda self: self.is_open)

    @staticmethod
    def find_cameras():
        return []

    def connect(self, warmup=True):
        self.is_open = True
        self.latest_timestamp = time.perf_counter()

    def read(self):
        return np.full((self.height, self.width, 3), 7, np.uint8)

    def async_read(self, timeout_ms=200):
        return self.read()

    def read_latest(self, max_age_ms=500):
        age_ms = (time.perf_counter() - self.latest_timestamp) * 1e3
        if age_ms > max_age_ms:
            raise TimeoutError(f"latest frame is too old: {age_ms:.1f} ms")
        return self.read()

    def disconnect(self):
        self.is_open = False


def calibrate(folder: Path, name: str = "a", low: int = LOW, high: int = HIGH) -> None:
    """Writes a calibration file as lerobot-calibrate does."""
    entries = {
        motor: {
            "id": i + 1,
            "drive_mode": 0,
            "homing_offset": 0,
            "range_min": low,
            "range_max": high,
        }
        for i, motor in enumerate(MOTORS)
    }
    (folder / f"{name}.json").write_text(json.dumps(entries))


def spec(names=MOTORS, velocities=True, limit: float = 1.5, cameras=("front",)) -> RobotSpec:
    action = tuple(
        Dimension(f"{n}.pos", "1", 0.0, 1.0)
        if n.endswith("gripper")
        else Dimension(f"{n}.pos", "rad", -limit, limit)
        for n in names
    )
    rates = tuple(
        Dimension(f"{n}.vel", "1/s" if n.endswith("gripper") else "rad/s", -9.0, 9.0) for n in names
    )
    eyes = tuple(CameraSpec(name, 24, 32) for name in cameras)
    return RobotSpec("fake", action + (rates if velocities else ()), action, eyes, 40_000_000)
