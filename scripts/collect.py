"""Collects expert episodes with noise injected, as a LeRobotDataset v3.

With ``--suite metaworld`` the episodes are the stretches of Meta-World's experts between random
pushes (``sim/metaworld/collect.py``), of one or more tasks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from controller.errors import ErrorCode, OnsetError
from controller.types import RobotSpec
from scripts.evaluate_suite import tasks_of
from sim.collect import HORIZON, Noise, collect_episode
from sim.dataset import write_dataset
from sim.env import SimRobot
from sim.metaworld import collect as metaworld
from sim.metaworld import hand
from sim.metaworld.collect import Stretches
from sim.metaworld.robot import MetaWorldRobot, MetaWorldTask
from sim.tasks import make_task

CONSOLE = Console()

Episode = tuple[dict[str, NDArray], str]  # rows and instruction
Episodes = Iterator[tuple[list[Episode], bool]]  # what is kept of an episode, and its success


@dataclass(frozen=True)
class Args:
    """Collects expert episodes with noise injected, as a LeRobotDataset v3.

    Attributes:
        out: Folder of the dataset; it must not exist yet.
        task: whack, intercept, conveyor or pick_place.
        suite: onset for one of our tasks, metaworld for some of Meta-World's.
        tasks: Meta-World's tasks, e.g. reach-v3 push-v3.
        episodes: Episodes to collect of each task.
        seed: Seed of the first one.
        repo_id: Name of the dataset; onset/<task or suite> by default.
        videos: H.264 videos; --no-videos writes lossless images.
        failures: Keep episodes in which the noise made the expert fail; their labels are as good.
        noise: Disturbance of what is executed, of our tasks.
        stretches: How long Meta-World's experts drive, and what pushes them.
    """

    out: Path
    task: str = ""
    suite: Literal["onset", "metaworld"] = "onset"
    tasks: tuple[str, ...] = ()
    episodes: int = 50
    seed: int = 2_000_000
    repo_id: str | None = None
    videos: bool = True
    failures: bool = True
    noise: Noise = field(default_factory=Noise)
    stretches: Stretches = field(default_factory=Stretches)


def main(args: Args) -> None:
    tasks = tasks_of(args.suite, args.task, args.tasks, ())
    unused = ("stretches", Stretches()) if args.suite == "onset" else ("noise", Noise())
    if getattr(args, unused[0]) != unused[1]:
        raise OnsetError(ErrorCode.BAD_VALUE, unused[0], getattr(args, unused[0]), "the default")
    if args.suite == "onset":
        spec, horizon, episodes = _ours(args)
    else:
        spec, horizon, episodes = _metaworld(args, tasks)
    won = 0

    def kept() -> Iterator[Episode]:
        nonlocal won
        total = len(tasks) * args.episodes
        for parts, success in track(episodes, args.out.name, total, console=CONSOLE):
            won += success
            if success or args.failures:
                yield from parts

    name = args.repo_id or f"onset/{args.task or args.suite}"
    frames = write_dataset(args.out, name, spec, horizon, kept(), videos=args.videos)
    total = len(tasks) * args.episodes
    CONSOLE.print(f"wrote {args.out}: {frames} frames of {total} episodes, {won} successful")


def _ours(args: Args) -> tuple[RobotSpec, int, Episodes]:
    robot = SimRobot(make_task(args.task))

    def episodes() -> Episodes:
        for seed in range(args.seed, args.seed + args.episodes):
            rows, success = collect_episode(robot, seed, noise=args.noise)
            yield [(rows, robot.prompt)], success

    return robot.spec, HORIZON, episodes()


def _metaworld(args: Args, tasks: tuple[str, ...]) -> tuple[RobotSpec, int, Episodes]:
    def episodes() -> Episodes:
        for task in tasks:
            robot = MetaWorldRobot(MetaWorldTask(task))
            for seed in range(args.seed, args.seed + args.episodes):
                parts, success = metaworld.collect_episode(robot, seed, stretches=args.stretches)
                yield [(rows, robot.prompt) for rows in parts], success
            robot.close()

    return hand.spec(), metaworld.HORIZON, episodes()


if __name__ == "__main__":
    try:
        main(tyro.cli(Args))
    except OnsetError as error:
        raise SystemExit(f"error: {error}") from error
