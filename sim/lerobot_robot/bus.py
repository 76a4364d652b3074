"""A motor bus in front of a simulated arm: what LeRobot's SO-101 code asks of a real one.

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
from controller.types import Command
from sim.device import SimJoints
from sim.robots.so101 import JOINTS, LOWER, UPPER, to_joints, to_normalised

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
    """The arm's six motors.

    The simulated servos know no torque: here it says whether goals are passed on to them. As real
    motors, they go to the goal that was set last when it comes on.

    Attributes:
        port: Segment of the simulated device.
        torque: Whether the motors are on.
    """

    model_resolution_table = {"sts3215": RESOLUTION}
    apply_drive_mode = True
    _normalize: Any = SerialMotorsBus._normalize
    _unnormalize: Any = SerialMotorsBus._unnormalize

    def __init__(self, port: str, *, use_degrees: bool) -> None:
        """Args:
        port: Segment of the simulated device.
        use_degrees: Degrees, or -100..100; the gripper is 0..100.
        """
        body = MotorNormMode.DEGREES if use_degrees else MotorNormMode.RANGE_M100_100
        gripper = MotorNormMode.RANGE_0_100
        self.motors = {
            name: Motor(i + 1, "sts3215", gripper if name == "gripper" else body)
            for i, name in enumerate(JOINTS)
        }
        self.calibration = calibration()
        self.port, self.torque = port, True
        self._joints: SimJoints | None = None
        self._goal = np.zeros(len(JOINTS))  # [rad]

    @property
    def is_connected(self) -> bool:
        return self._joints is not None

    @property
    def is_calibrated(self) -> bool:
        return True

    def connect(self) -> None:
        """Raises ConnectionError when there is no such device."""
        try:
            self._joints = SimJoints(self.port)
        except OnsetError as error:
            raise ConnectionError(f"no simulated arm at port {self.port!r}: {error}") from error
        self._goal = self._angles()

    def disconnect(self, disable_torque: bool = True) -> None:
        self.torque = self.torque and not disable_torque
        self._open().close()
        self._joints = None

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
        self.torque = False

    def enable_torque(self, motors: object = None, num_retry: int = 0) -> None:
        self.torque = True
        self._send()

    def sync_read(
        self,
        data_name: str,
        motors: Iterable[str] | None = None,
        *,
        normalize: bool = True,
        num_retry: int = 0,
    ) -> dict[str, float]:
        """Returns where the motors are, by name."""
        ticks = np.rint((self._angles() - MIDDLE) * _TICKS + _HALF_TURN).astype(int).tolist()
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
        ids = {self.motors[name].id: value for name, value in values.items()}
        for number, ticks in (self._unnormalize(ids) if normalize else ids).items():
            i = number - 1
            self._goal[i] = (int(ticks) - _HALF_TURN) / _TICKS + MIDDLE[i]
        if self.torque:
            self._send()

    def _send(self) -> None:
        self._open().write(Command(0, to_normalised(self._goal).astype(np.float32)))

    def _angles(self) -> np.ndarray:
        """Where the joints are [rad]. Shape (6,)."""
        try:
            state = self._open().read_state()
        except OnsetError as error:
            raise ConnectionError(f"the simulated arm at {self.port!r} is gone: {error}") from error
        return to_joints(state[: len(JOINTS)].astype(np.float64))

    def _id_to_name(self, number: int) -> str:
        return JOINTS[number - 1]

    def _id_to_model(self, number: int) -> str:
        return self.motors[JOINTS[number - 1]].model

    def _open(self) -> SimJoints:
        if self._joints is None:
            raise ConnectionError(f"not connected to the simulated arm at {self.port!r}")
        return self._joints
