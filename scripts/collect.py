"""Collects expert episodes with noise injected, as a LeRobotDataset v3."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import tyro
from rich.console import Console
from rich.progress import track

from controller.errors import OnsetError
from sim.collect import HORIZON, Noise, collect_episode
from sim.dataset import write_dataset
from sim.env import SimRobot
from sim.tasks import make_task

CONSOLE = Console()


@dataclass(frozen=True)
class Args:
    """Collects expert episodes with noise injected, as a LeRobotDataset v3.

    Attributes:
        task: whack, intercept, conveyor or pick_place.
        out: Folder of the dataset; it must not exist yet.
        episodes: Episodes to collect.
        seed: Seed of the first one.
        repo_id: Name of the dataset; onset/<task> by default.
        videos: H.264 videos; --no-videos writes lossless images.
        failures: Keep episodes in which the noise made the expert fail; their labels are as good.
        noise: Disturbance of what is executed.
    """

    task: str
    out: Path
    episodes: int = 50
    seed: int = 2_000_000
    repo_id: str | None = None
    videos: bool = True
    failures: bool = True
    noise: Noise = field(default_factory=Noise)


def main(args: Args) -> None:
    robot = SimRobot(make_task(args.task))
    won = 0

    def episodes() -> Iterator:
        nonlocal won
        for seed in track(range(args.seed, args.seed + args.episodes), args.task, console=CONSOLE):
            rows, success = collect_episode(robot, seed, noise=args.noise)
            won += success
            if success or args.failures:
                yield rows, robot.prompt

    name = args.repo_id or f"onset/{args.task}"
    frames = write_dataset(args.out, name, robot.spec, HORIZON, episodes(), videos=args.videos)
    CONSOLE.print(
        f"wrote {args.out}: {frames} frames of {args.episodes} episodes, {won} successful"
    )


if __name__ == "__main__":
    try:
        main(tyro.cli(Args))
    except OnsetError as error:
        raise SystemExit(f"error: {error}") from error
