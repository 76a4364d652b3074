"""Trains the built-in policy for one task: collect, train, DAgger rounds, ship.

Every stage writes to its folder under runs/ and is passed over when it is done, so that an
interrupted run goes on where it was.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
from dataclasses import dataclass, field
from pathlib import Path

import torch
import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from controller.types import Observation
from sim.collect import HORIZON, Noise, collect_episode, write_shard
from sim.env import SimRobot
from sim.robots import so101
from sim.task import Task, make_task
from vla.checkpoint import WEIGHTS, PolicyMeta, load_checkpoint, save_checkpoint
from vla.engine import Engine
from vla.models.small import SmallVLAConfig
from vla.train.data import Demonstrations
from vla.train.loop import TrainConfig, Trainer
from vla.transforms import Tokeniser

CONSOLE = Console()
SHARD = 40  # episodes in a shard
FIRST_SEED = 1_000_000  # evaluation seeds are below


@dataclass(frozen=True)
class Args:
    """Trains the built-in policy for one task.

    Attributes:
        task: whack, intercept, conveyor or pick_place.
        episodes: Expert episodes of the first round.
        rounds: DAgger rounds: the policy drives, the expert labels.
        round_episodes: Episodes of each round.
        first: Steps on the first round's data, before the first DAgger round.
        workers: Processes that collect.
        threads: CPU threads of the optimiser.
        device: cpu or cuda.
        out: Folder of the run.
        ship: Copy the result into the bundled weights.
        train: Optimiser settings.
    """

    task: str
    episodes: int = 400
    rounds: int = 3
    round_episodes: int = 120
    first: int = 1500
    workers: int = 2
    threads: int = 2
    device: str = "cpu"
    out: Path = Path("runs")
    ship: bool = True
    train: TrainConfig = field(default_factory=TrainConfig)


def main(args: Args) -> None:
    folder = args.out / args.task
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    (folder / "args.json").write_text(json.dumps(dataclasses.asdict(args), default=str, indent=1))
    meta = make_meta(make_task(args.task))
    model = meta.model
    lags = {c.name: c.lags for c in so101.spec(model.cameras, make_task(args.task).lags).cameras}

    collect(args, folder, 0, args.episodes, None)
    data = Demonstrations(model.cameras, lags)
    read(data, folder, 0)
    relative = torch.tensor([1.0] * 5 + [0.0])
    # Scales come from the first round only: later rounds must not move the model's units.
    normaliser = data.fit(relative)
    trainer = Trainer(meta, args.train, data, normaliser, folder, torch.device(args.device))
    if trainer.resume():
        CONSOLE.print(f"resumed {folder} at step {trainer.step}")
    for number in range(args.rounds + 1):
        rest = args.train.steps - args.first
        until = args.first + rest * number // max(1, args.rounds)
        if number:
            collect(args, folder, number, args.round_episodes, folder / "policy.safetensors")
            read(data, folder, number)
        if number == args.rounds:
            until = args.train.steps
        if trainer.step < until:
            fit(trainer, until)
    if args.ship:
        path = WEIGHTS / f"{args.task}.safetensors"
        save_checkpoint(path, meta, trainer.average, normaliser)
        log = WEIGHTS / f"{args.task}.log.jsonl"
        log.write_text((folder / "log.jsonl").read_text())
        CONSOLE.print(f"wrote {path}, {path.with_suffix('.json')} and {log}")


def make_meta(task: Task) -> PolicyMeta:
    """The built-in policy's description for a task."""
    spec = so101.spec(task.cameras, task.lags)
    tokens = Tokeniser.of(task.prompts)
    config = SmallVLAConfig(
        cameras=task.cameras,
        lags=tuple(len(c.lags) for c in spec.cameras),
        image_size=spec.cameras[0].height,
        horizon=HORIZON,
        state_dim=len(spec.state),
        action_dim=len(spec.action),
        words=len(tokens.vocabulary) + 1,
        max_words=tokens.max_words,
        readouts=task.targets_count,
    )
    return PolicyMeta(
        name=f"small-{task.name}",
        model=config,
        prompts=task.prompts,
        robot=spec,
    )


def collect(args: Args, folder: Path, number: int, episodes: int, policy: Path | None) -> None:
    """Fills one round's folder with shards; those that exist are kept."""
    jobs = []
    for shard in range(-(-episodes // SHARD)):
        path = folder / "data" / f"round{number}_{shard:03d}.npz"
        if not path.is_file():
            first = FIRST_SEED + 100_000 * number + shard * SHARD
            count = min(SHARD, episodes - shard * SHARD)
            jobs.append((args.task, path, first, count, policy))
    if not jobs:
        return
    won = total = 0
    who = "expert" if policy is None else "policy"
    with bar(f"round {number}: {who} drives") as progress:
        row = progress.add_task("", total=len(jobs), note="")
        with multiprocessing.get_context("spawn").Pool(args.workers) as pool:
            for wins, count in pool.imap_unordered(_collect_shard, jobs):
                won, total = won + wins, total + count
                progress.update(row, advance=1, note=f"success {won / total:.2f}")
    CONSOLE.print(f"round {number}: {total} episodes, {who} drove, success {won / total:.3f}")


def _collect_shard(job: tuple[str, Path, int, int, Path | None]) -> tuple[int, int]:
    name, path, first, count, policy = job
    torch.set_num_threads(1)
    robot = SimRobot(make_task(name))
    engine = None if policy is None else Engine(load_checkpoint(policy))

    def infer(observation: Observation):
        return engine.chunk(observation, robot.prompt)

    episodes, won = [], 0
    for seed in range(first, first + count):
        rows, success = collect_episode(
            robot, seed, noise=Noise(), infer=None if engine is None else infer
        )
        episodes.append((rows, robot.prompt))
        won += success
    write_shard(path, episodes)
    robot.close()
    return won, count


def read(data: Demonstrations, folder: Path, number: int) -> None:
    for shard in sorted((folder / "data").glob(f"round{number}_*.npz")):
        data.add(shard)
    CONSOLE.print(f"{len(data)} frames in memory")


def fit(trainer: Trainer, until: int) -> None:
    with bar("training") as progress:
        row = progress.add_task("", total=until, completed=trainer.step, note="")

        def report(step: int, figures: dict[str, float]) -> None:
            note = "  ".join(f"{name} {value:.3g}" for name, value in figures.items())
            progress.update(row, completed=step, note=note)
            if step % 100 == 0:
                progress.console.print(f"step {step}: {note}")

        trainer.run(until, report)


def bar(title: str) -> Progress:
    return Progress(
        TextColumn(title),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=CONSOLE,
    )


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
