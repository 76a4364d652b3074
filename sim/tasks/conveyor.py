"""Conveyor: take the named cube off a moving belt."""

from __future__ import annotations

import mujoco
import numpy as np

from sim.experts.grasp import HALF, Grasp, Item, grasp_plan
from sim.robots.so101 import Array
from sim.task import Targets, Task, choose_prompt, interval
from sim.tasks.cubes import Cubes, cube_mjcf, follow_first

_COLOURS = ("red", "green", "blue", "yellow")
_BELT_X = 0.19  # middle of the belt [m]
_BELT_WIDTH = 0.09  # [m]
_BELT_TOP = 0.006  # its surface above the table [m]
_END_Y = 0.17  # a cube past this, downstream, is lost [m]
_LIFT = 0.05  # above its place on the belt [m]
_LIFTED = 0.1  # a cube has to be up for this long [s]
_MOTION = Grasp(
    home=(0.19, 0.0, 0.09), home_pitch=1.3, square=True, stride=0.04, travel=0.06, reach_y=0.14
)


class Conveyor(Task):
    """Cubes ride past on a belt; "take the red cube off the belt".

    Description: three cubes of different colours ride along y on a belt, which may change its
        speed at any time. The arm is to pick the named one up before it leaves the belt.
    Randomisation: colours and their order, side they come from, gaps, place across the belt, yaw,
        speed, whether, when and to what the speed changes, the start pose.
    Success: the named cube was lifted 5 cm above the belt.
    """

    name = "conveyor"
    prompts = tuple(f"take the {c} cube off the belt" for c in _COLOURS)
    cameras = ("front", "wrist")
    lags = (0, 3)
    steps = 200

    def __init__(
        self,
        speed_min: float = 0.04,
        speed_max: float = 0.07,
        change_probability: float = 0.5,
        gap: float = 0.09,
        yaw: float = 0.25,
    ) -> None:
        """Args:
        speed_min: Least speed of the belt [m/s].
        speed_max: Greatest speed [m/s].
        change_probability: Share of episodes in which the belt changes its speed once.
        gap: Least distance between neighbours on the belt [m].
        yaw: Greatest angle between a cube's sides and the belt [rad].
        """
        self.speed, self.change_probability = (
            interval("speed", speed_min, speed_max),
            change_probability,
        )
        self.gap, self.yaw = gap, yaw

    def scene(self) -> str:
        # The belt really moves, so that friction carries the cubes: a bar that only they touch, so
        # heavy that nothing slows it down. What one sees of it stands still.
        middle, half = _BELT_TOP / 2, _BELT_WIDTH / 2
        belt = (
            f'<body name="belt" pos="{_BELT_X} 0 0"><joint name="belt" type="slide" axis="0 1 0"/>'
            f'<geom type="box" size="{half} 2 {middle}" pos="0 0 {middle}" mass="1000" group="3" '
            'contype="0" conaffinity="4" friction="1.0 0.02 0.001"/></body>'
        )
        look = 'contype="0" conaffinity="0"'
        seen = (
            f'<geom type="box" size="{half} 0.6 {middle}" pos="{_BELT_X} 0 {middle}" '
            f'rgba="0.16 0.17 0.19 1" {look}/>'
        ) + "".join(
            f'<geom type="box" size="0.003 0.6 {middle + 0.001}" pos="{x} 0 {middle}" '
            f'rgba="0.75 0.77 0.80 1" {look}/>'
            for x in (_BELT_X - half, _BELT_X + half)
        )
        return "\n".join([belt, seen, *(cube_mjcf(c) for c in _COLOURS)])

    def start(self, rng: np.random.Generator) -> Array:
        tip = np.array(_MOTION.home) + rng.uniform([-0.02, -0.07, -0.02], [0.02, 0.07, 0.01])
        return _MOTION.start(tip, rng.uniform(0.2, 0.4))

    def reset(
        self,
        model: mujoco.MjModel,
        data: mujoco.MjData,
        rng: np.random.Generator,
        prompt: str | None,
    ) -> str:
        self.prompt = choose_prompt(self.prompts, rng, prompt)
        self._named = self.prompt.split()[2]
        others = [str(c) for c in rng.permutation(_COLOURS) if c != self._named][:2]
        self._other = others[0]
        self._cubes, self._belt = Cubes(model, data, _COLOURS), data.joint("belt")
        self._cubes.hide()
        self._way = float(rng.choice([-1.0, 1.0]))  # the belt moves towards +y or -y
        self._set_speed(rng.uniform(*self.speed))
        self._draw_change(rng)
        self._place(others, rng)
        self._time, self._event = 0.0, 0
        self._up = dict.fromkeys([self._named, *others], 0.0)
        self._lifted: set[str] = set()
        self._best = 0.0
        return self.prompt

    def _set_speed(self, speed: float) -> None:
        self._belt.qvel = self._way * speed

    def _draw_change(self, rng: np.random.Generator) -> None:
        # Drawn in any case, so that the seed means the same episode at every hardness.
        share, at, speed = rng.uniform(), rng.uniform(0.3, 2.5), rng.uniform(*self.speed)
        self._change = (at, speed) if share < self.change_probability else None

    def _place(self, others: list[str], rng: np.random.Generator) -> None:
        """The named cube upstream, the others before and behind it at random."""
        ahead = int(rng.integers(3))  # how many ride ahead of it
        along = -rng.uniform(0.10, 0.22)
        gaps = rng.uniform(self.gap, self.gap + 0.03, 2)
        offsets = {0: [-gaps[0], -gaps.sum()], 1: [gaps[0], -gaps[1]], 2: [gaps[0], gaps.sum()]}
        for colour, offset in zip([self._named, *others], [0.0, *offsets[ahead]], strict=True):
            x = _BELT_X + rng.uniform(-0.02, 0.02)
            place = np.array([x, self._way * (along + offset), _BELT_TOP + HALF])
            self._cubes.place(colour, place, rng.uniform(-self.yaw, self.yaw))
            self._cubes.push(colour, np.array([0.0, self._belt.qvel[0], 0.0]))

    def advance(self, model: mujoco.MjModel, data: mujoco.MjData, dt: float) -> None:
        self._time += dt
        if self._change is not None and self._time >= self._change[0]:
            if not self.muted:
                self._set_speed(self._change[1])
                self._event = round(self._time * 1e9)
            self._change = None
        for colour in self._up:
            height = self._cubes.position(colour)[2] - _BELT_TOP - HALF
            raised = height >= _LIFT and self._cubes.touched(colour)
            self._up[colour] = self._up[colour] + dt if raised else 0.0
            if self._up[colour] >= _LIFTED - 1e-9:
                self._lifted.add(colour)
        self._best = max(self._best, self._progress())

    def _progress(self) -> float:
        if self.success():
            return 1.0
        if not self._cubes.touched(self._named):
            return 0.0
        height = self._cubes.position(self._named)[2] - _BELT_TOP - HALF
        return 0.5 if height > 0.015 else 0.25

    def success(self) -> bool:
        return self._named in self._lifted

    def swapped_prompt(self) -> str:
        return f"take the {self._other} cube off the belt"

    def swapped_success(self) -> bool:
        return self._other in self._lifted and not self.success()

    def score(self) -> float:
        return self._best

    def done(self) -> bool:
        # Both, because a policy may have been told to take the other one.
        gone = [self._way * self._cubes.position(c)[1] > _END_Y for c in (self._named, self._other)]
        return self.success() or all(gone)

    def targets(self) -> Targets:
        return Targets(
            self._cubes.position(self._named)[None],
            self._cubes.velocity(self._named)[None],
            np.array([True]),
        )

    def foresee(self, targets: Targets, joints: Array, dt: float) -> Targets:
        return follow_first(_MOTION, targets, joints, dt)

    def plan_for(
        self, targets: Targets, position: Array, velocity: Array, steps: int, dt: float
    ) -> Array:
        x, y, z = targets.position[0].tolist()
        vx, vy, _ = targets.velocity[0].tolist()
        item = Item((x, y, z), (vx, vy))
        return grasp_plan(_MOTION, item, lambda *_: False, None, position, velocity, steps, dt)

    def event_ns(self) -> int | None:
        return self._event
