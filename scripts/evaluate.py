"""Evaluates a policy on a task, in virtual time through the real control loop.

Beside the policy stand its reference lines: the scripted expert that sees everything, an arm that
holds still, random actions, and the same policy with untrained weights. Seeds are the same for all.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table

from controller.errors import OnsetError
from controller.types import Observation
from scripts.results import code_commit, write_results
from sim.collect import HORIZON, Infer
from sim.delay import Fixed
from sim.env import SimRobot
from sim.metrics import wilson
from sim.rollout import Episode, expert, run_episode
from sim.tasks import make_task
from vla.checkpoint import load_checkpoint, random_checkpoint
from vla.engine import Engine

CONSOLE = Console()
WHO = ("policy", "expert", "still", "random", "untrained", "swap_instruction", "swap_frames")


@dataclass(frozen=True)
class Args:
    """Evaluates a policy on a task, in virtual time through the real control loop.

    Attributes:
        task: whack, intercept, conveyor or pick_place.
        policy: Bundled name or path of a .safetensors file; the task's own by default.
        episodes: Held-out seeds 0 .. episodes-1.
        delays: Delays to inject [steps], each with the same seeds.
        who: Rows of the table: policy, expert, still, random, untrained, swap_instruction (the
            policy is told to deal with the other thing) and swap_frames (it is shown another
            episode). All but the first two run a quarter of the episodes.
        execute_steps: K, steps between observations.
        schedule: constant, has (near-term actions first) or one_step.
        expert_steps: Expert steps of the schedule; the policy's own by default.
        workers: Processes.
        json: Result file to write.
    """

    task: str
    policy: str | None = None
    episodes: int = 200
    delays: tuple[int, ...] = (0, 8)
    who: tuple[str, ...] = WHO
    execute_steps: int = 4
    schedule: Literal["constant", "has", "one_step"] = "constant"
    expert_steps: int | None = None
    workers: int = 2
    json: Path | None = None


@dataclass(frozen=True)
class Job:
    """One episode of one row."""

    args: Args
    who: str
    delay: int
    seed: int


def main(args: Args) -> None:
    commit = code_commit()
    if unknown := sorted(set(args.who) - set(WHO)):
        raise SystemExit(f"--who: given {unknown}; allowed: {list(WHO)}")
    # Here rather than in a worker: a typo is to be told at once, and once.
    make_task(args.task)
    load_checkpoint(Path(args.policy or args.task))
    jobs = []
    for who in args.who:
        main_row = who in ("policy", "expert")
        for delay in args.delays if main_row else args.delays[:1]:
            count = args.episodes if main_row else max(1, args.episodes // 4)
            jobs += [Job(args, who, delay, seed) for seed in range(count)]
    results: dict[tuple[str, int], list[Episode]] = {}
    with multiprocessing.get_context("spawn").Pool(args.workers, initializer=_quiet) as pool:
        done = pool.imap(run_job, jobs, chunksize=5)
        for job, episode in zip(
            jobs, track(done, f"{args.task}: episodes", len(jobs), console=CONSOLE), strict=True
        ):
            results.setdefault((job.who, job.delay), []).append(episode)
    rows = [_row(who, delay, episodes) for (who, delay), episodes in results.items()]
    CONSOLE.print(_table(args, rows))
    if args.json is not None:
        write_results(args.json, _figures(args, rows), rows, commit=commit)
        CONSOLE.print(f"wrote {args.json}")


def _quiet() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


_robots: dict[str, SimRobot] = {}
_engines: dict[tuple, Engine] = {}


def run_job(job: Job) -> Episode:
    """Runs one episode; robot and engine are kept for the next one of the process."""
    args = job.args
    if args.task not in _robots:
        _robots[args.task] = SimRobot(make_task(args.task))
    robot = _robots[args.task]
    latency = Fixed(job.delay * robot.spec.period_ns)
    infer = _infer(job, robot)
    return run_episode(robot, infer, job.seed, latency=latency, execute_steps=args.execute_steps)


def _infer(job: Job, robot: SimRobot) -> Infer:
    """The row's policy as a function."""
    lower, upper = robot.spec.action_lower, robot.spec.action_upper
    if job.who == "expert":
        return expert(robot, HORIZON)
    if job.who == "still":
        return lambda observation: np.tile(observation.state[: len(lower)], (HORIZON, 1))
    if job.who == "random":
        rng = np.random.default_rng([job.seed, 2])
        size = (HORIZON, len(lower))
        return lambda observation: rng.uniform(lower, upper, size).astype(np.float32)
    engine = _engine(job, trained=job.who != "untrained")
    others: dict[str, np.ndarray] = {}

    def infer(observation: Observation):
        # Looked up here: the robot has its instruction only once the episode has begun.
        prompt = robot.prompt
        if job.who == "swap_instruction":
            prompt = robot.task.swapped_prompt()
        if job.who == "swap_frames":
            if not others:
                others.update(_frames_of(job.args.task, job.seed + 1_000))
            observation = dataclasses.replace(observation, frames=others)
        return engine.chunk(observation, prompt)

    return infer


