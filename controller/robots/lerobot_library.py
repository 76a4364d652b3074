"""Everything that is asked of the lerobot package, which is imported only here and on use.

A robot is found by LeRobot's name of its configuration: those that come with LeRobot, those of
installed distributions named ``lerobot_robot_*``, and those of modules that are named to us.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from controller.errors import ErrorCode, OnsetError
from controller.robots.units import JointUnit, LeRobotUnit

TORQUE_OPTION = "disable_torque_on_disconnect"
# Their frames come from another computer together with the joints: they cannot be split off.
REMOTE_CAMERAS = ("lekiwi_client", "earthrover_mini_plus")
# What drivers raise when a device is missing, gone, or answers nonsense; LeRobot's own errors of
# connection and time are among them.
DEVICE_ERRORS = (OSError, RuntimeError)
_SETUP_ERRORS = (*DEVICE_ERRORS, ImportError, ValueError, TypeError, KeyError, AttributeError)


@dataclass(frozen=True)
class Parts:
    """A robot's configuration, taken apart.

    Attributes:
        robot: LeRobot's configuration, without cameras, which leaves torque on at the end.
        cameras: LeRobot's camera configurations by the names that observations use.
    """

    robot: Any
    cameras: dict[str, Any]


def library(module: str) -> Any:
    """Imports a module of LeRobot's.

    Raises:
        OnsetError: UNAVAILABLE when lerobot is not installed.
    """
    try:
        return importlib.import_module(f"lerobot.{module}")
    except ImportError as error:
        raise OnsetError(
            ErrorCode.UNAVAILABLE,
            "lerobot",
            f"cannot import lerobot.{module}: {error}",
            "an installed lerobot: pip install 'onset[serve]' 'lerobot[feetech]==0.6.1'",
        ) from error


def configure(type_name: str, options: Mapping[str, Any], modules: tuple[str, ...] = ()) -> Parts:
    """Makes the configuration of a robot and takes its cameras out of it.

    Args:
        type_name: LeRobot's name, e.g. ``"so101_follower"``.
        options: The configuration's fields, as in LeRobot's command lines: port, id, cameras ...
        modules: Modules that define further robots or cameras, imported first.

    Raises:
        OnsetError: UNAVAILABLE without lerobot, BAD_NAMES for an unknown robot, BAD_VALUE for
            options that it does not take.
    """
    draccus = _draccus()
    base = library("robots").RobotConfig
    _register(modules)
    known = sorted(base.get_known_choices())
    if type_name not in known:
        raise OnsetError(ErrorCode.BAD_NAMES, "lerobot.type", repr(type_name), known)
    try:
        config = draccus.decode(base, {"type": type_name, **options})
    except (draccus.utils.DraccusException, *_SETUP_ERRORS) as error:
        allowed = _option_names(base.get_choice_class(type_name))
        raise OnsetError(
            ErrorCode.BAD_VALUE, f"lerobot[{type_name}]", f"{dict(options)}: {error}", allowed
        ) from error
    set_torque_at_exit(config, off=False)
    # A lost packet costs about 50 ms, and as much again for each further try within the call:
    # rather tell the control loop, which reads again at its next turn.
    for place, part in _configs(config):
        given = options.get(place, {}) if place else options
        if "num_read_retries" not in given and hasattr(part, "num_read_retries"):
            part.num_read_retries = 0
    cameras = _take_cameras(config)
    if cameras and type_name in REMOTE_CAMERAS:
        if "cameras" not in options:
            return Parts(config, {})  # its defaults
        raise OnsetError(
            ErrorCode.BAD_VALUE,
            f"lerobot[{type_name}].cameras",
            sorted(cameras),
            "none: this robot sends its frames with its joints; run on the robot's own computer",
        )
    return Parts(config, cameras)


def make_robot(config: Any) -> Any:
    """Makes LeRobot's robot; nothing is connected yet.

    Raises:
        OnsetError: UNAVAILABLE when a driver is missing or the robot cannot be made.
    """
    return _make(
        f"lerobot[{config.type}]", lambda: library("robots").make_robot_from_config(config)
    )


def make_cameras(configs: Mapping[str, Any]) -> dict[str, Any]:
    """Makes LeRobot's cameras; nothing is connected yet.

    Raises:
        OnsetError: UNAVAILABLE when a driver is missing or a camera cannot be made.
    """
    make = library("cameras").make_cameras_from_configs
    return _make("lerobot.cameras", lambda: make(dict(configs)))


def set_torque_at_exit(thing: Any, *, off: bool) -> list[str]:
    """Says whether motors go limp on disconnect, in a configuration and all within it.

    LeRobot's default is yes, and its robots disconnect when they are collected as garbage too.

    Returns:
        The places where there was such a setting, e.g. ``["left_arm_config"]``; ``[""]`` for one
        arm. Empty: the robot has no say.
    """
    places = []
    for place, config in _configs(thing):
        if hasattr(config, TORQUE_OPTION):
            setattr(config, TORQUE_OPTION, off)
            places.append(place)
    return places


def arms(robot: Any) -> Iterator[tuple[str, Any]]:
    """Yields (prefix of its names, robot) for a robot and the robots it is made of."""
    yield "", robot
    base = library("robots").Robot
    for attribute, part in vars(robot).items():
        if isinstance(part, base):
            for prefix, arm in arms(part):
                yield attribute.removesuffix("arm") + prefix, arm


def motor_units(robot: Any) -> dict[str, JointUnit]:
    """How the motors report, by joint name as in features without ``.pos``.

    Known for robots whose buses name their motors' modes (SO-100/101, Koch, LeKiwi, bimanual
    ones); empty for others.
    """
    found = {}
    for prefix, arm in arms(robot):
        bus = getattr(arm, "bus", None)
        calibration = getattr(bus, "calibration", None) or getattr(arm, "calibration", None) or {}
        for name, motor in (getattr(bus, "motors", None) or {}).items():
            mode = getattr(getattr(motor, "norm_mode", None), "value", None)
            unit = _MODES.get(mode) if isinstance(mode, str) else None
            if unit is not None:
                half = _half_range(bus, motor, calibration.get(name))
                found[prefix + name] = JointUnit(unit, half)
    return found


def lacks_calibration(robot: Any) -> list[str]:
    """The names of arms on a motor bus that have no calibration file; "" is the only arm."""
    return [
        prefix
        for prefix, arm in arms(robot)
        if hasattr(arm, "bus") and not getattr(arm, "calibration", None)
    ]


def hold_before_torque(robot: Any) -> None:
    """Lets each bus set its motors' goals to where they are before it turns torque on.

    A servo that is turned on goes to the goal it was given last, perhaps days ago, at full speed.
    LeRobot turns torque on while it connects, before anybody could send a goal.
    """
    joints = {key.removesuffix(".pos") for key in robot.action_features if key.endswith(".pos")}
    for prefix, arm in arms(robot):
        bus: Any = getattr(arm, "bus", None)
        needed = ("enable_torque", "sync_read", "sync_write", "motors")
        if all(hasattr(bus, name) for name in needed):
            names = [motor for motor in bus.motors if prefix + motor in joints]
            bus.enable_torque = _holding(bus, names, bus.enable_torque)


def _holding(bus: Any, joints: list[str], enable: Callable[..., None]) -> Callable[..., None]:
    def enable_torque(motors: Any = None, num_retry: int = 0) -> None:
        if joints:
            retry = max(num_retry, 5)
            here = bus.sync_read("Present_Position", joints, normalize=False, num_retry=retry)
            bus.sync_write("Goal_Position", here, normalize=False, num_retry=retry)
        enable(motors, num_retry)

    return enable_torque


def _register(modules: tuple[str, ...]) -> None:
    for package in ("robots", "cameras"):
        parent = library(package)
        for entry in pkgutil.iter_modules(parent.__path__):
            if entry.ispkg:
                library(f"{package}.{entry.name}")
    library("utils.import_utils").register_third_party_plugins()
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise OnsetError(
                ErrorCode.UNAVAILABLE, "lerobot.modules", f"{module}: {error}", "installed modules"
            ) from error


def _draccus() -> Any:
    library("robots")  # says what to install
    return importlib.import_module("draccus")


def _make(field: str, make: Callable[[], Any]) -> Any:
    try:
        return make()
    except _SETUP_ERRORS as error:
        raise OnsetError(
            ErrorCode.UNAVAILABLE, field, f"{type(error).__name__}: {error}", "a working driver"
        ) from error


def _option_names(config_class: type) -> list[str]:
    return [f.name for f in fields(config_class)] if is_dataclass(config_class) else []


def _configs(config: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    yield place, config
    for field in fields(config) if is_dataclass(config) else ():
        part = getattr(config, field.name)
        if is_dataclass(part):
            yield from _configs(part, f"{place}.{field.name}" if place else field.name)


def _take_cameras(config: Any) -> dict[str, Any]:
    """Empties ``cameras`` of a configuration and of its arms, whose names get the arm's prefix."""
    taken = {}
    for place, part in _configs(config):
        prefix = place.removesuffix("arm_config") if place.endswith("arm_config") else ""
        for name, camera in (getattr(part, "cameras", None) or {}).items():
            taken[prefix + name] = camera
        if getattr(part, "cameras", None):
            part.cameras = {}
    return taken


def _half_range(bus: Any, motor: Any, calibration: Any) -> float | None:
    resolution = (getattr(bus, "model_resolution_table", None) or {}).get(motor.model)
    if calibration is None or not resolution:
        return None
    ticks = calibration.range_max - calibration.range_min
    return ticks / 2 * 2 * math.pi / (resolution - 1) if ticks > 0 else None


_MODES = {
    "degrees": LeRobotUnit.DEGREES,
    "range_0_100": LeRobotUnit.SHARE,
    "range_m100_100": LeRobotUnit.SIGNED_SHARE,
}
