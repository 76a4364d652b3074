"""Episodes to train from, in shards: the expert's, and those in which a policy drives (DAgger)."""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from scripts.evaluate_cases import hardness_options
from scripts.train_stages import CONSOLE, bar
from sim.collect import Infer, Noise, collect_episode, write_shard
from sim.env import SimRobot
from sim.tasks import make_task
from vla.checkpoint import load_checkpoint
from vla.engine import Engine

SHARD = 40  # episodes in a shard
FIRST_SEED = 1_000_000  # evaluation seeds are below


@dataclass(frozen=True)
class Driving:
    """How episodes are collected.

    Attributes:
        task: The task.
        hardness: Its parameters, as name=value.
        delay: Greatest delay of a policy that drives [steps], drawn anew for each episode.
        workers: Processes.
    """

    task: str
    hardness: tuple[str, ...]
    delay: int
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
    robot = SimRobot(make_task(driving.task, **hardness_options(driving.task, driving.hardness)))
    infer = None if job.policy is None else _infer(Engine(load_checkpoint(job.policy)), robot)
    episodes, won = [], 0
    for seed in range(job.first, job.first + job.count):
        delay = int(np.random.default_rng([seed, 2]).integers(most + 1))
        rows, success = collect_episode(robot, seed, noise=Noise(), infer=infer, delay=delay)
        episodes.append((rows, robot.prompt))
        won += success
    write_shard(job.path, episodes)
    robot.close()
    return won, job.count


def _infer(engine: Engine, robot: SimRobot) -> Infer:
    return lambda observation: engine.chunk(observation, robot.prompt)
