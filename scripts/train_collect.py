"""Episodes to train from, in shards: the expert's, and those in which a policy drives (DAgger)."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from controller.robot_file import load_robot
from controller.strategy import STRATEGIES
from scripts.delay_matrix_cells import Cell, forecaster_of, make_way
from scripts.evaluate_cases import hardness_options
from scripts.train_stages import CONSOLE, bar
from sim.collect import Infer, Noise, collect_episode, write_shard
from sim.collect_served import collect_served
from sim.env import SimRobot
from sim.tasks import make_task
from vla.checkpoint import Checkpoint, load_checkpoint
from vla.chunking import ChunkMemory
from vla.engine import Engine

SHARD = 40  # episodes in a shard
FIRST_SEED = 1_000_000  # evaluation seeds are below
LIMITS = "so101-sim"  # of a policy that drives as it is served

# A seed and a delay [steps] to an episode's rows, and whether it was a success.
Drive = Callable[[int, int], tuple[dict[str, NDArray], bool]]


@dataclass(frozen=True)
class Driving:
    """How episodes are collected.

    Attributes:
        task: The task.
        hardness: Its parameters, as name=value.
        delay: Greatest delay of a policy that drives [steps], drawn anew for each episode.
        strategy: Under which it is served; none: from action to action, disturbed.
        workers: Processes.
    """

    task: str
    hardness: tuple[str, ...]
    delay: int
    strategy: str
    workers: int


@dataclass(frozen=True)
class _Job:
    driving: Driving
    path: Path
    first: int
    count: int
    policy: Path | None


def collect(
    driving: Driving, folder: Path, number: int, episodes: int, policy: Path | None
) -> None:
    """Fills one round's folder with shards; those that exist are kept.

    Args:
        driving: How.
        folder: Of the run.
        number: The round; each has its own seeds.
        episodes: How many.
        policy: Who drives; the expert when None.
    """
    jobs = []
    for shard in range(-(-episodes // SHARD)):
        path = folder / "data" / f"round{number}_{shard:03d}.npz"
        if not path.is_file():
            first = FIRST_SEED + 100_000 * number + shard * SHARD
            jobs.append(_Job(driving, path, first, min(SHARD, episodes - shard * SHARD), policy))
    if not jobs:
        return
    won = total = 0
    who = "expert" if policy is None else "policy"
    with bar(f"round {number}: {who} drives") as progress:
        row = progress.add_task("", total=len(jobs), note="")
        with multiprocessing.get_context("spawn").Pool(driving.workers) as pool:
            for wins, count in pool.imap_unordered(_collect_shard, jobs):
                won, total = won + wins, total + count
                progress.update(row, advance=1, note=f"success {won / total:.2f}")
    CONSOLE.print(f"round {number}: {total} episodes, {who} drove, success {won / total:.3f}")


def _collect_shard(job: _Job) -> tuple[int, int]:
    torch.set_num_threads(1)
    driving, most = job.driving, 0 if job.policy is None else job.driving.delay
    policy = None if job.policy is None else load_checkpoint(job.policy)
    task = make_task(driving.task, **hardness_options(driving.task, driving.hardness))
    # A policy sees the frames that it knows, which may be fewer than one to come will see.
    robot = SimRobot(task, None if policy is None else policy.meta.robot)
    if policy is not None and driving.strategy:
        drive = _as_served(robot, policy, driving.strategy)
    else:
        drive = _from_action_to_action(robot, policy)
    episodes, won = [], 0
    for seed in range(job.first, job.first + job.count):
        rows, success = drive(seed, int(np.random.default_rng([seed, 2]).integers(most + 1)))
        episodes.append((rows, robot.prompt))
        won += success
    write_shard(job.path, episodes)
    robot.close()
    return won, job.count


def _from_action_to_action(robot: SimRobot, policy: Checkpoint | None) -> Drive:
    infer = None if policy is None else _infer(Engine(policy), robot)
    return lambda seed, delay: collect_episode(robot, seed, noise=Noise(), infer=infer, delay=delay)


def _infer(engine: Engine, robot: SimRobot) -> Infer:
    return lambda observation: engine.chunk(observation, robot.prompt)


def _as_served(robot: SimRobot, policy: Checkpoint, name: str) -> Drive:
    strategy, cell = STRATEGIES[name], Cell("", name, 0, robot=LIMITS)
    engine = Engine(policy, schedule=cell.schedule, expert_steps=cell.expert_steps)
    forecaster, limits = forecaster_of(name, robot), load_robot(LIMITS).limits

    def drive(seed: int, delay: int) -> tuple[dict[str, NDArray], bool]:
        memory = ChunkMemory(forecaster)
        way = make_way(replace(cell, delay=delay), strategy, (0.0, 0.0), robot.spec.period_ns)
        return collect_served(
            robot,
            lambda observation: engine.stream(observation, robot.prompt, strategy, memory),
            seed,
            latency=way.latency,
            config=way.config,
            forecaster=forecaster,
            limits=limits,
        )

    return drive
