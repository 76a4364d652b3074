"""Intercept: block the named ball before it crosses the line."""

from __future__ import annotations

from dataclasses import dataclass, field

import mujoco
import numpy as np

from sim.experts.motion import goal_of, plan_start, roll_out
from sim.experts.reach import Reach
from sim.robots.so101 import Array
from sim.task import COLOURS, HIDDEN_Z, Targets, Task, draw_pair, interval

_COLOURS = ("red", "green", "blue", "yellow")
RADIUS = 0.02  # [m]
LINE_X = 0.21  # the tip waits on this line [m]
GOAL_X = LINE_X - 0.035  # a ball past this is lost [m]
_REACH_Y = 0.15  # crossings are within this [m]
_CROSS_MIN = 0.075  # and not nearer to the middle than this [m]
_BLOCK = 0.034  # tip to ball centre that counts as a block [m]
_HEIGHT = 0.03
_MOTION = Reach(pitch=1.05, omega=16.0, hover=_HEIGHT, strike=_HEIGHT, strike_within=0.0)


@dataclass
class _Ball:
    colour: str
    position: Array = field(default_factory=lambda: np.zeros(2))
    velocity: Array = field(default_factory=lambda: np.zeros(2))
    kick_x: float = 0.0  # where it is deflected [m]; 0 for never
    kick: Array = field(default_factory=lambda: np.zeros(2))
    blocked: bool = False
    lost: bool = False


