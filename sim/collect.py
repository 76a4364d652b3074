"""Rollouts labelled by the scripted expert.

At every step the expert plans a whole chunk from the present state, as if nothing else were to
happen: where the future is random, what comes later is no label for what is known now. What is
executed is another matter: the expert's own chunk with noise, or a policy's (DAgger), so that the
states cover what a policy will meet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from controller.bounds import check_range
from controller.types import Command, Observation
from sim.env import SimRobot
from sim.robots.so101 import Array

HORIZON = 32
TICKS = 4  # set-points per policy period

# A policy in process: an observation to its chunk, shape (H, A).
Infer = Callable[[Observation], NDArray[np.float32]]


@dataclass(frozen=True)
class Noise:
    """How far what is executed strays from the chunk.

    Attributes:
        wander: Standard deviation of an Ornstein-Uhlenbeck offset per joint [rad].
        correlation: Its time constant [steps].
        burst_every: Mean steps between bursts of a constant offset.
        burst_size: Standard deviation of a burst's offset [rad].
        burst_steps: Length of a burst [steps].
    """

    wander: float = 0.03
    correlation: float = 8.0
    burst_every: float = 60.0
    burst_size: float = 0.2
    burst_steps: int = 6


class Disturbance:
    """Draws the offset of each step."""

    def __init__(self, noise: Noise, rng: np.random.Generator) -> None:
        self._noise, self._rng = noise, rng
        # Some episodes are clean, some are rough.
        self._level = rng.uniform(0.0, 1.0)
        self._offset, self._burst, self._left = np.zeros(6), np.zeros(6), 0

    def step(self) -> Array:
        """Offset in action units. Shape (6,)."""
        noise, keep = self._noise, np.exp(-1.0 / self._noise.correlation)
        fresh = noise.wander * self._level * self._rng.normal(size=6)
        self._offset = keep * self._offset + np.sqrt(1 - keep * keep) * fresh
        if self._left == 0 and self._rng.uniform() < 1.0 / noise.burst_every:
            self._left = noise.burst_steps
            self._burst = noise.burst_size * self._rng.normal(size=6)
        bursting = self._left > 0
        self._left = max(0, self._left - 1)
        offset = self._offset + (self._burst if bursting else 0.0)
        # Wrist roll and gripper are disturbed less: large offsets there only drop things.
        return offset * np.array([1, 1, 1, 1, 0.5, 0.3])


def collect_episode(
    robot: SimRobot,
    seed: int,
    *,
    noise: Noise,
    infer: Infer | None = None,
    execute_steps: tuple[int, int] = (1, 6),
    delay: int = 0,
) -> tuple[dict[str, NDArray], bool]:
    """Runs one episode.

    Args:
        robot: The simulated arm with its task.
        seed: Seeds the episode and its disturbance.
        noise: Disturbance of what is executed.
        infer: The policy that drives; the expert when None.
        execute_steps: Least and greatest number of steps executed of each chunk, drawn anew.
        delay: Steps after its observation at which a chunk takes over; its actions until then
            are passed over, and the chunk before goes on. The first one begins at once.

    Returns:
        Arrays with one row per step, and whether the episode was a success:
        ``frames_<camera>`` (T, h, w, 3) uint8, ``state`` (T, S), ``chunk`` (T, HORIZON, A) the
        expert's plan, ``action`` (T, A) what was executed, ``uv`` (T, C, R, 2) and ``inside``
        (T, C, R) where the targets are in each picture, ``position`` and ``velocity`` (T, R, 3),
        ``visible`` (T, R).

    Raises:
        OnsetError: BAD_VALUE: a chunk would end before the one after it takes over.
    """
    check_range("delay", delay, 0, (HORIZON - execute_steps[1]) // 2)
    rng = np.random.default_rng([seed, 1])
    robot.reset(seed)
    task, period = robot.task, robot.spec.period_ns
    disturbance = Disturbance(noise, rng)
    rows: dict[str, list] = {}
    setpoint, chunk, began, takes_over, run = robot.position, np.empty((0, 6)), 0, 0, 0
    coming: tuple[int, NDArray] | None = None
    for step in range(task.steps):
        plan = plan_now(robot)
        row = label(robot, plan)
        if coming is None and step >= takes_over + run:
            run = int(rng.integers(execute_steps[0], execute_steps[1] + 1))
            made = plan if infer is None else infer(_observation(robot, rows, row, step))
            coming, takes_over = (step, made), step + (delay if step else 0)
        if coming is not None and step >= takes_over:
            (began, chunk), coming = coming, None
        action = np.clip(
            chunk[step - began] + disturbance.step(),
            robot.spec.action_lower,
            robot.spec.action_upper,
        )
        row["action"] = action.astype(np.float32)
        for name, value in row.items():
            rows.setdefault(name, []).append(value)
        for tick in range(1, TICKS + 1):
            robot.write(Command(0, setpoint + (action - setpoint) * tick / TICKS))
            robot.advance_to(step * period + tick * period // TICKS)
        setpoint = action
        if task.done():
            break
    return {name: np.stack(values) for name, values in rows.items()}, task.success()


def plan_now(robot: SimRobot) -> Array:
    """The expert's chunk from the present state. Shape (HORIZON, A)."""
    return robot.task.plan(robot.position, robot.velocity, HORIZON, robot.spec.period_ns * 1e-9)


def label(robot: SimRobot, plan: Array) -> dict[str, NDArray]:
    """What is seen and measured now, beside the expert's plan: a row without ``action``."""
    reading, targets = robot.read(), robot.task.targets()
    seen = [robot.project(c.name, targets.position) for c in robot.spec.cameras]
    return {
        "state": reading.state,
        "chunk": plan.astype(np.float32),
        **{f"frames_{name}": frame for name, frame in reading.frames.items()},
        "uv": np.stack([uv for uv, _ in seen]).astype(np.float32),
        "inside": np.stack([inside & targets.visible for _, inside in seen]),
        "position": targets.position.astype(np.float32),
        "velocity": targets.velocity.astype(np.float32),
        "visible": targets.visible,
    }


def _observation(robot: SimRobot, rows: dict, row: dict, step: int) -> Observation:
    frames = {}
    for camera in robot.spec.cameras:
        name = f"frames_{camera.name}"
        past = [*rows.get(name, []), row[name]]
        frames[camera.name] = np.stack([past[max(0, step - lag)] for lag in camera.lags])
    return Observation(
        id=step,
        step=step,
        capture_ns=step * robot.spec.period_ns,
        state=row["state"],
        frames=frames,
        committed=np.empty((0, 6), np.float32),
        planned=np.empty((0, 6), np.float32),
        delay=0,
        deadline_ns=0,
        prompt=robot.prompt,
    )


def write_shard(path: Path, episodes: list[tuple[dict[str, NDArray], str]]) -> None:
    """Joins episodes and their instructions into one ``.npz`` without pickled objects.

    Beside the arrays of ``collect_episode``: ``length`` (episodes,) and ``prompt`` (episodes,).
    """
    arrays = {name: np.concatenate([e[name] for e, _ in episodes]) for name in episodes[0][0]}
    arrays["length"] = np.array([len(e["state"]) for e, _ in episodes])
    arrays["prompt"] = np.array([prompt for _, prompt in episodes])
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".tmp.npz")
    np.savez(fresh, allow_pickle=False, **arrays)
    fresh.replace(path)
