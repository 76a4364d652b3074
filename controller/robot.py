"""The one protocol for simulated and real robots, and a robot without a body for tests."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from controller.clock import Clock
from controller.types import Command, Float, Reading, RobotSpec


class Robot(Protocol):
    """A robot that can be read and commanded. Neither call blocks for long."""

    @property
    def spec(self) -> RobotSpec: ...

    def read(self) -> Reading:
        """Returns the measured state and the newest frames."""
        ...

    def write(self, command: Command) -> None:
        """Sends one set-point."""
        ...


class FakeRobot:
    """A robot that is at once where it is told to be, and records what it was told.

    Frames are filled with the count of reads, modulo 256. State dimensions without an action
    dimension of the same name stay at zero.

    Attributes:
        commands: Everything written, in order.
        state: Measured state. Shape (S,), units as in the spec.
        reads: Calls of ``read`` so far [count].
    """

    def __init__(self, spec: RobotSpec, clock: Clock) -> None:
        self.commands: list[Command] = []
        self.state: Float = np.zeros(len(spec.state), dtype=np.float32)
        self.reads = 0
        self._spec = spec
        self._clock = clock

    @property
    def spec(self) -> RobotSpec:
        return self._spec

    def read(self) -> Reading:
        """Returns the present state and frames that tell one read from the next."""
        frames = {
            camera.name: np.full((camera.height, camera.width, 3), self.reads % 256, np.uint8)
            for camera in self._spec.cameras
        }
        self.reads += 1
        return Reading(self._clock.now_ns(), self.state.copy(), frames)

    def write(self, command: Command) -> None:
        """Goes there."""
        self.commands.append(command)
        names = self._spec.state_names
        for name, value in zip(self._spec.action_names, command.position, strict=True):
            if name in names:
                self.state[names.index(name)] = value
