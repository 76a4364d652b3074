"""Where the robot will be when a new chunk takes over.

A policy that answers d steps late plans from a state that is d steps old. The committed actions
say most of what happens meanwhile; a servo does the rest::

    command   ......o------o------o------o        o  set-point at the end of a step
                   /
    joint     ____/ ,------,------,------x        x  state forecast after n = 3 actions
              ___.-'
                  |- 0 --|- 1 --|- 2 --|--> steps

VLASH's robot code takes the last command for the state ("VLASH: Real-Time VLAs via Future-State-
Aware Asynchronous Inference"); ``LastCommand`` does the same. A joint lags its command, and a
gripper that holds something never gets there: ``ServoForecast`` rolls a model of each servo.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from controller.bounds import check_rows, check_vector
from controller.errors import ErrorCode, OnsetError
from controller.servo import ServoModel, load_servo
from controller.types import ActionKind, Float, RobotSpec

__all__ = [
    "Forecaster",
    "LastCommand",
    "ServoForecast",
    "ServoModel",
    "load_servo",
    "to_set_points",
]


class Forecaster(Protocol):
    """Tells the state ahead."""

    def forecast(self, state: Float, set_point: Float, actions: Float) -> Float:
        """Returns the state expected after the actions were executed. Shape (S,).

        Args:
            state: Measured state. Shape (S,), units as in the spec.
            set_point: Command that stands now, where the first straight line starts. Shape (A,).
            actions: The actions to be executed. Shape (n, A); with n = 0 the state is returned.
        """
        ...


class LastCommand:
    """Takes the last action for the position, and its difference to the one before for the rate."""

    def __init__(self, spec: RobotSpec) -> None:
        """Args:
        spec: The robot; each action dimension needs a state dimension of its name.

        Raises:
            OnsetError: BAD_NAMES for an action dimension without a position in the state.
        """
        self._layout = _Layout(spec)

    def forecast(self, state: Float, set_point: Float, actions: Float) -> Float:
        layout = self._layout
        state, set_point, points = layout.check(state, set_point, actions)
        if not len(points):
            return state
        before = points[-2] if len(points) > 1 else set_point
        return layout.fill(state, points[-1], (points[-1] - before) / layout.period_s)


class ServoForecast:
    """Rolls the servo model from the measured state through the actions.

    Where the state has no velocity of a joint it is taken to stand still. A moving gripper behind
    its command is then read as blocked, for nothing tells the two apart.
    """

    def __init__(self, model: ServoModel, spec: RobotSpec) -> None:
        """Args:
        model: Servo model of the robot's action dimensions.
        spec: The robot; each action dimension needs a state dimension of its name.

        Raises:
            OnsetError: BAD_NAMES when model, actions and state do not name the same dimensions in
                the same units.
        """
        ours = tuple(zip(spec.action_names, (d.unit for d in spec.action), strict=True))
        theirs = tuple(zip(model.names, model.units, strict=True))
        if ours != theirs:
            raise OnsetError(ErrorCode.BAD_NAMES, "servo.dimensions", theirs, ours)
        self._model, self._layout = model, _Layout(spec)

    def forecast(self, state: Float, set_point: Float, actions: Float) -> Float:
        layout = self._layout
        state, set_point, points = layout.check(state, set_point, actions)
        if not len(points):
            return state
        position, velocity = layout.split(state)
        positions, velocities = self._model.roll(
            position[None], velocity[None], set_point[None], points[None], layout.period_s
        )
        return layout.fill(state, positions[0, -1], velocities[0, -1])


def make_forecaster(name: str, spec: RobotSpec) -> Forecaster:
    """Makes a forecaster by name: "servo", with the robot's own model, or "last_command".

    Raises:
        OnsetError: BAD_VALUE for another name; BAD_NAMES where there is no servo model of that
            robot, or it does not fit.
    """
    if name == "servo":
        return ServoForecast(load_servo(spec.name), spec)
    if name == "last_command":
        return LastCommand(spec)
    raise OnsetError(ErrorCode.BAD_VALUE, "forecaster", repr(name), ["servo", "last_command"])


def to_set_points(actions: Float, state: Float, set_point: Float, spec: RobotSpec) -> Float:
    """Returns actions as positions to be reached, each dimension by its kind. Shape (n, A).

    ABSOLUTE is one already; DELTA_PREVIOUS adds up from the command that stands now; DELTA_STATE
    is relative to the position in ``state``, so the state has to be that of the observation which
    the actions were made for.

    Args:
        actions: Shape (n, A).
        state: State at the observation. Shape (S,).
        set_point: Command that stands now. Shape (A,).
        spec: Names and kinds of the dimensions.

    Raises:
        OnsetError: BAD_NAMES for a dimension relative to a state that the spec does not have.
    """
    points = actions.copy()
    for i, dimension in enumerate(spec.action):
        if dimension.kind is ActionKind.DELTA_PREVIOUS:
            points[:, i] = set_point[i] + np.cumsum(actions[:, i])
        elif dimension.kind is ActionKind.DELTA_STATE:
            points[:, i] = state[_index(spec, dimension.name)] + actions[:, i]
    return points


class _Layout:
    """Where positions and velocities of the action dimensions are in the state."""

    def __init__(self, spec: RobotSpec) -> None:
        self._spec = spec
        self.period_s = spec.period_ns * 1e-9
        self._position = np.array([_index(spec, name) for name in spec.action_names])
        rates = [name.removesuffix(".pos") + ".vel" for name in spec.action_names]
        pairs = [
            (i, spec.state_names.index(n)) for i, n in enumerate(rates) if n in spec.state_names
        ]
        self._moving, self._velocity = np.array(pairs, dtype=np.intp).reshape(-1, 2).T

    def check(self, state: Float, set_point: Float, actions: Float) -> tuple[Float, Float, Float]:
        """State, set-point and the actions as set-points, all finite and of the right shape."""
        spec = self._spec
        state = check_vector("forecast.state", state, spec.state_names)
        set_point = check_vector("forecast.set_point", set_point, spec.action_names)
        actions = check_rows("forecast.actions", actions, spec.action_names)
        return state, set_point, to_set_points(actions, state, set_point, spec)

    def split(self, state: Float) -> tuple[Float, Float]:
        """Position and velocity of each action dimension. Shape (A,) each."""
        velocity = np.zeros(len(self._position), dtype=np.float32)
        velocity[self._moving] = state[self._velocity]
        return state[self._position], velocity

    def fill(self, state: Float, position: NDArray, velocity: NDArray) -> Float:
        """The state with these in their places; positions are kept within their limits."""
        out = state.copy()
        limits = [self._spec.state[i] for i in self._position]
        lower, upper = [d.lower for d in limits], [d.upper for d in limits]
        out[self._position] = np.clip(position, lower, upper)
        out[self._velocity] = velocity[self._moving]
        return out


def _index(spec: RobotSpec, name: str) -> int:
    if name not in spec.state_names:
        raise OnsetError(ErrorCode.BAD_NAMES, "robot.state", list(spec.state_names), f"with {name}")
    return spec.state_names.index(name)
