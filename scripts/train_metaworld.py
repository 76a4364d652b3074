"""Trains one built-in policy for several of Meta-World's tasks, told apart by the instruction.

Expert demonstrations with pushes first; then rounds in which the policy drives for a while and the
expert goes on from where it has come to (``sim/metaworld/collect.py``).
"""

from __future__ import annotations

import dataclasses
import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from controller.errors import ErrorCode, OnsetError
from scripts.results import code_commit
from scripts.train_stages import CONSOLE, bar, fit, read, resumed, ship
from sim.collect import Infer, write_shard
from sim.metaworld import hand
from sim.metaworld.collect import HORIZON, Stretches, collect_episode
from sim.metaworld.robot import MetaWorldRobot, MetaWorldTask, prompt_of
from sim.metaworld.world import check_tasks
from vla.checkpoint import PolicyMeta, load_checkpoint
from vla.engine import Engine
from vla.models.small import SmallVLAConfig
from vla.train.data import Demonstrations
from vla.train.loop import TrainConfig, Trainer
from vla.transforms import Tokeniser

NAME = "metaworld"
SHARD = 20  # episodes in a shard
FIRST_SEED = 1_000_000  # evaluation seeds are below


@dataclass(frozen=True)
class Recipe:
    """How much of what.

    Attributes:
        episodes: Expert episodes of each task.
        rounds: Rounds in which the policy drives, too.
        round_episodes: Episodes of each task in each of them.
        first: Steps on the expert's data alone.
        steps: Steps in all; the rest is shared by the rounds.
    """

    episodes: int = 120
    rounds: int = 3
    round_episodes: int = 40
    first: int = 1500
    steps: int = 4500


@dataclass(frozen=True)
class Run:
    """Where and how a recipe is carried out.

    Attributes:
        tasks: Meta-World's names of the tasks.
        folder: Of the run; what is there is gone on with.
        workers: Processes that collect.
        threads: CPU threads of the optimiser.
        device: cpu or cuda.
        ship: Copy the result into the bundled weights.
        train: Settings; the steps come from the recipe.
    """

    tasks: tuple[str, ...]
    folder: Path
    workers: int
    threads: int
    device: str
    ship: bool
    train: TrainConfig


@dataclass(frozen=True)
class _Job:
    task: str
    path: Path
    first: int
    count: int
    policy: Path | None


def train(run: Run, recipe: Recipe) -> None:
    """Collects, trains and ships; every stage is passed over when it is done.

    Raises:
        OnsetError: A task is unknown or named twice, or Meta-World is not installed.
    """
    check_tasks(run.tasks)
    if len(set(run.tasks)) != len(run.tasks):
        raise OnsetError(ErrorCode.BAD_VALUE, "tasks", list(run.tasks), "each task once")
    commit = code_commit()
    torch.set_num_threads(run.threads)
    run.folder.mkdir(parents=True, exist_ok=True)
    meta = make_meta(run.tasks)

    collect(run, 0, recipe.episodes, None)
    lags = {c.name: c.lags for c in meta.robot.cameras}
    data = Demonstrations(meta.model.cameras, lags, meta.robot.period_ns * 1e-9)
    read(data, run.folder, 0)
    # As of our own tasks: the gripper is absolute, the hand's actions relative to where it is.
    relative = torch.tensor([0.0 if d.unit == "1" else 1.0 for d in meta.robot.action])
    normaliser = data.fit(relative)
    config = dataclasses.replace(run.train, steps=recipe.steps)
    trainer = Trainer(meta, config, data, normaliser, run.folder, torch.device(run.device))
    resumed(trainer)
    for number in range(recipe.rounds + 1):
        if number:
            collect(run, number, recipe.round_episodes, run.folder / "policy.safetensors")
            read(data, run.folder, number)
        rest = recipe.steps - recipe.first
        last = number == recipe.rounds
        until = recipe.steps if last else recipe.first + rest * number // recipe.rounds
        if trainer.step < until:
            fit(trainer, until)
    if run.ship:
        ship(NAME, trainer, {"flow": run.folder / "log.jsonl"}, commit)


def make_meta(tasks: Sequence[str]) -> PolicyMeta:
    """The policy's description for some tasks."""
    spec, prompts = hand.spec(), tuple(prompt_of(name) for name in tasks)
    tokens = Tokeniser.of(prompts)
    config = SmallVLAConfig(
        cameras=hand.CAMERAS,
        lags=tuple(len(c.lags) for c in spec.cameras),
        image_size=hand.IMAGE_SIZE,
        patch=8,
        width=96,
        horizon=HORIZON,
        state_dim=len(spec.state),
        action_dim=len(spec.action),
        words=len(tokens.vocabulary) + 1,
        max_words=tokens.max_words,
        readouts=MetaWorldTask.targets_count,
    )
    return PolicyMeta(name=f"small-{NAME}", model=config, prompts=prompts, robot=spec)


def collect(run: Run, number: int, episodes: int, policy: Path | None) -> None:
    """Fills one round's folder with shards of every task; those that exist are kept."""
    jobs = []
    for task in run.tasks:
        for shard in range(-(-episodes // SHARD)):
            path = run.folder / "data" / f"round{number}_{task}_{shard:03d}.npz"
            first = FIRST_SEED + 100_000 * number + shard * SHARD
            if not path.is_file():
                count = min(SHARD, episodes - shard * SHARD)
                jobs.append(_Job(task, path, first, count, policy))
    if not jobs:
        return
    won = dict.fromkeys(run.tasks, 0)
    with bar(f"round {number}") as progress:
        row = progress.add_task("", total=len(jobs), note="")
        with multiprocessing.get_context("spawn").Pool(run.workers) as pool:
            for job, wins in zip(jobs, pool.imap(_collect_shard, jobs), strict=True):
                won[job.task] += wins
                progress.update(row, advance=1, note=job.task)
    # With pushes, or a policy that drives at times: it measures neither.
    CONSOLE.print(f"round {number}: episodes that ended in success: {won}")


def _collect_shard(job: _Job) -> int:
    torch.set_num_threads(1)
    robot = MetaWorldRobot(MetaWorldTask(job.task))
    infer = None if job.policy is None else _infer(Engine(load_checkpoint(job.policy)), robot)
    parts, won = [], 0
    for seed in range(job.first, job.first + job.count):
        stretches, success = collect_episode(robot, seed, stretches=Stretches(), infer=infer)
        parts += [(rows, robot.prompt) for rows in stretches]
        won += success
    write_shard(job.path, parts)
    robot.close()
    return won


def _infer(engine: Engine, robot: MetaWorldRobot) -> Infer:
    return lambda observation: engine.chunk(observation, robot.prompt)
