"""The joints of a LeRobot robot, in our units."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from controller.clock import Clock, MonotonicClock
from controller.errors import ErrorCode, OnsetError
from controller.robots import lerobot_library as library
from controller.robots.lerobot_setup import LeRobotSetup
from controller.robots.lerobot_velocity import VelocityFilter
from controller.robots.units import JointUnit, LeRobotUnit, UnitMap
from controller.types import Command, Dimension, Float, RobotSpec


class LeRobotJoints:
    """The joints of a LeRobot robot, in our units.

    Attributes:
        sent: What the robot said it passed on to its motors. Shape (A,), units as in the spec;
            NaN before the first write.
        cut: Bit i: dimension i of the last command was changed on the way, e.g. by LeRobot's
            ``max_relative_target``.
        cuts: Commands that were changed so far [count].
    """

    def __init__(self, setup: LeRobotSetup, clock: Clock | None = None) -> None:
        """Makes the robot and checks names, units and limits; nothing is connected yet.

        Raises:
            OnsetError: UNAVAILABLE without lerobot or a driver; BAD_NAMES, BAD_VALUE for a spec
                that is not this robot's, with the names of both.
        """
        self._setup, self._clock = setup, clock or MonotonicClock()
        config = library.configure(setup.type, setup.options, setup.modules).robot
        robot = library.make_robot(config)
        self._robot, self._config = robot, config
        spec = setup.spec
        self._field = f"lerobot[{setup.type}]"
        _check_actions(spec, robot.action_features)
        estimated = _check_state(spec, robot.observation_features)
        motors = library.motor_units(robot)
        self._action_units = UnitMap(spec.action, [self._unit(d, motors) for d in spec.action])
        self._action_units.check_limits(spec.action)
        self._read = [d for d in spec.state if d.name not in estimated]
        self._state_units = UnitMap(self._read, [self._unit(d, motors) for d in self._read])
        self._read_at = [spec.state_names.index(d.name) for d in self._read]
        names = [d.name for d in self._read]
        self._estimated_at = [spec.state_names.index(name) for name in estimated]
        self._source = [names.index(_position_of(name)) for name in estimated]
        self._filter = VelocityFilter(setup.velocity_ns)
        # Base velocities that the spec leaves out stand still.
        self._idle = {n: 0.0 for n in robot.action_features if n not in spec.action_names}
        self._held_before_torque = False
        self.sent: Float = np.full(len(spec.action), np.nan, np.float32)
        self.cut = 0
        self.cuts = 0

    @property
    def spec(self) -> RobotSpec:
        return self._setup.spec

    @property
    def units(self) -> UnitMap:
        """The map of the action dimensions."""
        return self._action_units

    def connect(self, *, hold: bool = True) -> None:
        """Connects, and commands the arm to stay where it is.

        LeRobot turns torque off and on while it sets the motors up: for about a tenth of a second
        the arm is limp. Connect an arm at rest, or hold it.

        Args:
            hold: Whether to send the measured position as the first command.

        Raises:
            OnsetError: UNAVAILABLE when the robot does not answer; BAD_VALUE when it is not
                calibrated, with the command that does it.
        """
        if missing := library.lacks_calibration(self._robot):
            where = ", ".join(prefix.strip("_") or "the arm" for prefix in missing)
            raise self._uncalibrated(f"no calibration file for this id of {where}")
        if not self._held_before_torque:
            library.hold_before_torque(self._robot)
            self._held_before_torque = True
        try:
            self._wake(hold)
        except OnsetError:
            self._give_up()
            raise
        self._filter.reset()

    def read_state(self) -> Float:
        """Returns the measured state. Shape (S,), units as in the spec.

        Raises:
            OnsetError: UNAVAILABLE when the robot does not answer, NON_FINITE for nonsense.
        """
        observation = self._call("read", self._robot.get_observation)
        now_ns = self._clock.now_ns()
        if missing := [d.name for d in self._read if d.name not in observation]:
            raise OnsetError(
                ErrorCode.UNAVAILABLE, f"{self._field}.read", f"nothing of {missing}", "every joint"
            )
        theirs = [float(observation[d.name]) for d in self._read]
        read = self._state_units.from_lerobot(theirs)
        if not np.isfinite(read).all():
            raise self._non_finite("state", [d.name for d in self._read], read)
        state = np.empty(len(self.spec.state), np.float32)
        state[self._read_at] = read
        if self._source:
            rates = self._filter.update(now_ns, read[self._source].astype(np.float64))
            state[self._estimated_at] = rates
        return state

    def write(self, command: Command) -> None:
        """Sends one set-point, and keeps what was really sent.

        Raises:
            OnsetError: NON_FINITE or BAD_VALUE for a value outside the limits, and nothing is
                sent; UNAVAILABLE when the robot does not answer.
        """
        wanted = self.convert(command)
        action = dict(zip(self.spec.action_names, wanted.tolist(), strict=True))
        sent = self._call("write", lambda: self._robot.send_action({**action, **self._idle}))
        got = np.array([float(sent.get(n, action[n])) for n in self.spec.action_names])
        self.sent = self._action_units.from_lerobot(got)
        changed = np.abs(got - wanted) > 1e-3  # a thousandth of a degree or of a percent
        self.cut = int((changed * (1 << np.arange(len(got), dtype=np.int64))).sum())
        self.cuts += bool(self.cut)

    def convert(self, command: Command) -> np.ndarray:
        """Returns a set-point in LeRobot's units, without sending it. Shape (A,).

        Raises:
            OnsetError: NON_FINITE or BAD_VALUE, which names the dimension.
        """
        position = np.asarray(command.position, dtype=np.float64)
        names = self.spec.action_names
        if position.shape != (len(names),):
            raise OnsetError(
                ErrorCode.BAD_SHAPE, "command.position", position.shape, f"({len(names)},)"
            )
        if not np.isfinite(position).all():
            raise self._non_finite("command", list(names), position)
        lower, upper = self.spec.action_lower, self.spec.action_upper
        outside = (position < lower - 1e-5) | (position > upper + 1e-5)
        if outside.any():
            i = int(np.argmax(outside))
            raise OnsetError(
                ErrorCode.BAD_VALUE, f"command[{names[i]}]", position[i], f"{lower[i]}..{upper[i]}"
            )
        return self._action_units.to_lerobot(position)

    def close(self, *, release: bool = False) -> None:
        """Disconnects.

        Args:
            release: Let the arm go limp: only for an arm that is parked. Otherwise the motors
                hold their last command, where the robot has such a choice.

        Raises:
            OnsetError: UNAVAILABLE when that failed.
        """
        library.set_torque_at_exit(self._config, off=release)
        for _, arm in library.arms(self._robot):
            library.set_torque_at_exit(getattr(arm, "config", None), off=release)
        if self._robot.is_connected:
            self._call("close", self._robot.disconnect)

    def _wake(self, hold: bool) -> None:
        # LeRobot would ask on the terminal; a process of its own has none.
        self._call("connect", lambda: self._robot.connect(calibrate=False))
        if not self._call("connect", lambda: self._robot.is_calibrated):
            raise self._uncalibrated("the motors' calibration is not that of the file")
        observation = self._call("connect", self._robot.get_observation)
        if hold:
            here = {n: observation[n] for n in self._robot.action_features if n in observation}
            here |= {name: 0.0 for name in here if name.endswith(".vel")}
            self._call("connect", lambda: self._robot.send_action(here))

    def _give_up(self) -> None:
        """Disconnects after a failure, which is what the caller is told of."""
        try:
            self.close()
        except OnsetError:
            return

    def _unit(self, dimension: Dimension, motors: Mapping[str, JointUnit]) -> JointUnit:
        name, setup = dimension.name, self._setup
        motor = motors.get(name.removesuffix(".pos"))
        text = setup.units.get(name) or (motor.unit if motor is not None else None)
        text = text or _BASE_UNITS.get(name)
        allowed = [str(unit) for unit in LeRobotUnit]
        if text not in allowed:
            given = "not said by the robot" if text is None else text
            raise OnsetError(
                ErrorCode.BAD_VALUE, f"{self._field}.units[{name}]", given, f"one of {allowed}"
            )
        half = motor.half_range if motor is not None else None
        zero = float(setup.zeros.get(name, 0.0))
        return JointUnit(LeRobotUnit(text), half, zero, name in setup.reversed)

    def _call(self, what: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except library.DEVICE_ERRORS as error:
            given = f"{type(error).__name__}: {str(error).strip()}"
            raise OnsetError(
                ErrorCode.UNAVAILABLE, f"{self._field}.{what}", given, "a robot that answers"
            ) from error

    def _uncalibrated(self, given: str) -> OnsetError:
        options = self._setup.options
        shown = "".join(f" --robot.{k}={options[k]}" for k in ("port", "id") if k in options)
        command = f"lerobot-calibrate --robot.type={self._setup.type}{shown}"
        return OnsetError(
            ErrorCode.BAD_VALUE, f"{self._field}.calibration", given, f"run {command}"
        )

    def _non_finite(self, what: str, names: list[str], values: np.ndarray) -> OnsetError:
        i = int(np.argmin(np.isfinite(values)))
        return OnsetError(ErrorCode.NON_FINITE, f"{what}[{names[i]}]", values[i], "finite values")


# What LeKiwi's base reports; it has no motor of that name to ask.
_BASE_UNITS = {
    "x.vel": LeRobotUnit.SAME,
    "y.vel": LeRobotUnit.SAME,
    "theta.vel": LeRobotUnit.DEGREES,
}


def _check_actions(spec: RobotSpec, features: Mapping[str, Any]) -> None:
    theirs = list(features)
    # What stands still at zero may be left out; a joint may not.
    needed = {name for name in theirs if not name.endswith(".vel")}
    given = set(spec.action_names)
    if not needed <= given <= set(theirs):
        raise OnsetError(ErrorCode.BAD_NAMES, "robot.action", list(spec.action_names), theirs)
    for d in spec.action:
        if d.name.endswith(".vel"):
            raise OnsetError(
                ErrorCode.BAD_NAMES,
                f"robot.action[{d.name}]",
                "a velocity",
                "positions: a velocity that is held drives on for ever",
            )


def _check_state(spec: RobotSpec, features: Mapping[str, Any]) -> list[str]:
    """Returns the state dimensions that have to be estimated: rates of positions that are read."""
    estimated = []
    read = [name for name, kind in features.items() if not isinstance(kind, tuple)]
    for name in spec.state_names:
        if name in read:
            continue
        if not (name.endswith(".vel") and _position_of(name) in read):
            raise OnsetError(ErrorCode.BAD_NAMES, f"robot.state[{name}]", "not reported", read)
        if _position_of(name) not in spec.state_names:
            raise OnsetError(
                ErrorCode.BAD_NAMES,
                f"robot.state[{name}]",
                "its position is left out of the state",
                f"{_position_of(name)} beside it",
            )
        estimated.append(name)
    return estimated


def _position_of(name: str) -> str:
    return name.removesuffix(".vel") + ".pos"
