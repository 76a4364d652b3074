"""What it takes to make a LeRobot robot in any process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from controller.errors import ErrorCode, OnsetError
from controller.robots.units import LeRobotUnit
from controller.types import RobotSpec


class Fit(StrEnum):
    """How a frame of another size becomes one of the spec's."""

    REFUSE = "refuse"  # not at all
    CROP = "crop"  # the middle of it, in the spec's proportions, scaled
    STRETCH = "stretch"  # all of it, scaled


@dataclass(frozen=True)
class LeRobotSetup:
    """Everything that it takes to make a LeRobot robot in any process.

    Attributes:
        type: LeRobot's name of the robot's configuration, e.g. ``"so101_follower"``.
        spec: What the robot is to us. Names are LeRobot's, e.g. ``"shoulder_pan.pos"``.
        options: The configuration's fields: port, id, use_degrees, cameras ...
        units: LeRobot's unit by dimension name, where the robot does not say it itself.
        zeros: Our value at LeRobot's middle, by dimension name [rad].
        reversed: Names of dimensions that LeRobot counts the other way round.
        modules: Modules that define further LeRobot robots and cameras.
        velocity_ns: Time constant of the velocity estimate [ns].
        frame_age_ns: A frame older than this is a stalled camera [ns].
        fit: How frames of another size become those of the spec: see ``Fit``.
    """

    type: str
    spec: RobotSpec
    options: Mapping[str, Any] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)
    zeros: Mapping[str, float] = field(default_factory=dict)
    reversed: frozenset[str] = frozenset()
    modules: tuple[str, ...] = ()
    velocity_ns: int = 50_000_000
    frame_age_ns: int = 500_000_000
    fit: str = "refuse"

    def __post_init__(self) -> None:
        known = {*self.spec.state_names, *self.spec.action_names}
        for what in ("units", "zeros", "reversed"):
            if unknown := sorted(set(getattr(self, what)) - known):
                raise OnsetError(ErrorCode.BAD_NAMES, f"lerobot.{what}", unknown, sorted(known))
        for name, unit in self.units.items():
            if unit not in (units := [str(u) for u in LeRobotUnit]):
                raise OnsetError(ErrorCode.BAD_VALUE, f"lerobot.units[{name}]", unit, units)
        if self.fit not in (fits := [str(f) for f in Fit]):
            raise OnsetError(ErrorCode.BAD_VALUE, "lerobot.fit", self.fit, fits)
