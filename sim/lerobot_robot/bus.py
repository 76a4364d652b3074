"""A motor bus in front of a world: what LeRobot's SO-101 code asks of a real one.

Positions are encoder ticks, as in real motors, so that rounding is in the path; LeRobot's own
arithmetic turns them into degrees or shares.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from lerobot.motors import Motor, MotorCalibration, MotorNormMode
from lerobot.motors.motors_bus import SerialMotorsBus

from controller.errors import OnsetError
from controller.shared import Segment
from sim.lerobot_robot.world import GOAL, layout
from sim.robots.so101 import JOINTS, LOWER, UPPER

RESOLUTION = 4096
MIDDLE = (LOWER + UPPER) / 2  # where LeRobot counts from [rad]. Shape (6,)
# Our value at LeRobot's middle, for LeRobotSetup.zeros [rad]; the gripper has a share instead.
ZEROS = {f"{name}.pos": float(MIDDLE[i]) for i, name in enumerate(JOINTS) if name != "gripper"}
_TICKS = (RESOLUTION - 1) / (2 * math.pi)  # per rad
_HALF_TURN = (RESOLUTION - 1) / 2


def calibration() -> dict[str, MotorCalibration]:
    """The joints' limits in ticks, as lerobot-calibrate would find them."""
    half = (UPPER - LOWER) / 2 * _TICKS
    return {
        name: MotorCalibration(
            id=i + 1,
            drive_mode=0,
            homing_offset=0,
            range_min=math.floor(_HALF_TURN - half[i]),
            range_max=math.ceil(_HALF_TURN + half[i]),
        )
        for i, name in enumerate(JOINTS)
    }


class SimBus:
    """The arm's six motors."""

    model_resolution_table = {"sts3215": RESOLUTION}
    apply_drive_mode = True
    _normalize: Any = SerialMotorsBus._normalize
    _unnormalize: Any = SerialMotorsBus._unnormalize

    def __init__(self, port: str, size: tuple[int, int], *, use_degrees: bool) -> None:
        """Args:
        port: The world's.
        size: Height and width of its frames [px]: part of what it shares.
        use_degrees: Degrees, or -100..100; the gripper is 0..100.
        """
        body = MotorNormMode.DEGREES if use_degrees else MotorNormMode.RANGE_M100_100
        gripper = MotorNormMode.RANGE_0_100
        self.motors = {
            name: Motor(i + 1, "sts3215", gripper if name == "gripper" else body)
            for i, name in enumerate(JOINTS)
        }
        self.calibration = calibration()
        self.port, self._size = port, size
        self._segment: Segment | None = None

    @property
    def is_connected(self) -> bool:
        return self._segment is not None

    @property
    def is_calibrated(self) -> bool:
        return True

    def connect(self) -> None:
        """Raises ConnectionError when there is no such world."""
        try:
            self._segment = Segment.attach(self.port, layout(*self._size))
        except OnsetError as error:
            raise ConnectionError(f"no world at port {self.port!r}: {error}") from error

    def disconnect(self, disable_torque: bool = True) -> None:
        if disable_torque:
            self.disable_torque()
        self._open().close()
        self._segment = None

    def configure_motors(self) -> None:
        """Nothing to set."""

    def write(self, data_name: str, motor: str, value: int) -> None:
        """Gains and protections are those of the model."""

    @contextmanager
    def torque_disabled(self) -> Iterator[None]:
        self.disable_torque()
        try:
            yield
        finally:
            self.enable_torque()

    def disable_torque(self, motors: object = None, num_retry: int = 0) -> None:
        self._open().word("torque").value = 0

    def enable_torque(self, motors: object = None, num_retry: int = 0) -> None:
        self._open().word("torque").value = 1

    def sync_read(
        self,
        data_name: str,
        motors: Iterable[str] | None = None,
        *,
        normalize: bool = True,
        num_retry: int = 0,
    ) -> dict[str, float]:
        """Returns where the motors are, by name."""
        row: Any = self._open().latest("joints").read()
        ticks = np.rint((row["angles"] - MIDDLE) * _TICKS + _HALF_TURN).astype(int).tolist()
        raw = {self.motors[name].id: ticks[JOINTS.index(name)] for name in motors or self.motors}
        values = self._normalize(raw) if normalize else raw
        return {self._id_to_name(number): value for number, value in values.items()}

    def sync_write(
        self,
        data_name: str,
        values: Mapping[str, float],
        *,
        normalize: bool = True,
        num_retry: int = 0,
    ) -> None:
        """Sets the goals of some motors; the others keep theirs."""
        goals = self._open().latest("goal")
        goal: Any = goals.read()
        record = np.zeros((), GOAL)
        joints: Any = self._open().latest("joints").read()
        record["angles"] = joints["angles"] if goal is None else goal["angles"]
        ids = {self.motors[name].id: value for name, value in values.items()}
        raw = self._unnormalize(ids) if normalize else ids
        for number, ticks in raw.items():
            i = number - 1
            record["angles"][i] = (int(ticks) - _HALF_TURN) / _TICKS + MIDDLE[i]
        goals.write(record)

    def _id_to_name(self, number: int) -> str:
        return JOINTS[number - 1]

    def _id_to_model(self, number: int) -> str:
        return self.motors[JOINTS[number - 1]].model

    def _open(self) -> Segment:
        if self._segment is None:
            raise ConnectionError(f"not connected to the world at port {self.port!r}")
        return self._segment
