"""The demonstration: a simulated arm follows instructions under policy servers, in real time.

Starts a server per task as a process of its own, runs wall-clock episodes against it, prints one
table, and writes a video and a plot.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.progress import Progress

from scripts.local_server import LocalServer
from scripts.results import code_commit, write_results
from scripts.run_robot import CONSOLE, Run, row_of, run_episodes, summary_table
from scripts.run_robot import Args as RobotArgs
from sim.film import write_strip, write_video
from sim.plots import plot_episode

TASKS = ("whack", "pick_place")


@dataclass(frozen=True)
class Args:
    """A simulated arm follows instructions under a policy server, in real time.

    Attributes:
        episodes: Episodes per task.
        filmed: How many of them are in the video.
        seed: Seed of the first episode.
        out: Folder of the video, the pictures, the figures and the servers' logs.
    """

    episodes: int = 4
    filmed: int = 2
    seed: int = 0
    out: Path = Path("out/demo")


def main(args: Args) -> None:
    logging.basicConfig(level=logging.ERROR)
    commit = code_commit()
    runs: list[Run] = []
    with Progress(console=CONSOLE) as progress:
        for task in TASKS:
            waiting = progress.add_task(f"starting a server for {task}", total=None)
            log = args.out / f"server_{task}.log"
            with LocalServer(task, log, "--cache", "learned") as server:
                progress.remove_task(waiting)
                robot_args = RobotArgs(server.address, task, args.episodes, args.seed)
                runs += run_episodes(robot_args, progress)
    CONSOLE.print(summary_table(runs))

    figures = {f"success_{t}": _success([r for r in runs if r.task == t]) for t in TASKS}
    write_results(args.out / "demo.json", figures, [row_of(run) for run in runs], commit=commit)
    filmed = [run for t in TASKS for run in [r for r in runs if r.task == t][: args.filmed]]
    period_s = runs[0].film.robot.spec.period_ns * 1e-9
    with CONSOLE.status("rendering the video"):
        write_video(args.out / "demo.mp4", [run.film for run in filmed], 1 / period_s)
        firsts = [next(run.film for run in runs if run.task == task) for task in TASKS]
        write_strip(args.out / "strip.png", firsts)
    _plot(args.out / "plot.png", runs[0], runs, period_s)
    for name in ("demo.mp4", "strip.png", "plot.png", "demo.json"):
        CONSOLE.print(f"wrote {args.out / name}")


def _success(runs: list[Run]) -> float:
    return sum(run.episode.success for run in runs) / len(runs)


def _plot(path: Path, run: Run, runs: list[Run], period_s: float) -> None:
    replies = [reply for r in runs for reply in r.replies]
    plot_episode(
        path,
        f'{run.task}: "{run.episode.prompt}"',
        run.trace,
        period_s,
        [reply.step * period_s for reply in run.replies],
        {
            "inference on the server": [r.inference_ns * 1e-6 for r in replies],
            "capture to first action": [r.first_ns * 1e-6 for r in replies],
            "capture to last action": [r.whole_ns * 1e-6 for r in replies],
        },
        [0.0 if reply.cache is None else reply.cache.reused for reply in run.replies],
    )


if __name__ == "__main__":
    main(tyro.cli(Args))
