"""The protocols for simulated and real robots, and a robot without a body for tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from controller.clock import Clock
from controller.types import Command, Float, Image, Reading, RobotSpec


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


class Joints(Protocol):
    """The joints of a robot; used by one thread, which waits for no camera.

    ``close`` leaves the arm holding where it is; ``close(release=True)`` lets it go limp.
    """

    @property
    def spec(self) -> RobotSpec: ...

    def connect(self) -> None: ...

    def read_state(self) -> Float:
        """Returns the measured state. Shape (S,), units as in the spec."""
        ...

    def write(self, command: Command) -> None:
        """Sends one set-point."""
        ...

    def close(self, *, release: bool = False) -> None: ...


class Cameras(Protocol):
    """The cameras of a robot; used by one thread, another than that of the joints."""

    @property
    def spec(self) -> RobotSpec: ...

    def connect(self) -> None: ...

    def frames(self) -> tuple[int, Mapping[str, Image]]:
        """Returns when the oldest of the frames was captured [ns], and the newest of each.

        Frames are uint8 RGB. Shape (h, w, 3).
        """
        ...

    def close(self) -> None: ...


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
