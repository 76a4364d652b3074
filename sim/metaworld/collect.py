"""Rollouts of Meta-World's experts, with stretches in which something else drives.

Meta-World's experts say one step at a time, and act at once on what they see. So what an expert
does *is* its plan, as long as nobody disturbs it; only the end of a stretch is filled up by a plan
on a copy of the physics. A stretch in which noise or a policy drives leaves no rows, but a place
from which the expert has to go on::

    drives    |-- expert --|= disturbance =|-- expert --|== policy ==|-- expert --
    rows      |------------|               |------------|            |------------
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from controller.types import Command, Observation
from sim.collect import Infer
from sim.metaworld.hand import TICK_NS, TICKS, to_set_point
from sim.metaworld.robot import MetaWorldRobot

HORIZON = 16  # actions in a chunk: 0.8 s


@dataclass(frozen=True)
class Stretches:
    """How long who drives, in policy steps; each time drawn anew.

    Attributes:
        expert: Least and greatest length of a stretch of the expert.
        push: Of one in which the expert's way is bent into a random direction.
        policy: Of one in which a policy drives, where there is one.
        strength: Greatest bend along each axis, as a share of the fastest motion.
        clean: Share of episodes in which the expert alone drives, where there is no policy.
    """

    expert: tuple[int, int] = (4, 16)
    push: tuple[int, int] = (2, 6)
    policy: tuple[int, int] = (4, 24)
    strength: float = 1.5
    clean: float = 0.3


Rows = dict[str, NDArray]


def collect_episode(
    robot: MetaWorldRobot,
    seed: int,
    *,
    stretches: Stretches,
    infer: Infer | None = None,
    execute_steps: int = 4,
) -> tuple[list[Rows], bool]:
    """Runs one episode.

    Args:
        robot: A task of Meta-World.
        seed: Seeds the episode and who drives when.
        stretches: How long who drives.
        infer: A policy that drives in place of the random pushes.
        execute_steps: Actions executed of each of its chunks.

    Returns:
        The arrays of each of the expert's stretches, as ``sim.collect.collect_episode`` describes
        them, with R = 2 targets, the object and the goal; and whether the episode was a success.
    """
    rng = np.random.default_rng([seed, 1])
    robot.reset(seed)
    driver = _Driver(robot, stretches, rng, infer, execute_steps)
    clean = infer is None and rng.uniform() < stretches.clean
    parts: list[Rows] = []
    if not clean and rng.uniform() < 0.5:
        driver.disturb()
    while not driver.over:
        length = robot.task.steps if clean else _draw(stretches.expert, rng)
        if (rows := driver.demonstrate(length)) is not None:
            parts.append(rows)
        driver.disturb()
    return parts, robot.task.success()


class _Driver:
    """Drives an episode, stretch by stretch."""

    def __init__(
        self,
        robot: MetaWorldRobot,
        stretches: Stretches,
        rng: np.random.Generator,
        infer: Infer | None,
        execute_steps: int,
    ) -> None:
        self._robot, self._stretches, self._rng = robot, stretches, rng
        self._infer, self._execute_steps = infer, execute_steps
        self._step = 0

    @property
    def over(self) -> bool:
        return self._robot.task.done() or self._step >= self._robot.task.steps

    def demonstrate(self, length: int) -> Rows | None:
        """The expert drives for at most so many policy steps."""
        world, rows = self._robot.world, {}
        while not self.over and length:
            row = self._look()
            effort = 0.0
            for _ in range(TICKS):
                action = world.expert_action()
                effort = action[3]
                world.step(action)
            row["action"] = to_set_point(world.point, effort).astype(np.float32)
            for name, value in row.items():
                rows.setdefault(name, []).append(value)
            self._step, length = self._step + 1, length - 1
        if not rows:
            return None
        done = np.stack(rows["action"])
        path = np.concatenate([done, world.plan(HORIZON).astype(np.float32)])
        rows["chunk"] = [path[i : i + HORIZON] for i in range(len(done))]
        return {name: np.stack(values) for name, values in rows.items()}

    def disturb(self) -> None:
        """Something else drives for a while."""
        if self._infer is not None:
            self._follow(self._infer, _draw(self._stretches.policy, self._rng))
            return
        bend = self._rng.uniform(-1, 1, 3) * self._stretches.strength
        for _ in range(_draw(self._stretches.push, self._rng)):
            if self.over:
                return
            for _ in range(TICKS):
                action = self._robot.world.expert_action()
                action[:3] = np.clip(action[:3] + bend, -1, 1)
                self._robot.world.step(action)
            self._step += 1

    def _follow(self, infer: Infer, length: int) -> None:
        robot, used, chunk = self._robot, self._execute_steps, np.empty((0, 4))
        point = np.append(robot.world.point, robot.position[3])
        while not self.over and length:
            if used == self._execute_steps:
                chunk, used = infer(self._observation()), 0
            target = np.clip(chunk[used], robot.spec.action_lower, robot.spec.action_upper)
            for tick in range(1, TICKS + 1):
                robot.write(Command(0, point + (target - point) * tick / TICKS))
                robot.advance_to((robot.world.ticks + 1) * TICK_NS)
            point = target
            used, length, self._step = used + 1, length - 1, self._step + 1

    def _look(self) -> dict[str, NDArray]:
        """What there is to see and to know at the beginning of a step."""
        robot, reading, targets = self._robot, self._robot.read(), self._robot.task.targets()
        row: dict[str, NDArray] = {"state": reading.state}
        row |= {f"frames_{name}": frame for name, frame in reading.frames.items()}
        seen = [robot.project(c.name, targets.position) for c in robot.spec.cameras]
        row["uv"] = np.stack([uv for uv, _ in seen]).astype(np.float32)
        row["inside"] = np.stack([inside for _, inside in seen])
        row["position"] = targets.position.astype(np.float32)
        row["velocity"] = targets.velocity.astype(np.float32)
        row["visible"] = targets.visible
        return row

    def _observation(self) -> Observation:
        reading = self._robot.read()
        nothing = np.empty((0, 4), np.float32)
        return Observation(
            id=self._step,
            step=self._step,
            capture_ns=reading.capture_ns,
            state=reading.state,
            frames={name: frame[None] for name, frame in reading.frames.items()},
            committed=nothing,
            planned=nothing,
            delay=0,
            deadline_ns=0,
            prompt=self._robot.prompt,
        )


def _draw(span: tuple[int, int], rng: np.random.Generator) -> int:
    return int(rng.integers(span[0], span[1] + 1))
