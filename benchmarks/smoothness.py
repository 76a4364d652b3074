"""Smoothness in closed loop: set-points within limits against actions sent straight to the servos.

The same seeds three times, in virtual time::

    set-point         o-------          o                    o
                      |              .                    .
    straight   -------o       lines         limited  ..

*straight* writes every action as it comes, once a policy period, as LeRobot does; *lines* goes in
a straight line from action to action; *limited* is the executor with the limits of the arm's file.
Peak jerk is the greatest of an episode over the arm's joints (not the gripper, whose jerk is that
of what it touches): of the set-points by third differences, of the joints by second differences of
their measured velocity, both at the control rate. At the rate of physics, in the last column, the
touching of objects and tables stands above what any controller does.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import functools
import math
import multiprocessing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks._smoothness_chart import draw
from controller.errors import OnsetError
from controller.loop_types import LoopConfig, TickResult
from controller.robot_file import load_robot
from scripts.results import ROOT, code_commit, write_results
from sim.delay import Fixed
from sim.env import PHYSICS_DT, SimRobot
from sim.rollout import CONTROL_PERIOD_NS, run_episode
from sim.tasks import make_task
from vla.checkpoint import load_checkpoint
from vla.engine import Engine

Array = NDArray[np.float64]

CONSOLE = Console()
ARM = slice(0, 5)  # without the gripper
WAYS = ("straight", "lines", "limited")
Way = Literal["straight", "lines", "limited"]


@dataclass(frozen=True)
class Args:
    """Smoothness in closed loop: within limits against actions sent straight to the servos.

    Attributes:
        tasks: Tasks, each with its bundled policy.
        episodes: Seeds of each task, the same for every way.
        first_seed: The first of them.
        robot: Robot file, or the name of a bundled one, with the limits.
        execute_steps: K, steps between observations.
        delay: Delay of the actions [steps].
        workers: Processes.
        json: Result file to write.
        plot: Picture to write: one episode of the first task.
    """

    tasks: tuple[str, ...] = ("pick_place", "whack")
    episodes: int = 100
    first_seed: int = 5000
    robot: str = "so101-sim"
    execute_steps: int = 4
    delay: int = 0
    workers: int = 2
    json: Path | None = None
    plot: Path = ROOT / "docs" / "control" / "smoothness.png"


@dataclass(frozen=True)
class Job:
    """One episode of one way."""

    args: Args
    task: str
    way: Way
    seed: int


@dataclass(frozen=True)
class Motion:
    """One episode at the control rate, of the arm's joints.

    Attributes:
        success: Whether the task was done.
        seconds: Until it was, or the episode's end.
        commands: Set-points. Shape (n, 5), [rad].
        positions: Measured. Shape (n, 5), [rad].
        velocities: Measured. Shape (n, 5), [rad/s].
        sampled: Measured at the rate of physics. Shape (m, 5), [rad/s].
    """

    success: bool
    seconds: float
    commands: Array
    positions: Array
    velocities: Array
    sampled: Array


@dataclass(frozen=True)
class Outcome:
    """What is kept of an episode.

    Attributes:
        success: Whether the task was done.
        seconds: Until it was, or the episode's end.
        command_jerk: Greatest of the set-points [rad/s^3].
        joint_jerk: Greatest of the joints [rad/s^3].
        physics_jerk: Greatest of the joints at the rate of physics [rad/s^3].
    """

    success: bool
    seconds: float
    command_jerk: float
    joint_jerk: float
    physics_jerk: float


class SampledRobot(SimRobot):
    """The simulated arm, with the joints' velocities after every physics step.

    Attributes:
        sampled: Of the episode. Each of shape (5,), [rad/s].
    """

    def reset(self, seed: int, prompt: str | None = None, now_ns: int = 0) -> str:
        self.sampled: list[Array] = []
        return super().reset(seed, prompt, now_ns)

    def advance_to(self, now_ns: int) -> None:
        """As the arm's own; in virtual time, which begins at 0."""
        while (len(self.sampled) + 0.5) * PHYSICS_DT * 1e9 < now_ns:
            self.step()
            self.sampled.append(self.velocity[ARM])
        self.place_cameras()


def peak(values: Array, order: int, period_s: float) -> float:
    """The greatest difference of an order, per time^order. Shape of values (n, J)."""
    return float(np.abs(np.diff(values, n=order, axis=0)).max(initial=0.0)) / period_s**order


def mcnemar(first: list[bool], second: list[bool]) -> float:
    """The exact two-sided McNemar test of paired outcomes; returns p."""
    pairs = list(zip(first, second, strict=True))
    gained = sum(b and not a for a, b in pairs)
    lost = sum(a and not b for a, b in pairs)
    count = gained + lost
    tail = sum(math.comb(count, k) for k in range(min(gained, lost) + 1)) / 2**count
    return min(1.0, 2 * tail)


@functools.cache
def _policy(task: str) -> tuple[SampledRobot, Engine]:
    path = ROOT / "vla" / "weights" / f"{task}.safetensors"
    return SampledRobot(make_task(task)), Engine(load_checkpoint(path))


