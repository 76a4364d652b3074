"""Runs a robot against a policy server, in wall-clock time.

The robot is the simulated arm; the control loop, the wire and the server are those of a real one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from controller.client import GrpcLink, describe
from controller.clock import MonotonicClock
from controller.errors import OnsetError
from controller.loop import ControlLoop
from controller.meter import MeteredLink, Reply
from scripts.results import code_commit, write_results
from sim.env import SimRobot
from sim.film import Film, write_video
from sim.robots.so101 import to_normalised
from sim.rollout import Episode, drive, loop_config
from sim.tasks import make_task

CONSOLE = Console()


@dataclass(frozen=True)
class Args:
    """Runs the simulated arm against a policy server, in wall-clock time.

    Attributes:
        server: host:port of a server that serves a policy for the task.
        task: whack, intercept, conveyor or pick_place.
        episodes: Episodes to run.
        seed: Seed of the first episode.
        execute_steps: K, steps between observations.
        strategy: How chunks take over from each other: a name that the server offers, e.g. naive,
            forecast (each begins late, from a forecast state) or onset (that, continuing the last
            action before it).
        speedup: q, actions of a chunk that are merged into one step.
        robot_id: Names this robot to the server.
        video: Write a video of the episodes.
        json: Result file to write.
        verbose: Log notices and lost sessions.
    """

    server: str
    task: str
    episodes: int = 5
    seed: int = 0
    execute_steps: int = 4
    strategy: str = "naive"
    speedup: int = 1
    robot_id: str = "so101-sim"
    video: Path | None = None
    json: Path | None = None
    verbose: bool = False


@dataclass(frozen=True)
class Run:
    """One episode in wall-clock time.

    Attributes:
        task: Its task.
        episode: What came of it.
        replies: Times of the answers.
        film: Its states, to render.
        trace: Measured joints and set-points per step. Shape (T, 2, 6).
    """

    task: str
    episode: Episode
    replies: tuple[Reply, ...]
    film: Film
    trace: np.ndarray


def main(args: Args) -> None:
    logging.basicConfig(level=logging.INFO if args.verbose else logging.ERROR)
    commit = code_commit()
    with Progress(console=CONSOLE) as progress:
        runs = run_episodes(args, progress)
    CONSOLE.print(summary_table(runs))
    if args.video is not None:
        period_s = runs[0].film.robot.spec.period_ns * 1e-9
        write_video(args.video, [run.film for run in runs], 1 / period_s)
        CONSOLE.print(f"wrote {args.video}")
    if args.json is not None:
        rows = [row_of(run) for run in runs]
        success = float(np.mean([run.episode.success for run in runs]))
        write_results(args.json, {"success": success}, rows, commit=commit)
        CONSOLE.print(f"wrote {args.json}")


def run_episodes(args: Args, progress: Progress) -> list[Run]:
    """Runs the episodes over one session.

    Raises:
        OnsetError: There is no server, or it refuses this robot.
    """
    robot = SimRobot(make_task(args.task))
    dict(robot.read().frames)  # frames are lazy: this makes the renderer, which outlasts a step
    description = describe(args.server)
    row = progress.add_task(f"{args.task} <- {description.model}", total=args.episodes)
    clock = MonotonicClock()
    runs: list[Run] = []
    prompt = robot.reset(args.seed)
    config = loop_config(args.execute_steps, strategy=args.strategy, speedup=args.speedup)
    with GrpcLink(
        args.server, robot.spec, robot_id=args.robot_id, prompt=prompt, strategy=args.strategy
    ) as link:
        metered = MeteredLink(link)
        loop = ControlLoop(robot, metered, config, prompt)
        for seed in range(args.seed, args.seed + args.episodes):
            now = clock.now_ns()
            prompt = robot.reset(seed, now_ns=now)
            loop.reset(now, prompt, str(seed))
            film, trace = Film(robot, f'{args.task}: "{prompt}"'), []

            def on_step(step: int) -> None:
                film.capture()  # noqa: B023 (called within this iteration)
                trace.append([robot.position, set_point(robot)])  # noqa: B023

            episode = drive(robot, loop, clock, seed, prompt, on_step=on_step)
            runs.append(Run(args.task, episode, tuple(metered.replies), film, np.array(trace)))
            progress.advance(row)
    return runs


def set_point(robot: SimRobot) -> np.ndarray:
    """What the servos follow now, in action units. Shape (6,)."""
    return to_normalised(robot.data.ctrl[:6])


def row_of(run: Run) -> dict[str, object]:
    """One episode as a row of a result file; times in ms."""
    counters = run.episode.counters
    times = {f"{name}_ms": _median_ms([ns(r) for r in run.replies]) for name, ns in TIMES.items()}
    return {
        "task": run.task,
        "seed": run.episode.seed,
        "prompt": run.episode.prompt,
        "success": run.episode.success,
        "score": run.episode.score,
        "steps": run.episode.steps,
        **times,
        "missed_ticks": counters.missed_deadlines,
        "starved_steps": counters.starved,
        "late_actions": counters.late,
        "errors": len(run.episode.errors),
    }


def _median_ms(values: Sequence[int]) -> float | None:
    return float(np.median(values)) * 1e-6 if values else None


# The times of a reply that rows and table show [ns].
TIMES: dict[str, Callable[[Reply], int]] = {
    "inference": lambda reply: reply.inference_ns,
    "round_trip": lambda reply: reply.whole_ns,
    "first_action": lambda reply: reply.first_ns,
}


def summary_table(runs: Sequence[Run]) -> Table:
    """One row a task: success, times [ms, p50 and p99] and missed ticks."""
    table = Table(title="wall-clock episodes over gRPC; times in ms, p50/p99", box=SIMPLE_HEAD)
    for name in (
        "task",
        "success",
        *(name.replace("_", " ") for name in TIMES),
        "missed ticks",
        "starved",
    ):
        first = name == "task"
        table.add_column(name, justify="left" if first else "right", no_wrap=first)
    for task in dict.fromkeys(run.task for run in runs):
        mine = [run for run in runs if run.task == task]
        replies = [reply for run in mine for reply in run.replies]
        cells = []
        for nanoseconds in TIMES.values():
            values = [nanoseconds(reply) for reply in replies]
            low, high = np.quantile(values, [0.5, 0.99]) * 1e-6 if values else (np.nan, np.nan)
            cells.append(f"{low:.0f}/{high:.0f}")
        ticks = sum(run.episode.counters.ticks for run in mine)
        missed = sum(run.episode.counters.missed_deadlines for run in mine)
        starved = sum(run.episode.counters.starved for run in mine)
        won = sum(run.episode.success for run in mine)
        table.add_row(task, f"{won}/{len(mine)}", *cells, f"{missed}/{ticks}", str(starved))
    return table


if __name__ == "__main__":
    try:
        main(tyro.cli(Args))
    except OnsetError as error:
        raise SystemExit(f"error: {error}") from error