class Intercept(Task):
    """A ball rolls in and may be deflected on the way; "block the red ball".

    Description: two balls of different colours roll towards the robot. The arm is to stand in the
        way of the named one with its gripper. A deflection cannot be foreseen.
    Randomisation: colours, where each starts and where it would cross, speed, whether, where and
        how it is deflected, the start pose.
    Success: the named ball touched the gripper before it crossed the line.
    """

    name = "intercept"
    prompts = tuple(f"block the {c} ball" for c in _COLOURS)
    cameras = ("front",)
    lags = (0, 1, 3)  # a deflected ball is seen to be one within a step
    batched = True
    steps = 60

    def __init__(
        self,
        speed_min: float = 0.28,
        speed_max: float = 0.36,
        kick_probability: float = 0.8,
        kick_from: float = 0.31,
        kick_to: float = 0.37,
    ) -> None:
        """Args:
        speed_min: Least speed of a ball [m/s].
        speed_max: Greatest speed [m/s].
        kick_probability: Share of balls that are deflected.
        kick_from: Nearest place of a deflection [m from the base].
        kick_to: Farthest place [m].
        """
        self.speed = interval("speed", speed_min, speed_max)
        self.kick_probability = kick_probability
        self.kick_range = interval("kick", kick_from, kick_to)

    def scene(self) -> str:
        balls = "\n".join(
            f'<body name="ball_{c}" mocap="true" pos="0 0 {HIDDEN_Z}">'
            f'<geom type="sphere" size="{RADIUS}" rgba="{COLOURS[c]}" contype="0" '
            'conaffinity="0"/></body>'
            for c in _COLOURS
        )
        return balls + (
            f'<geom type="box" size="0.002 0.2 0.0005" pos="{GOAL_X} 0 0" rgba="1 1 1 1" '
            'contype="0" conaffinity="0"/>'
        )

    def start(self, rng: np.random.Generator) -> Array:
        return _MOTION.start(np.array([LINE_X, rng.uniform(-0.03, 0.03), _HEIGHT]))

    def reset(
        self,
        model: mujoco.MjModel,
        data: mujoco.MjData,
        rng: np.random.Generator,
        prompt: str | None,
    ) -> str:
        self.prompt, named, other = draw_pair(_COLOURS, self.prompts, rng, prompt)
        sides = rng.permutation([-1.0, 1.0])
        self._balls = [self._roll(named, sides[0], rng), self._roll(other, sides[1], rng)]
        self._bodies = {c: model.body(f"ball_{c}").mocapid[0] for c in _COLOURS}
        self._time, self._event = 0.0, 0
        self._place(data)
        return self.prompt

    def _roll(self, colour: str, side: float, rng: np.random.Generator) -> _Ball:
        start = np.array([rng.uniform(0.46, 0.54), rng.uniform(-0.16, 0.16)])
        speed = rng.uniform(*self.speed)
        # Where it will cross in the end: never where the gripper waits.
        cross = side * rng.uniform(_CROSS_MIN, _REACH_Y)
        # Drawn in any case, so that the seed means the same episode at every hardness.
        share, where, size = rng.uniform(size=3)
        kicked = share < self.kick_probability
        shift = -side * (0.07 + 0.05 * size) if kicked else 0.0
        way = np.array([LINE_X, cross + shift]) - start
        ball = _Ball(colour, start, way / np.linalg.norm(way) * speed)
        if kicked:
            ball.kick_x = self.kick_range[0] + where * (self.kick_range[1] - self.kick_range[0])
            left = (ball.kick_x - LINE_X) / -ball.velocity[0]
            ball.kick = np.array([0.0, -shift / left])
        return ball

    def advance(self, model: mujoco.MjModel, data: mujoco.MjData, dt: float) -> None:
        self._time += dt
        tip = data.site("tip").xpos
        for ball in self._balls:
            ball.position = ball.position + ball.velocity * dt
            if ball.kick_x and ball.position[0] <= ball.kick_x and not ball.blocked:
                ball.kick_x = 0.0
                named = ball is self._balls[0]
                if not (named and self.muted):
                    ball.velocity = ball.velocity + ball.kick
                if named and not self.muted:
                    self._event = round(self._time * 1e9)
            if ball.blocked or ball.lost:
                continue
            near = np.linalg.norm(tip[:2] - ball.position) < _BLOCK
            # It has to be stopped at the line by a lowered gripper, not met somewhere on the way.
            if near and tip[2] < 0.05 and ball.position[0] < LINE_X + 0.04:
                ball.blocked = True
                ball.velocity = ball.velocity * [-0.5, 0.5]
            ball.lost = not ball.blocked and ball.position[0] < GOAL_X
        self._place(data)

    def _place(self, data: mujoco.MjData) -> None:
        for body in self._bodies.values():
            data.mocap_pos[body] = [0, 0, HIDDEN_Z]
        for ball in self._balls:
            data.mocap_pos[self._bodies[ball.colour]] = [*ball.position, RADIUS]

    def success(self) -> bool:
        return self._balls[0].blocked

    def swapped_prompt(self) -> str:
        return f"block the {self._balls[1].colour} ball"

    def swapped_success(self) -> bool:
        named, other = self._balls
        return other.blocked and not named.blocked

    def score(self) -> float:
        return float(self.success())

    def done(self) -> bool:
        return all(ball.blocked or ball.lost for ball in self._balls)

    def targets(self) -> Targets:
        ball = self._balls[0]
        return Targets(
            np.array([[*ball.position, RADIUS]]),
            np.array([[*ball.velocity, 0.0]]),
            np.array([True]),
        )

    def plan_for(
        self, targets: Targets, position: Array, velocity: Array, steps: int, dt: float
    ) -> Array:
        """Also for many scenes at once, (...,) of them and of the joints."""
        start, rate = plan_start(position, velocity)
        ball, speed = targets.position[..., 0, :], targets.velocity[..., 0, :]
        left = np.maximum(0.0, (ball[..., 0] - LINE_X) / np.maximum(-speed[..., 0], 1e-3))
        cross = np.clip(ball[..., 1] + speed[..., 1] * left, -0.17, 0.17)
        # A ball that was blocked rolls back, one that is lost is past the line.
        over = (speed[..., 0] > 0) | (ball[..., 0] < GOAL_X)
        y = np.where(over, 0.0, cross)
        tip = np.stack([np.full_like(y, LINE_X), y, np.full_like(y, _HEIGHT)], axis=-1)
        goal = goal_of(tip, _MOTION.pitch)
        return roll_out(start, rate, lambda *_: goal, np.full(6, _MOTION.omega), dt, steps)

    def event_ns(self) -> int | None:
        return self._event
