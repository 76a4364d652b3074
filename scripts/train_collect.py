"""What the built-in policies learn from: episodes as shards, and the expert's later plans."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from scripts.evaluate_cases import hardness_options
from scripts.train_stages import CONSOLE, bar
from sim.collect import HORIZON, Infer, Noise, collect_episode, write_shard
from sim.env import SimRobot
from sim.robots import so101
from sim.task import Targets, Task
from sim.tasks import make_task
from vla.checkpoint import load_checkpoint
from vla.engine import Engine
from vla.train.data import Replan

SHARD = 40  # episodes in a shard
FIRST_SEED = 1_000_000  # evaluation seeds are below


@dataclass(frozen=True)
class Collector:
    """Fills a run's folder with episodes, round by round.

    Attributes:
        task: The task's name.
        hardness: Its parameters, as name=value.
        folder: The run's; shards are in its folder ``data``.
        most_delay: Greatest delay with which who drives acts [steps]; see ``episode_delay``.
        workers: Processes.
    """

    task: str
    hardness: tuple[str, ...]
    folder: Path
    most_delay: int
    workers: int

    def collect(self, number: int, episodes: int, policy: Path | None) -> None:
        """Fills one round; shards that exist are kept.

        Args:
            number: The round's.
            episodes: How many.
            policy: Who drives, by name or path; the expert when None.
        """
        jobs = []
        for shard in range(-(-episodes // SHARD)):
            path = self.folder / "data" / f"round{number}_{shard:03d}.npz"
            if not path.is_file():
                first = FIRST_SEED + 100_000 * number + shard * SHARD
                seeds = range(first, first + min(SHARD, episodes - shard * SHARD))
                jobs.append((self, path, seeds, policy))
        if not jobs:
            return
        won = total = 0
        who = "expert" if policy is None else "policy"
        with bar(f"round {number}: {who} drives") as progress:
            row = progress.add_task("", total=len(jobs), note="")
            with multiprocessing.get_context("spawn").Pool(self.workers) as pool:
                for wins, count in pool.imap_unordered(_collect_shard, jobs):
                    won, total = won + wins, total + count
                    progress.update(row, advance=1, note=f"success {won / total:.2f}")
        CONSOLE.print(f"round {number}: {total} episodes, {who} drove, success {won / total:.3f}")


def _collect_shard(job: tuple[Collector, Path, range, Path | None]) -> tuple[int, int]:
    collector, path, seeds, policy = job
    torch.set_num_threads(1)
    name = collector.task
    robot = SimRobot(make_task(name, **hardness_options(name, collector.hardness)))
    infer = None if policy is None else _infer(Engine(load_checkpoint(policy)), robot)
    episodes, won = [], 0
    for seed in seeds:
        delay = episode_delay(seed, collector.most_delay)
        rows, success = collect_episode(robot, seed, noise=Noise(), infer=infer, delay=delay)
        episodes.append((rows, robot.prompt))
        won += success
    write_shard(path, episodes)
    robot.close()
    return won, len(seeds)


def episode_delay(seed: int, most: int) -> int:
    """An episode's delay [steps]: of the greatest only an episode with all of it teaches."""
    return most if seed % 2 else int(np.random.default_rng([seed, 2]).integers(most + 1))


def _infer(engine: Engine, robot: SimRobot) -> Infer:
    return lambda observation: engine.chunk(observation, robot.prompt)


def make_replan(task: Task, period_s: float) -> Replan:
    """The expert's plans from where the arm has come to, of a scene that was seen before."""
    dims = len(so101.JOINTS)

    def replan(
        position: NDArray, velocity: NDArray, visible: NDArray, paths: Sequence[NDArray]
    ) -> NDArray:
        if task.batched:
            age_s = np.array([len(path) - 1 for path in paths]) * period_s
            targets = Targets(position, velocity, visible).later(age_s)
            state = np.stack([path[-1] for path in paths])
            return task.plan_for(targets, state[:, :dims], state[:, dims:], HORIZON, period_s)
        plans = []
        for *scene, path in zip(position, velocity, visible, paths, strict=True):
            joints = path[:, :dims].astype(float)
            targets = task.foresee(Targets(*scene), joints, period_s)
            plan = task.plan_for(targets, joints[-1], path[-1, dims:], HORIZON, period_s)
            plans.append(plan)
        return np.stack(plans)

    return replan
