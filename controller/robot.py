"""The one protocol for simulated and real robots."""

from __future__ import annotations

from typing import Protocol

from controller.types import Command, Reading, RobotSpec


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
