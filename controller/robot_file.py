"""Robots from YAML files: what the policy sees of them, and what their motion may come to.

One file describes one robot::

    name: so101-sim
    period_ms: 40                # policy period
    velocity_in_state: true      # the state is positions, then velocities; false: positions alone
    joints:
      - name: shoulder_pan       # its dimensions are shoulder_pan.pos and shoulder_pan.vel
        unit: rad                # or m, or "1" for a gripper: 0 closed, 1 open
        position: [-1.92, 1.92]  # all in the unit and s
        velocity: 5
        acceleration: 40
        jerk: 2000
        home: 0
        park: 0
    cameras:
      - {name: front, height: 96, width: 96}  # and, if wanted, encoding and lags

Nothing has a default where a wrong guess could hurt: every joint says all of its limits.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from controller.errors import ErrorCode, OnsetError
from controller.limits import MotionLimits
from controller.types import CameraSpec, Dimension, FrameEncoding, RobotSpec

Array = NDArray[np.float64]

ROBOTS = Path(__file__).parent / "robots"
UNITS = {"rad": "rad/s", "m": "m/s", "1": "1/s"}

_RATES = ("velocity", "acceleration", "jerk")
_POSES = ("home", "park")
_ROBOT_KEYS = ("name", "period_ms", "velocity_in_state", "joints", "cameras")
_JOINT_KEYS = ("name", "unit", "position", *_RATES, *_POSES)
_CAMERA_KEYS = ("name", "height", "width", "encoding", "lags")


@dataclass(frozen=True)
class RobotFile:
    """A robot as its file describes it.

    Attributes:
        spec: What the two sides agree on.
        limits: Limits of each action dimension; the names are those of the actions.
        home: Pose to begin from. Shape (A,), in the dimensions' units.
        park: Pose in which the arm can be let go of. Shape (A,), in the dimensions' units.
    """

    spec: RobotSpec
    limits: MotionLimits
    home: Array
    park: Array


def robot_names() -> list[str]:
    """The robots whose files come with the package."""
    return sorted(path.stem for path in ROBOTS.glob("*.yaml"))


def load_robot(path_or_name: str | Path) -> RobotFile:
    """Reads a robot's file.

    Args:
        path_or_name: One of ``robot_names()``, or the path of a file that ends in .yaml or .yml.

    Raises:
        OnsetError: BAD_NAMES when there is no such robot; BAD_NAMES or BAD_VALUE, with the file,
            the joint and the key, when something in it is missing, unknown or out of range.
    """
    path = Path(path_or_name)
    if path.suffix not in (".yaml", ".yml"):
        known = robot_names()
        if str(path_or_name) not in known:
            raise OnsetError(
                ErrorCode.BAD_NAMES,
                "robot",
                _guess(str(path_or_name), known),
                f"{known}, or a file that ends in .yaml",
            )
        path = ROBOTS / f"{path_or_name}.yaml"
    try:
        # Yaml's safe loader, with one more refusal.
        document = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise OnsetError(
            ErrorCode.BAD_VALUE, f"{path.name}", " ".join(str(error).split()), "a robot in YAML"
        ) from error
    return _Reader(path.name).robot(document)


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice; YAML's own way is to take the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", node.start_mark
                )
        return super().construct_mapping(node, deep)


class _Reader:
    """Reads one document; every message begins with the file's name."""

    def __init__(self, file: str) -> None:
        self._file = file

    def robot(self, document: object) -> RobotFile:
        top = self._mapping("", document, _ROBOT_KEYS, optional=("velocity_in_state",))
        name = self._text("name", top["name"])
        period_ms = self._number("period_ms", top["period_ms"], above=0)
        with_velocity = top.get("velocity_in_state", True)
        if not isinstance(with_velocity, bool):
            raise self._error("velocity_in_state", with_velocity, "true or false")
        joints = self._items("joints", top["joints"], _JOINT_KEYS)
        cameras = self._items("cameras", top["cameras"], _CAMERA_KEYS, ("encoding", "lags"))
        rows = [self._joint(where, joint) for where, joint in joints]
        names = tuple(position.name for position, _, _ in rows)
        numbers = np.array([values for _, _, values in rows]).T
        limits = MotionLimits(names, *numbers[:5])
        positions = tuple(position for position, _, _ in rows)
        velocities = tuple(velocity for _, velocity, _ in rows) if with_velocity else ()
        spec = RobotSpec(
            name,
            (*positions, *velocities),
            positions,
            tuple(self._camera(where, camera) for where, camera in cameras),
            round(period_ms * 1e6),
        )
        home, park = numbers[5], numbers[6]
        home.flags.writeable = park.flags.writeable = False
        return RobotFile(spec, limits, home, park)

    def _joint(self, where: str, joint: dict[str, Any]) -> tuple[Dimension, Dimension, list[float]]:
        """Its dimensions, and its limits, home and park in one row."""
        unit = str(joint["unit"])
        if unit not in UNITS:
            raise self._error(f"{where}.unit", _guess(unit, UNITS), list(UNITS))
        span = joint["position"]
        if not isinstance(span, list) or len(span) != 2:
            raise self._error(f"{where}.position", span, "[lower, upper]")
        lower, upper = (self._number(f"{where}.position", value) for value in span)
        if not lower < upper:
            raise self._error(f"{where}.position", span, "[lower, upper] with lower < upper")
        if unit == "1" and (lower, upper) != (0, 1):
            raise self._error(f"{where}.position", span, '[0, 1] where the unit is "1"')
        rates = [self._number(f"{where}.{key}", joint[key], above=0) for key in _RATES]
        poses = [self._number(f"{where}.{key}", joint[key]) for key in _POSES]
        for key, value in zip(_POSES, poses, strict=True):
            if not lower <= value <= upper:
                raise self._error(f"{where}.{key}", value, f"{lower}..{upper}, its position limits")
        name = joint["name"]
        return (
            Dimension(f"{name}.pos", unit, lower, upper),
            Dimension(f"{name}.vel", UNITS[unit], -rates[0], rates[0]),
            [lower, upper, *rates, *poses],
        )

    def _camera(self, where: str, camera: dict[str, Any]) -> CameraSpec:
        for key in ("height", "width"):
            if type(camera[key]) is not int or camera[key] <= 0:
                raise self._error(f"{where}.{key}", camera[key], "a whole number above 0 [px]")
        encodings = [str(encoding) for encoding in FrameEncoding]
        encoding = camera.get("encoding", "raw")
        if encoding not in encodings:
            raise self._error(f"{where}.encoding", _guess(str(encoding), encodings), encodings)
        lags = camera.get("lags", [0])
        if not isinstance(lags, list) or not lags or any(type(x) is not int or x < 0 for x in lags):
            raise self._error(f"{where}.lags", lags, "a list of whole numbers from 0 on [steps]")
        size = camera["height"], camera["width"]
        return CameraSpec(camera["name"], *size, FrameEncoding(encoding), tuple(lags))

    def _items(
        self, what: str, value: object, keys: Sequence[str], optional: Sequence[str] = ()
    ) -> list[tuple[str, dict[str, Any]]]:
        """Named mappings of a list, each with where it stands."""
        if not isinstance(value, list) or not value:
            raise self._error(what, value, "a list of one or more")
        items: dict[str, dict[str, Any]] = {}
        for i, item in enumerate(value):
            # Named as soon as it can be: a name says more than a number.
            named = isinstance(item, dict) and isinstance(item.get("name"), str)
            where = f"{what}[{item['name'] if named else i}]"
            entry = self._mapping(where, item, keys, optional)
            name = self._text(f"{where}.name", entry["name"])
            if where in items:
                raise self._error(f"{what}.name", f"{name} twice", "a name for each")
            items[where] = entry
        return list(items.items())

    def _mapping(
        self, where: str, value: object, keys: Sequence[str], optional: Sequence[str] = ()
    ) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self._error(where, value, f"the keys {list(keys)}")
        for key in value:
            if key not in keys:
                spelt = _guess(str(key), [k for k in keys if k not in value])
                raise self._error(where, f"the unknown key {spelt}", list(keys))
        for key in keys:
            if key not in value and key not in optional:
                raise self._error(f"{where}.{key}" if where else key, "nothing", "it must be given")
        return value

    def _text(self, where: str, value: object) -> str:
        if not isinstance(value, str) or not value:
            raise self._error(where, value, "a name")
        return value

    def _number(self, where: str, value: object, above: float | None = None) -> float:
        allowed = "a number" if above is None else f"a number above {above}"
        if isinstance(value, bool) or not isinstance(value, int | float):
            given = repr(value)
            if isinstance(value, str) and "e" in value.lower():
                allowed += ", in YAML with a point and a sign: 1.0e+3"
            raise self._error(where, given, allowed)
        if not isfinite(value) or (above is not None and value <= above):
            raise self._error(where, value, allowed)
        return float(value)

    def _error(self, where: str, given: object, allowed: object) -> OnsetError:
        code = ErrorCode.BAD_NAMES if "name" in where.rpartition(".")[2] else ErrorCode.BAD_VALUE
        field = f"{self._file}: {where}" if where else self._file
        return OnsetError(code, field, given, allowed)


def _guess(given: str, known: Sequence[str] | dict[str, str]) -> str:
    """What was given, with the known word that was probably meant."""
    near = get_close_matches(given, list(known), n=1)
    return f"{given!r} (did you mean {near[0]!r}?)" if near else repr(given)
