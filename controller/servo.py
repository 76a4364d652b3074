"""The lag of position servos: state from commands, per joint.

Each joint is a mass that a spring and a damper pull to the set-point, with an acceleration that
ends at what the motor can do, and a wall where the joint is found blocked at the start::

    a = clip(stiffness (set-point - x) - damping v, -acceleration, acceleration)

A first-order lag is the case of great damping: its time constant is damping / stiffness [s].
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from controller.errors import ErrorCode, OnsetError

Array = NDArray[np.float64]

SERVOS = Path(__file__).parent / "servos"
UNITS = {"stiffness": "1/s^2", "damping": "1/s", "acceleration": "unit/s^2", "stall": "unit"}
# Set-points written in a period, as the controller does with its default rates.
TICKS = 4
# A joint slower than this share of a free one's speed at the same gap stands against something.
STALL_SPEED = 0.25


@dataclass(frozen=True)
class ServoModel:
    """Second-order servos with saturation, of which a gripper's can be blocked.

    Attributes:
        names: Action dimensions, in order. Length A.
        units: Their units, e.g. ``"rad"``. Length A.
        stiffness: Acceleration per distance to the set-point [1/s^2]. Shape (A,).
        damping: Deceleration per speed [1/s]. Shape (A,).
        acceleration: Greatest acceleration either way [unit/s^2]. Shape (A,).
        stall: Distance to the set-point past which a joint that stands still is held by what it
            presses against [unit]; infinite for joints that are never taken to be. Shape (A,).

    Raises:
        OnsetError: BAD_NAMES, BAD_SHAPE or BAD_VALUE when a field is not as above.
    """

    names: tuple[str, ...]
    units: tuple[str, ...]
    stiffness: Array
    damping: Array
    acceleration: Array
    stall: Array

    def __post_init__(self) -> None:
        names, count = self.names, len(self.names)
        if not names or len(set(names)) != count or len(self.units) != count:
            raise OnsetError(
                ErrorCode.BAD_NAMES,
                "servo.names",
                f"{list(names)}, units {list(self.units)}",
                "one or more distinct names, each with a unit",
            )
        for field in UNITS:
            values = getattr(self, field)
            if values.shape != (count,):
                raise OnsetError(
                    ErrorCode.BAD_SHAPE, f"servo.{field}", f"shape {values.shape}", f"({count},)"
                )
            wrong = ~(values > 0) | (np.isinf(values) & (field != "stall"))
            if wrong.any():
                i = int(np.argmax(wrong))
                raise OnsetError(
                    ErrorCode.BAD_VALUE, f"servo[{names[i]}].{field}", values[i], "above 0, finite"
                )

    def blocked(self, position: Array, velocity: Array, set_point: Array) -> NDArray[np.bool_]:
        """Whether each joint stands still although its command is far away. Shape (..., A)."""
        gap = np.abs(set_point - position)
        free = gap * self.stiffness / self.damping
        return (gap > self.stall) & (np.abs(velocity) < STALL_SPEED * free)

    def roll(
        self,
        position: NDArray[np.floating],
        velocity: NDArray[np.floating],
        set_point: NDArray[np.floating],
        actions: NDArray[np.floating],
        period_s: float,
    ) -> tuple[Array, Array]:
        """Returns positions and velocities at the end of each step. Shape (B, n, A) each.

        A blocked joint stays while its command presses the same way; it follows once the command
        has come to the other side.

        Args:
            position: At the start. Shape (B, A), [unit].
            velocity: At the start. Shape (B, A), [unit/s].
            set_point: Command that stands at the start. Shape (B, A), [unit].
            actions: Set-point at the end of each step. Shape (B, n, A), [unit].
            period_s: Length of a step [s].
        """
        x, v, start, ends = (
            np.asarray(a, dtype=np.float64) for a in (position, velocity, set_point, actions)
        )
        tick_s = period_s / TICKS
        xx, xv, vx, vv = self._transition(tick_s)
        most = self.acceleration * tick_s
        held = self.blocked(x, v, start)
        lower = np.where(held & (start < x), x, -np.inf)
        upper = np.where(held & (start > x), x, np.inf)
        any_held = held.any()
        positions, velocities = np.empty_like(ends), np.empty_like(ends)
        for step in range(ends.shape[1]):
            rise = (ends[:, step] - start) / TICKS
            target = start
            for _ in range(TICKS):
                target = target + rise
                gap = x - target
                change = vx * gap + vv * v
                within = np.abs(change) <= most
                following = target + xx * gap + xv * v  # exact while the motor can follow
                if within.all():
                    x, v = following, v + change
                else:
                    limited = np.minimum(np.maximum(change, -most), most)
                    x = np.where(within, following, x + tick_s * (v + 0.5 * limited))
                    v = v + limited
                if any_held:
                    inside = np.minimum(np.maximum(x, lower), upper)
                    x, v = inside, np.where(inside == x, v, 0.0)
            start = ends[:, step]
            positions[:, step], velocities[:, step] = x, v
        return positions, velocities

    def _transition(self, time_s: float) -> tuple[Array, Array, Array, Array]:
        """How gap and velocity at the start enter what comes of them after a time. Shape (A,) each.

        In turn: gap in the gap, velocity in the gap, gap in the *change* of velocity, velocity in
        the change of velocity.
        """
        mean = -self.damping / 2
        root = np.sqrt(mean**2 - self.stiffness + 0j)
        # At critical damping the roots meet; a hair apart, the formula is still exact enough.
        root = np.where(np.abs(root) < 1e-6 * -mean, 1e-6 * -mean, root)
        fast, slow = np.exp((mean - root) * time_s), np.exp((mean + root) * time_s)
        even, odd = ((slow + fast) / 2).real, ((slow - fast) / (2 * root)).real
        return even - mean * odd, odd, -self.stiffness * odd, even + mean * odd - 1

    def save(self, path: Path) -> None:
        """Writes the model as JSON, one entry a dimension."""
        dimensions = []
        for i, (name, unit) in enumerate(zip(self.names, self.units, strict=True)):
            values = {field: float(getattr(self, field)[i]) for field in UNITS}
            if np.isinf(values["stall"]):
                del values["stall"]
            dimensions.append({"name": name, "unit": unit, **values})
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"units": UNITS, "dimensions": dimensions}, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> ServoModel:
        """Reads what ``save`` wrote.

        Raises:
            OnsetError: BAD_VALUE for a file that is not one, or a value out of range; BAD_NAMES
                for dimensions that are missing, repeated or without a unit.
        """
        return _parse(path)


def servo_names() -> list[str]:
    """The robots of which a servo model comes with the package."""
    return sorted(path.stem for path in SERVOS.glob("*.json"))


def load_servo(robot_name: str) -> ServoModel:
    """Reads the servo model that comes with a robot.

    Raises:
        OnsetError: BAD_NAMES when there is none of that name.
    """
    known = servo_names()
    if robot_name not in known:
        raise OnsetError(ErrorCode.BAD_NAMES, "servo.robot", robot_name, known)
    return ServoModel.load(SERVOS / f"{robot_name}.json")


def _parse(path: Path) -> ServoModel:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OnsetError(
            ErrorCode.BAD_VALUE, "servo.file", f"{path.name}: {error}", "a servo model in JSON"
        ) from error
    if not isinstance(document, dict) or document.get("units") != UNITS:
        given = document.get("units") if isinstance(document, dict) else document
        raise OnsetError(ErrorCode.BAD_VALUE, "servo.units", given, UNITS)
    entries = document.get("dimensions")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise OnsetError(ErrorCode.BAD_VALUE, "servo.dimensions", entries, "a list of objects")
    for i, entry in enumerate(entries):
        for key in ("name", "unit"):
            if not isinstance(entry.get(key), str):
                raise OnsetError(
                    ErrorCode.BAD_NAMES, f"servo.dimensions[{i}].{key}", entry.get(key), "text"
                )
    return ServoModel(
        tuple(entry["name"] for entry in entries),
        tuple(entry["unit"] for entry in entries),
        *(np.array([_number(entry, field) for entry in entries]) for field in UNITS),
    )


def _number(entry: dict, field: str) -> float:
    value = entry.get(field, np.inf if field == "stall" else None)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise OnsetError(ErrorCode.BAD_VALUE, f"servo[{entry['name']}].{field}", value, "a number")
    return float(value)
