"""Drives any robot that LeRobot drives: joints here, cameras apart.

The executor owns the joints and the client the cameras, each in a process of its own: a serial
bus must never wait for a frame. Both are made from one ``LeRobotSetup``::

    executor process   LeRobotJoints(setup)    read_state(), write(command)
    client process     LeRobotCameras(setup)   frames()
    one process        LeRobotArm(setup)       both, as a Robot

``make_joints`` and ``make_cameras`` make them from what a command line can say.

At the end the arm holds: torque is taken away only by ``close(release=True)``, which is for an
arm that is parked. LeRobot's own default is to let go on every disconnect.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from controller.clock import Clock, MonotonicClock
from controller.errors import ErrorCode, OnsetError
from controller.robot import Joints
from controller.robot_file import load_robot
from controller.robots.lerobot_cameras import LeRobotCameras
from controller.robots.lerobot_joints import LeRobotJoints
from controller.robots.lerobot_setup import Fit, LeRobotSetup
from controller.types import Command, Float, Image, Reading, RobotSpec

__all__ = [
    "DryRun",
    "Fit",
    "LeRobotArm",
    "LeRobotCameras",
    "LeRobotJoints",
    "LeRobotSetup",
    "make_cameras",
    "make_joints",
]

_log = logging.getLogger("onset.lerobot")


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


def make_joints(options: Mapping[str, Any]) -> Joints:
    """Makes joints in a process that is told of them in JSON.

    Args:
        options: ``robot`` (a robot file or the name of a bundled one), ``dry_run`` where nothing
            may move, and the fields of ``LeRobotSetup`` but for the spec: ``type``, ``options``
            (LeRobot's own: port, id, ...), ``units``, ``zeros`` ...

    Raises:
        OnsetError: BAD_NAMES for other options; as ``LeRobotJoints``.
    """
    joints = LeRobotJoints(_setup(options))
    return DryRun(joints, _log.warning) if options.get("dry_run", False) else joints


def make_cameras(options: Mapping[str, Any]) -> LeRobotCameras:
    """Makes cameras in a process that is told of them in JSON; as ``make_joints``."""
    return LeRobotCameras(_setup(options))


def _setup(options: Mapping[str, Any]) -> LeRobotSetup:
    given = {name: value for name, value in options.items() if name not in ("robot", "dry_run")}
    allowed = {field.name for field in fields(LeRobotSetup)} - {"spec"}
    if not {"type"} <= set(given) <= allowed or "robot" not in options:
        raise OnsetError(
            ErrorCode.BAD_NAMES,
            "lerobot.options",
            sorted(options),
            ["robot", "dry_run", *sorted(allowed)],
        )
    given |= {"modules": tuple(given.get("modules", ()))}
    given |= {"reversed": frozenset(given.get("reversed", ()))}
    return LeRobotSetup(spec=load_robot(str(options["robot"])).spec, **given)
