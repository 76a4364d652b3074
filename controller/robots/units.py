"""LeRobot's units and ours: one linear map per dimension, made once and checked before use.

LeRobot reports a joint in degrees around the middle of its calibrated range, or as a share of
that range; ours are rad, rad/s, m and 0..1 for grippers::

    motor    range_min ------------------ middle ------------------ range_max     [encoder ticks]
    deg      -half in degrees               0                +half in degrees
    -100..100   -100                        0                      +100
    0..100        0                        50                       100
    ours     zero - half                  zero                 zero + half        [rad]
             0                             0.5                       1            [1]

``half`` is half of the calibrated range as an angle. A joint that turns the other way round has
its sign reversed before ``zero`` is added.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from controller.errors import ErrorCode, OnsetError
from controller.types import Dimension, Float

Array = NDArray[np.float64]

TICK = 2 * math.pi / 4095  # one tick of the encoders in use, as an angle [rad]


class LeRobotUnit(StrEnum):
    """What a number of LeRobot's means."""

    DEGREES = "deg"  # or deg/s
    SHARE = "0..100"
    SIGNED_SHARE = "-100..100"
    SAME = "same"  # the robot reports in our unit


@dataclass(frozen=True)
class JointUnit:
    """How one dimension is reported.

    Attributes:
        unit: LeRobot's unit.
        half_range: Half of the calibrated range [rad]; None where it is not known.
        zero: Our value at LeRobot's middle [rad]; not for grippers.
        reverse: Whether the two count in opposite directions.
    """

    unit: LeRobotUnit
    half_range: float | None = None
    zero: float = 0.0
    reverse: bool = False


class UnitMap:
    """``ours = theirs * scale + offset`` for some dimensions, and back.

    Attributes:
        names: Dimension names, in order. Length n.
        scale: Ours per theirs. Shape (n,).
        offset: Ours where theirs is 0. Shape (n,).
        lower: Least of ours that LeRobot can say; -inf where nothing bounds it. Shape (n,).
        upper: Greatest of ours that LeRobot can say. Shape (n,).
    """

    def __init__(self, dimensions: Sequence[Dimension], units: Sequence[JointUnit]) -> None:
        """Makes the map of some dimensions.

        Args:
            dimensions: Ours.
            units: How LeRobot reports each.

        Raises:
            OnsetError: BAD_VALUE, which names the dimension, for units that cannot be converted
                into each other or need a calibration that is not there.
        """
        self.names = tuple(d.name for d in dimensions)
        rows = [_row(d, u) for d, u in zip(dimensions, units, strict=True)]
        table = np.array(rows, dtype=np.float64).reshape(len(rows), 4)
        self.scale, self.offset, self.lower, self.upper = table.T.copy()

    def from_lerobot(self, theirs: Sequence[float] | Array) -> Float:
        """Returns our values. Shape (n,)."""
        return (np.asarray(theirs, dtype=np.float64) * self.scale + self.offset).astype(np.float32)

    def to_lerobot(self, ours: Float | Array) -> Array:
        """Returns LeRobot's values. Shape (n,)."""
        return (np.asarray(ours, dtype=np.float64) - self.offset) / self.scale

    def check_limits(self, dimensions: Sequence[Dimension]) -> None:
        """Checks that LeRobot can say every value within the limits: it would clip the others.

        Raises:
            OnsetError: BAD_VALUE, which names the first dimension that goes too far.
        """
        for d, lower, upper in zip(dimensions, self.lower, self.upper, strict=True):
            slack = TICK if d.unit == "rad" else 1e-6
            if d.lower < lower - slack or d.upper > upper + slack:
                raise OnsetError(
                    ErrorCode.BAD_VALUE,
                    f"robot.action[{d.name}].limits",
                    f"[{d.lower:.4f}, {d.upper:.4f}] {d.unit}",
                    f"limits within the calibrated range [{lower:.4f}, {upper:.4f}] {d.unit}; "
                    "narrow the robot file or calibrate again",
                )


def _row(d: Dimension, u: JointUnit) -> tuple[float, float, float, float]:
    """Scale, offset, lower and upper of one dimension."""
    if not (math.isfinite(u.zero) and (u.half_range is None or 0 < u.half_range < math.inf)):
        raise OnsetError(
            ErrorCode.BAD_VALUE,
            f"lerobot[{d.name}]",
            f"zero {u.zero}, half range {u.half_range}",
            "a finite zero and a positive half range [rad]",
        )
    sign = -1.0 if u.reverse else 1.0
    if u.unit is LeRobotUnit.SAME:
        return sign, u.zero, -math.inf, math.inf
    if u.unit is LeRobotUnit.DEGREES and d.unit in ("rad", "rad/s"):
        half = u.half_range if d.unit == "rad" and u.half_range is not None else math.inf
        return sign * math.pi / 180, u.zero, u.zero - half, u.zero + half
    if u.unit is LeRobotUnit.SHARE and d.unit == "1":
        return (-0.01, 1.0, 0.0, 1.0) if u.reverse else (0.01, 0.0, 0.0, 1.0)
    if u.unit is LeRobotUnit.SIGNED_SHARE and d.unit == "1":
        return sign * 0.005, 0.5, 0.0, 1.0
    if u.unit in (LeRobotUnit.SHARE, LeRobotUnit.SIGNED_SHARE) and d.unit == "rad":
        if u.half_range is None:
            raise OnsetError(
                ErrorCode.BAD_VALUE,
                f"lerobot[{d.name}].unit",
                f"{u.unit} of a range that is not known",
                "a robot with its calibration file, or degrees",
            )
        bounds = u.zero - u.half_range, u.zero + u.half_range
        if u.unit is LeRobotUnit.SIGNED_SHARE:
            return sign * u.half_range / 100, u.zero, *bounds
        return sign * u.half_range / 50, u.zero - sign * u.half_range, *bounds
    raise OnsetError(
        ErrorCode.BAD_VALUE,
        f"lerobot[{d.name}].unit",
        f"{u.unit} for a dimension in {d.unit!r}",
        "deg for rad or rad/s; 0..100 or -100..100 for rad or a gripper in 1; same for any",
    )