def move(job: Job) -> Motion:
    """Runs one episode."""
    robot, engine = _policy(job.task)
    # One tick a policy period writes every action whole.
    period_ns = robot.spec.period_ns if job.way == "straight" else CONTROL_PERIOD_NS
    commands, positions, velocities = [], [], []

    def see(result: TickResult) -> None:
        execution = result.execution
        commands.append(result.set_point if execution is None else execution.command)
        positions.append(robot.position[ARM])
        velocities.append(robot.velocity[ARM])

    episode = run_episode(
        robot,
        lambda observation: engine.stream(observation, robot.prompt),
        job.seed,
        latency=Fixed(job.args.delay),
        config=LoopConfig(period_ns, job.args.execute_steps),
        limits=load_robot(job.args.robot).limits if job.way == "limited" else None,
        on_tick=see,
    )
    return Motion(
        episode.success,
        episode.steps * robot.spec.period_ns * 1e-9,
        np.array(commands, dtype=np.float64)[:, ARM],
        np.array(positions),
        np.array(velocities),
        np.array(robot.sampled),
    )


def run_job(job: Job) -> Outcome:
    """Runs one episode and keeps its figures."""
    motion, period_s = move(job), CONTROL_PERIOD_NS * 1e-9
    return Outcome(
        motion.success,
        motion.seconds,
        peak(motion.commands, 3, period_s),
        peak(motion.velocities, 2, period_s),
        peak(motion.sampled, 2, PHYSICS_DT),
    )


def main(args: Args) -> None:
    commit = code_commit()
    jobs = [
        Job(args, task, way, args.first_seed + n)
        for task in args.tasks
        for n in range(args.episodes)
        for way in WAYS
    ]
    outcomes: dict[tuple[str, Way], list[Outcome]] = {}
    pool_of = multiprocessing.get_context("spawn").Pool
    with pool_of(args.workers, initializer=_quiet) as pool, Progress(console=CONSOLE) as progress:
        bar = progress.add_task("episodes", total=len(jobs))
        for job, outcome in zip(jobs, pool.imap(run_job, jobs, chunksize=3), strict=True):
            outcomes.setdefault((job.task, job.way), []).append(outcome)
            progress.advance(bar)
    rows = [row_of(task, way, outcomes) for task in args.tasks for way in WAYS]
    CONSOLE.print(table_of(rows))
    figures = figures_of(rows)
    CONSOLE.print("  ".join(f"{name} {value:.3g}" for name, value in figures.items()))
    picture(args, args.tasks[0], outcomes)
    if args.json is not None:
        write_results(args.json, figures, rows, commit=commit)
        CONSOLE.print(f"wrote {args.json}")


def _quiet() -> None:
    torch.set_num_threads(1)


def row_of(task: str, way: Way, outcomes: dict[tuple[str, Way], list[Outcome]]) -> dict[str, Any]:
    """A way's figures, beside those of the straight way."""
    these, straight = outcomes[task, way], outcomes[task, "straight"]
    successes = [o.success for o in these]
    joint = float(np.median([o.joint_jerk for o in these]))
    command = float(np.median([o.command_jerk for o in these]))
    done = [o.seconds for o in these if o.success]
    return {
        "task": task,
        "way": way,
        "episodes": len(these),
        "success": float(np.mean(successes)),
        "mcnemar_p": mcnemar([o.success for o in straight], successes),
        "seconds_when_done": float(np.mean(done)) if done else None,
        "command_jerk": command,
        "joint_jerk": joint,
        "joint_jerk_p90": float(np.quantile([o.joint_jerk for o in these], 0.9)),
        "physics_jerk": float(np.median([o.physics_jerk for o in these])),
        "command_ratio": float(np.median([o.command_jerk for o in straight])) / command,
        "joint_ratio": float(np.median([o.joint_jerk for o in straight])) / joint,
        "load_average": os.getloadavg()[0],
    }


def figures_of(rows: list[dict[str, Any]]) -> dict[str, float]:
    """What the run was for; a ratio is that of the task where it is least."""
    limited = [row for row in rows if row["way"] == "limited"]
    straight = {row["task"]: row["success"] for row in rows if row["way"] == "straight"}
    return {
        "jerk_ratio": min(row["joint_ratio"] for row in limited),
        "jerk_ratio_command": min(row["command_ratio"] for row in limited),
        **{
            f"success_difference_{row['task']}": row["success"] - straight[row["task"]]
            for row in limited
        },
    }


def table_of(rows: list[dict[str, Any]]) -> Table:
    names = {
        "task": "task",
        "way": "way",
        "success": "success",
        "mcnemar_p": "p",
        "seconds_when_done": "done [s]",
        "command_jerk": "set-points",
        "command_ratio": "less by",
        "joint_jerk": "joints",
        "joint_ratio": "less by",
        "physics_jerk": "500 Hz",
    }
    table = Table(title="peak jerk in rad/s^3, median of episodes", box=SIMPLE_HEAD)
    for name, label in names.items():
        table.add_column(label, justify="left" if name in ("task", "way") else "right")
    for row in rows:
        values = [row[name] for name in names]
        table.add_row(*[_text(value) for value in values])
    return table


def _text(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def picture(args: Args, task: str, outcomes: dict[tuple[str, Way], list[Outcome]]) -> None:
    """Draws the first episode that both ways finish."""
    straight, limited = outcomes[task, "straight"], outcomes[task, "limited"]
    both = [a.success and b.success for a, b in zip(straight, limited, strict=True)]
    seed = args.first_seed + (both.index(True) if True in both else 0)
    _quiet()
    motions = {way: move(Job(args, task, way, seed)) for way in ("straight", "limited")}
    names = load_robot(args.robot).spec.action_names
    _policy(task)[0].close()
    draw(args.plot, task, names, motions, CONTROL_PERIOD_NS * 1e-9)
    CONSOLE.print(f"wrote {args.plot}")


if __name__ == "__main__":
    try:
        main(tyro.cli(Args))
    except OnsetError as error:
        raise SystemExit(f"error: {error}") from error
