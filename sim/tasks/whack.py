"""Whack: hit the mole of the named colour while it is up."""

from __future__ import annotations

from dataclasses import dataclass, field

import mujoco
import numpy as np

from sim.experts.reach import Reach, reach_plan
from sim.robots.so101 import Array
from sim.task import COLOURS, HIDDEN_Z, Targets, Task, draw_pair, interval

_COLOURS = ("red", "green", "blue", "yellow")
_HEAD_Z = 0.045  # centre of a mole's head when it is up [m]
_HIT = 0.025  # tip to head centre that counts as a hit [m]
_AREA = np.array([[0.17, -0.15], [0.29, 0.15]])
_MOTION = Reach(pitch=1.05, omega=14.0, hover=0.09, strike=_HEAD_Z + 0.004, strike_within=0.03)
_HOME = np.array([0.22, 0.0, 0.12])


@dataclass
class _Mole:
    """One mole's present appearance."""

    colour: str
    up: bool = False
    muted: bool = False  # up for the draws only: not seen, not hit
    timer: float = 0.0  # until it changes between up and hidden [s]
    position: Array = field(default_factory=lambda: np.zeros(2))
    velocity: Array = field(default_factory=lambda: np.zeros(2))
    turn: float = 0.0  # until it changes its heading [s]
    appearances: int = 0
    hits: int = 0

    @property
    def shown(self) -> bool:
        return self.up and not self.muted


class Whack(Task):
    """Coloured moles pop up, move and hide; "hit the red mole".

    Description: two moles of different colours come up again and again at random places on the
        board, move with sudden turns, and hide. The arm is to touch the named one with the tip
        of its gripper.
    Randomisation: colours, places, speed and turns, time up and time hidden, the start pose.
    Success: the named mole was hit in at least 4 of its 5 appearances, the other at most once.
    """

    name = "whack"
    prompts = tuple(f"hit the {c} mole" for c in _COLOURS)
    cameras = ("front",)
    lags = (0, 3)
    batched = True
    steps = 200

    def __init__(
        self,
        up_min: float = 0.6,
        up_max: float = 0.8,
        speed_min: float = 0.05,
        speed_max: float = 0.09,
        straight: float = 0.4,
        appearances: int = 5,
    ) -> None:
        """Args:
        up_min: Least time a mole stays up [s].
        up_max: Greatest time [s].
        speed_min: Least speed of a mole [m/s].
        speed_max: Greatest speed [m/s].
        straight: Mean time a mole keeps its heading [s].
        appearances: How often the named mole comes up.
        """
        self.up_range, self.appearances = interval("up", up_min, up_max), appearances
        self.speed, self.straight = interval("speed", speed_min, speed_max), straight

    def scene(self) -> str:
        return "\n".join(
            f'<body name="mole_{c}" mocap="true" pos="0 0 {HIDDEN_Z}">'
            f'<geom type="capsule" size="0.017" fromto="0 0 -0.03 0 0 0" rgba="{COLOURS[c]}" '
            'contype="0" conaffinity="0"/></body>'
            for c in _COLOURS
        )

    def start(self, rng: np.random.Generator) -> Array:
        return _MOTION.start(_HOME + rng.uniform([-0.03, -0.08, -0.02], [0.04, 0.08, 0.04]))

    def reset(
        self,
        model: mujoco.MjModel,
        data: mujoco.MjData,
        rng: np.random.Generator,
        prompt: str | None,
    ) -> str:
        self._rng = rng
        self.prompt, named, other = draw_pair(_COLOURS, self.prompts, rng, prompt)
        self._moles = [_Mole(named, timer=rng.uniform(0.1, 0.3)), _Mole(other, timer=0.0)]
        self._bodies = {c: model.body(f"mole_{c}").mocapid[0] for c in _COLOURS}
        self._time, self._event = 0.0, None
        self._place(data)
        return self.prompt

    def _pop_up(self, mole: _Mole, other: _Mole) -> None:
        while True:
            place = self._rng.uniform(*_AREA)
            if not other.up or np.linalg.norm(place - other.position) > 0.10:
                break
        mole.position = place
        self._turn(mole)
        mole.up, mole.timer = True, self._rng.uniform(*self.up_range)
        mole.appearances += 1
        named = mole is self._moles[0]
        mole.muted = self.muted and named and mole.appearances == 1
        if named and mole.shown:
            self._event = round(self._time * 1e9)

    def _turn(self, mole: _Mole) -> None:
        speed, heading = self._rng.uniform(*self.speed), self._rng.uniform(0, 2 * np.pi)
        mole.velocity = speed * np.array([np.cos(heading), np.sin(heading)])
        mole.turn = self.straight * self._rng.uniform(0.5, 1.5)

    def advance(self, model: mujoco.MjModel, data: mujoco.MjData, dt: float) -> None:
        self._time += dt
        tip = data.site("tip").xpos
        for mole, other in (self._moles, self._moles[::-1]):
            mole.timer -= dt
            if not mole.up:
                if mole.timer <= 0 and (
                    other is self._moles[0] or mole.appearances < self.appearances
                ):
                    self._pop_up(mole, other)
                continue
            mole.turn -= dt
            if mole.turn <= 0:
                self._turn(mole)
            mole.position = mole.position + mole.velocity * dt
            outside = (mole.position < _AREA[0]) | (mole.position > _AREA[1])
            mole.velocity = np.where(outside, -mole.velocity, mole.velocity)
            mole.position = np.clip(mole.position, *_AREA)
            near = np.linalg.norm(tip - np.append(mole.position, _HEAD_Z)) < _HIT
            hit = near and mole.shown
            mole.hits += int(hit)
            if hit or mole.timer <= 0:
                mole.up, mole.timer = False, self._rng.uniform(0.25, 0.5)
        self._place(data)

    def _place(self, data: mujoco.MjData) -> None:
        for body in self._bodies.values():
            data.mocap_pos[body] = [0, 0, HIDDEN_Z]
        for mole in self._moles:
            if mole.shown:
                data.mocap_pos[self._bodies[mole.colour]] = [*mole.position, _HEAD_Z]

    def success(self) -> bool:
        named, other = self._moles
        return named.hits >= self.appearances - 1 and other.hits <= 1

    def score(self) -> float:
        return self._moles[0].hits / self.appearances

    def swapped_prompt(self) -> str:
        return f"hit the {self._moles[1].colour} mole"

    def swapped_success(self) -> bool:
        named, other = self._moles
        return other.hits >= 2 and named.hits <= 1

    def done(self) -> bool:
        named = self._moles[0]
        return named.appearances >= self.appearances and not named.up

    def targets(self) -> Targets:
        mole = self._moles[0]
        return Targets(
            np.array([[*mole.position, _HEAD_Z]]),
            np.array([[*mole.velocity, 0.0]]),
            np.array([mole.shown]),
        )

    def plan_for(
        self, targets: Targets, position: Array, velocity: Array, steps: int, dt: float
    ) -> Array:
        """Also for many scenes at once, (...,) of them and of the joints."""
        return reach_plan(_MOTION, targets, _HOME, position, velocity, steps, dt)

    def event_ns(self) -> int | None:
        return self._event
