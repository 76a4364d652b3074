"""Drives any robot that LeRobot drives: joints here, cameras apart.

The executor owns the joints and the client the cameras, each in a process of its own: a serial
bus must never wait for a frame. Both are made from one ``LeRobotSetup``::

    executor process   LeRobotJoints(setup)    read_state(), write(command)
    client process     LeRobotCameras(setup)   frames()
    one process        LeRobotArm(setup)       both, as a Robot

At the end the arm holds: torque is taken away only by ``close(release=True)``, which is for an
arm that is parked. LeRobot's own default is to let go on every disconnect.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from controller.clock import Clock, MonotonicClock
from controller.errors import OnsetError
from controller.robots.lerobot_cameras import LeRobotCameras
from controller.robots.lerobot_joints import LeRobotJoints
from controller.robots.lerobot_setup import Cameras, Fit, Joints, LeRobotSetup
from controller.types import Command, Float, Image, Reading, RobotSpec

__all__ = [
    "Cameras",
    "DryRun",
    "Fit",
    "Joints",
    "LeRobotArm",
    "LeRobotCameras",
    "LeRobotJoints",
    "LeRobotSetup",
]


class LeRobotArm:
    """Joints and cameras of a LeRobot robot as one ``Robot``, for one process.

    Attributes:
        joints: The joints.
        cameras: The cameras.
    """

    def __init__(self, setup: LeRobotSetup, clock: Clock | None = None) -> None:
        """Raises OnsetError as ``LeRobotJoints`` and ``LeRobotCameras`` do."""
        self._clock = clock or MonotonicClock()
        self.joints = LeRobotJoints(setup, self._clock)
        self.cameras = LeRobotCameras(setup, self._clock)

    @property
    def spec(self) -> RobotSpec:
        return self.joints.spec

    def connect(self, *, hold: bool = True) -> None:
        """Connects the cameras, then the joints: an arm without eyes is not woken."""
        self.cameras.connect()
        try:
            self.joints.connect(hold=hold)
        except OnsetError:
            self.cameras.close()
            raise

    def read(self) -> Reading:
        """Returns the state, measured now, and the newest frames."""
        _, frames = self.cameras.frames()
        state = self.read_state()
        return Reading(self._clock.now_ns(), state, frames)

    def read_state(self) -> Float:
        return self.joints.read_state()

    def frames(self) -> tuple[int, Mapping[str, Image]]:
        return self.cameras.frames()

    def write(self, command: Command) -> None:
        self.joints.write(command)

    def close(self, *, release: bool = False) -> None:
        """Closes joints, then cameras; the arm holds unless it is parked and released."""
        try:
            self.joints.close(release=release)
        finally:
            self.cameras.close()


class DryRun:
    """Joints that are read but not moved: everything is computed, nothing is written.

    Attributes:
        would: What would have been written last. Shape (A,), in LeRobot's units; None before.
        writes: Commands so far [count].
    """

    def __init__(
        self, joints: LeRobotJoints, show: Callable[[str], None] | None = None, every: int = 100
    ) -> None:
        """Args:
        joints: The real ones. Connecting still turns torque on, at the measured position.
        show: Takes a line of text about what would have been written.
        every: Commands between two lines [count].
        """
        self._joints, self._show, self._every = joints, show, every
        self.would: np.ndarray | None = None
        self.writes = 0

    @property
    def spec(self) -> RobotSpec:
        return self._joints.spec

    def connect(self) -> None:
        self._joints.connect(hold=False)

    def read_state(self) -> Float:
        return self._joints.read_state()

    def write(self, command: Command) -> None:
        """Converts and checks as a real write does, and keeps it."""
        self.would = self._joints.convert(command)
        if self._show is not None and self.writes % self._every == 0:
            pairs = zip(self.spec.action_names, self.would, strict=True)
            self._show("would write " + ", ".join(f"{name} {x:.2f}" for name, x in pairs))
        self.writes += 1

    def close(self, *, release: bool = False) -> None:
        self._joints.close(release=release)