def _engine(job: Job, *, trained: bool) -> Engine:
    key = (job.args.policy or job.args.task, trained)
    if key not in _engines:
        checkpoint = load_checkpoint(Path(key[0]))
        if not trained:
            checkpoint = random_checkpoint(checkpoint.meta, checkpoint.normaliser, seed=0)
        _engines[key] = Engine(
            checkpoint, schedule=job.args.schedule, expert_steps=job.args.expert_steps
        )
    return _engines[key]


def _frames_of(task: str, seed: int) -> dict[str, np.ndarray]:
    """The frames with which another episode begins."""
    other = SimRobot(make_task(task))
    other.reset(seed)
    other.advance_to(20 * other.spec.period_ns)
    frames = dict(other.read().frames)  # rendered now: they are lazy, and the cameras close
    other.close()
    return {c.name: np.stack([frames[c.name]] * len(c.lags)) for c in other.spec.cameras}


def _row(who: str, delay: int, episodes: Sequence[Episode]) -> dict[str, object]:
    wins = sum(e.success for e in episodes)
    low, high = wilson(wins, len(episodes))
    return {
        "who": who,
        "delay": delay,
        "episodes": len(episodes),
        "success": wins / len(episodes),
        "low": low,
        "high": high,
        "score": float(np.mean([e.score for e in episodes])),
        "swapped": float(np.mean([e.swapped for e in episodes])),
        "steps": float(np.mean([e.steps for e in episodes])),
        "starved": float(np.mean([e.counters.starved for e in episodes])),
    }


def _figures(args: Args, rows: Sequence[dict]) -> dict[str, float]:
    found = {(row["who"], row["delay"]): row for row in rows}
    figures = {}
    for delay in args.delays:
        suffix = "" if delay == 0 else f"_d{delay}"
        for who, name in (("policy", "success"), ("expert", "expert_success")):
            if (who, delay) in found:
                figures[name + suffix] = float(found[who, delay]["success"])
    if figures.get("expert_success") and "success" in figures:
        figures["success_over_expert"] = figures["success"] / figures["expert_success"]
    for delay in args.delays:
        if delay and f"success_d{delay}" in figures and figures.get("success"):
            kept = figures[f"success_d{delay}"] / figures["success"]
            figures[f"kept_at_d{delay}"] = kept
    for who in ("untrained", "swap_frames", "still", "random"):
        if (who, args.delays[0]) in found:
            figures[f"{who}_success"] = float(found[who, args.delays[0]]["success"])
    if row := found.get(("swap_instruction", args.delays[0])):
        figures["swapped_instruction_success"] = float(row["success"])
        figures["swapped_instruction_other"] = float(row["swapped"])
    return figures


def _table(args: Args, rows: Sequence[dict]) -> Table:
    table = Table(
        title=f"{args.task}: an observation every {args.execute_steps} steps",
        caption="delay in steps; other: the thing that was not named was dealt with",
        box=SIMPLE_HEAD,
    )
    for name in ("who", "delay", "episodes", "success", "95%", "score", "other"):
        table.add_column(name, justify="left" if name == "who" else "right", no_wrap=True)
    for row in rows:
        table.add_row(
            row["who"],
            str(row["delay"]),
            str(row["episodes"]),
            f"{row['success']:.3f}",
            f"{row['low']:.2f}-{row['high']:.2f}",
            f"{row['score']:.3f}",
            f"{row['swapped']:.3f}",
        )
    return table


if __name__ == "__main__":
    try:
        main(tyro.cli(Args))
    except OnsetError as error:
        raise SystemExit(f"error: {error}") from error
