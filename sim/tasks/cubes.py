"""The cubes that pick_place and conveyor share."""

from __future__ import annotations

from dataclasses import replace

import mujoco
import numpy as np

from sim.experts.grasp import HALF, Grasp, Item, follow
from sim.robots.so101 import Array
from sim.task import COLOURS, HIDDEN_Z, Targets

# Contact bits: 1 is what cubes, table and jaws share, 4 is for what only cubes touch.
_CONTYPE, _CONAFFINITY = 5, 1
_AWAY_X = 2.0  # where what is not in play floats, behind the cameras [m]


def cube_mjcf(colour: str) -> str:
    """A free cube that table, jaws and other cubes touch."""
    return (
        f'<body name="cube_{colour}" pos="0 0 {HIDDEN_Z}"><freejoint name="cube_{colour}"/>'
        f'<geom name="cube_{colour}" type="box" size="{HALF} {HALF} {HALF}" mass="0.016" '
        f'rgba="{COLOURS[colour]}" contype="{_CONTYPE}" conaffinity="{_CONAFFINITY}" condim="4" '
        'friction="1.0 0.02 0.001" solref="0.006 1"/></body>'
    )


class Cubes:
    """Places and reads the cubes of a simulation, by colour."""

    def __init__(
        self, model: mujoco.MjModel, data: mujoco.MjData, colours: tuple[str, ...]
    ) -> None:
        self._model, self._data = model, data
        self._jaws = [model.geom(name).id for name in ("fixed_jaw", "moving_jaw")]
        self._geoms = {c: model.geom(f"cube_{c}").id for c in colours}
        self._joints = {c: data.joint(f"cube_{c}") for c in colours}

    def hide(self) -> None:
        """Takes all out of play: they float far away and touch nothing."""
        for i, colour in enumerate(self._geoms):
            self._in_play(colour, False)
            self._joints[colour].qpos = [_AWAY_X, 0.1 * i, HALF, 1, 0, 0, 0]
            self._joints[colour].qvel = 0.0

    def place(self, colour: str, position: Array, yaw: float) -> None:
        """Brings one into play.

        Args:
            position: Its centre. Shape (3,), [m].
            yaw: [rad].
        """
        self._in_play(colour, True)
        turn = [np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)]
        self._joints[colour].qpos = [*position, *turn]
        self._joints[colour].qvel = 0.0

    def _in_play(self, colour: str, yes: bool) -> None:
        geom = self._geoms[colour]
        self._model.geom_contype[geom] = _CONTYPE if yes else 0
        self._model.geom_conaffinity[geom] = _CONAFFINITY if yes else 0
        self._model.body_gravcomp[self._model.geom_bodyid[geom]] = 0.0 if yes else 1.0

    def push(self, colour: str, velocity: Array) -> None:
        """Sets its velocity. Shape (3,), [m/s]."""
        self._joints[colour].qvel = [*velocity, 0, 0, 0]

    def position(self, colour: str) -> Array:
        """Its centre. Shape (3,), [m]."""
        return self._joints[colour].qpos[:3].copy()

    def velocity(self, colour: str) -> Array:
        """Shape (3,), [m/s]."""
        return self._joints[colour].qvel[:3].copy()

    def spin(self, colour: str) -> Array:
        """Shape (3,), [rad/s]."""
        return self._joints[colour].qvel[3:].copy()

    def touched(self, colour: str) -> bool:
        """Whether a jaw touches it."""
        pairs = self._data.contact.geom
        of_cube = pairs[(pairs == self._geoms[colour]).any(axis=1)]
        return bool(np.isin(of_cube, self._jaws).any())


def follow_first(motion: Grasp, targets: Targets, joints: Array, dt: float) -> Targets:
    """``Task.foresee`` where the first target is a cube to grasp and the others stand still."""
    (x, y, z), (vx, vy, _) = targets.position[0].tolist(), targets.velocity[0].tolist()
    item = follow(motion, Item((x, y, z), (vx, vy)), joints, dt)
    position, velocity = targets.position.copy(), targets.velocity.copy()
    position[0], velocity[0, :2] = item.position, item.velocity
    return replace(targets, position=position, velocity=velocity)
