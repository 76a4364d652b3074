"""Evaluates a policy on a task, in virtual time through the real control loop.

Beside the policy stand its reference lines: the scripted expert that sees everything, an arm that
holds still, random actions, and the same policy with untrained weights. Seeds are the same for all.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.progress import track

from controller.bounds import check_range
from controller.errors import OnsetError
from controller.types import CacheFigures, Observation
from scripts.evaluate_cases import Case, Variant, conditions, hardness_options, make_cases
from scripts.evaluate_report import Outcome, Report
from scripts.results import code_commit, write_results
from sim.collect import HORIZON
from sim.delay import Stream, whole
from sim.env import SimRobot
from sim.reaction import reaction_ns
from sim.rollout import expert, loop_config, run_episode
from sim.tasks import make_task
from vla.cache.config import CacheConfig, CacheMode
from vla.cache.encoder import Whose
from vla.cache.selector import load_selector, selector_for
from vla.checkpoint import Checkpoint, load_checkpoint, random_checkpoint
from vla.engine import Engine, Finished

CONSOLE = Console()
ROOT = Path(__file__).resolve().parents[1]
WHO = ("policy", "expert", "still", "random", "untrained", "swap_instruction", "swap_frames")


@dataclass(frozen=True)
class Args:
    """Evaluates a policy on a task, in virtual time through the real control loop.

    Attributes:
        task: whack, intercept, conveyor or pick_place.
        policy: Bundled name or path of a .safetensors file; the task's own by default.
        episodes: Held-out seeds 0 .. episodes-1.
        who: Rows of the table: policy, expert, still, random, untrained, swap_instruction (the
            policy is told to deal with the other thing) and swap_frames (it is shown another
            episode). All but the first two run a quarter of the episodes.
        schedule: One or more of constant, has (near-term actions first), one_step and
            has_meanflow. The others are compared with the first, seed by seed.
        steps: Expert steps of the schedules, each in turn; the policy's own by default. one_step
            always has one.
        cache: One or more of off, learned, and the controls pixel, random, oracle, periodic and
            dense: which image tokens are computed anew. Each is compared with the first.
        cache_rows: Share of the image tokens that are computed, 0.25, 0.5, 0.75 or 1: of the
            controls, which need it, and of learned, whose predictor decides by default.
        cache_slack: Whether all tokens are computed again between two chunks, as an idle server
            does.
        cache_selector: Trained selector; the policy's bundled one by default.
        delays: Delays to inject [steps]; 0 and 8 by default, none with --scales.
        scales: Factors of recorded times to inject, on a server that computes one chunk at a time.
            Event-to-motion is measured too. The expert gets its chunk when the first schedule's
            last expert step is done.
        times: Where the times of prefix and expert step are recorded: a result file of
            benchmarks/ttfa.py.
        execute_steps: K, steps between observations; auto for the least that one server sustains,
            where the expert stops after the actions that are executed.
        least_steps: Least K of auto.
        hardness: Parameters of the task as name=value.
        workers: Processes.
        json: Result file to write.
        plot: Picture to write: success against expert steps, or with --scales success and
            event-to-motion against scale.
    """

    task: str
    policy: str | None = None
    episodes: int = 200
    who: tuple[str, ...] = WHO
    schedule: tuple[Literal["constant", "has", "one_step", "has_meanflow"], ...] = ("constant",)
    steps: tuple[int, ...] = ()
    cache: tuple[
        Literal["off", "learned", "pixel", "random", "oracle", "periodic", "dense"], ...
    ] = ("off",)
    cache_rows: float | None = None
    cache_slack: bool = True
    cache_selector: Path | None = None
    delays: tuple[int, ...] | None = None
    scales: tuple[float, ...] = ()
    times: Path = ROOT / "docs" / "results" / "ttfa.json"
    execute_steps: int | Literal["auto"] = 4
    least_steps: int = 1
    hardness: tuple[str, ...] = ()
    workers: int = 2
    json: Path | None = None
    plot: Path | None = None


@dataclass(frozen=True)
class Job:
    """One episode of one row."""

    args: Args
    case: Case
    seed: int


def main(args: Args) -> None:
    commit = code_commit()
    if unknown := sorted(set(args.who) - set(WHO)):
        raise SystemExit(f"--who: given {unknown}; allowed: {list(WHO)}")
    # Here rather than in a worker: what is wrong is to be told at once, and once.
    make_task(args.task, **hardness_options(args.task, args.hardness))
    cases = plan(args)
    jobs = [Job(args, case, seed) for case in cases for seed in range(case.episodes)]
    outcomes: dict[Case, list[Outcome]] = {}
    with multiprocessing.get_context("spawn").Pool(args.workers, initializer=_quiet) as pool:
        done = pool.imap(run_job, jobs, chunksize=5)
        for job, outcome in zip(
            jobs, track(done, f"{args.task}: episodes", len(jobs), console=CONSOLE), strict=True
        ):
            outcomes.setdefault(job.case, []).append(outcome)
    report = Report(outcomes)
    title = " ".join([args.task, *args.hardness])
    CONSOLE.print(report.table(title))
    if args.json is not None:
        figures = report.figures()
        if "success_difference_learned" in figures:
            figures[f"success_difference_{args.task}"] = figures["success_difference_learned"]
        write_results(args.json, figures, report.filled_rows(), commit=commit)
        CONSOLE.print(f"wrote {args.json}")
    if args.plot is not None:
        report.plot(args.plot, title)
        CONSOLE.print(f"wrote {args.plot}")


def plan(args: Args) -> list[Case]:
    """The rows of the table.

    Raises:
        OnsetError: The checkpoint does not offer a schedule, or a value is out of range.
    """
    check_range("least_steps", args.least_steps, 1, HORIZON)
    checkpoint = load_checkpoint(Path(args.policy or args.task))
    period_ns = checkpoint.meta.robot.period_ns
    delays = args.delays if args.delays is not None else () if args.scales else (0, 8)
    found = conditions(delays, args.scales, args.times, period_ns)
    execute_steps = None if args.execute_steps == "auto" else args.execute_steps
    variants = _variants(checkpoint, args)
    return make_cases(
        args.who, variants, found, execute_steps, args.least_steps, args.episodes, period_ns
    )


def _variants(checkpoint: Checkpoint, args: Args) -> list[Variant]:
    """Every schedule with every number of steps and every cache, once."""
    found = []
    for name in args.schedule:
        for steps in args.steps or (None,):
            schedule = Engine(checkpoint, schedule=name, expert_steps=steps).schedule
            ready_at = tuple(schedule.ready_at.tolist())
            for cache in args.cache:
                _cached(checkpoint, args, CacheMode(cache))  # told now rather than by a worker
                found.append(Variant(schedule.name, schedule.steps, ready_at, cache))
    return list(dict.fromkeys(found))


def _quiet() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


_robots: dict[str, SimRobot] = {}
_checkpoints: dict[tuple, Checkpoint] = {}
_engines: dict[tuple, Engine] = {}


def run_job(job: Job) -> Outcome:
    """Runs one episode; robot and engine are kept for the next one of the process."""
    args, case = job.args, job.case
    if args.task not in _robots:
        _robots[args.task] = _robot(args)
    robot = _robots[args.task]
    stream = _stream(job, robot)
    latency, config = case.condition.latency, loop_config(case.cadence.execute_steps)
    told: list[CacheFigures] = []
    noted = stream if case.variant.cache == "off" else _noting(stream, told)
    episode = run_episode(robot, noted, job.seed, latency=latency, config=config)
    motion_ns = None
    if args.scales and case.who in ("policy", "expert"):
        motion_ns = reaction_ns(robot, stream, job.seed, latency=latency, config=config)
    return Outcome(episode, motion_ns, tuple(told))


def _noting(stream: Stream, told: list[CacheFigures]) -> Stream:
    """The same stream; the cache's figures of each observation are noted."""

    def noted(observation: Observation):
        pieces = list(stream(observation))
        told.extend(p.cache for p in pieces[:1] if isinstance(p, Finished) and p.cache is not None)
        return pieces

    return noted


def _robot(args: Args) -> SimRobot:
    return SimRobot(make_task(args.task, **hardness_options(args.task, args.hardness)))


def _stream(job: Job, robot: SimRobot) -> Stream:
    """The row's policy."""
    lower, upper = robot.spec.action_lower, robot.spec.action_upper
    who, steps = job.case.who, job.case.variant.steps
    if who == "expert":
        return whole(expert(robot, HORIZON), steps)
    if who == "still":
        return whole(lambda o: np.tile(o.state[: len(lower)], (HORIZON, 1)), steps)
    if who == "random":
        rng = np.random.default_rng([job.seed, 2])
        size = (HORIZON, len(lower))
        return whole(lambda _: rng.uniform(lower, upper, size).astype(np.float32), steps)
    engine = _engine(job)
    whose = Whose("robot", str(job.seed))
    others: dict[str, np.ndarray] = {}

    def stream(observation: Observation):
        # Looked up here: the robot has its instruction only once the episode has begun.
        prompt = robot.prompt
        if who == "swap_instruction":
            prompt = robot.task.swapped_prompt()
        if who == "swap_frames":
            if not others:
                others.update(_frames_of_another(job))
            observation = dataclasses.replace(observation, frames=others)
        yield from engine.stream(observation, prompt, whose=whose)
        engine.settle()

    return stream


def _engine(job: Job) -> Engine:
    case, policy = job.case, job.args.policy or job.args.task
    trained = case.who != "untrained"
    key = (policy, trained, case.variant, case.cadence.executed)
    if key not in _engines:
        checkpoint = _checkpoint(policy, trained=trained)
        # Without its weights a policy has no selector.
        mode = CacheMode(case.variant.cache) if trained else CacheMode.OFF
        _engines[key] = _cached(
            checkpoint,
            job.args,
            mode,
            schedule=case.variant.schedule,
            expert_steps=case.variant.steps,
            executed=case.cadence.executed,
        )
    return _engines[key]


def _cached(checkpoint: Checkpoint, args: Args, mode: CacheMode, **settings) -> Engine:
    """An engine with a cache.

    Raises:
        OnsetError: The cache needs a selector or a share of rows.
    """
    config = CacheConfig(mode, args.cache_rows, slack=args.cache_slack)
    if args.cache_selector is not None and mode is not CacheMode.OFF:
        selector = load_selector(args.cache_selector)
    else:
        selector = selector_for(checkpoint.digest, config)
    return Engine(checkpoint, cache=config, selector=selector, **settings)


def _checkpoint(policy: str, *, trained: bool) -> Checkpoint:
    if (policy, trained) not in _checkpoints:
        checkpoint = load_checkpoint(Path(policy))
        if not trained:
            checkpoint = random_checkpoint(checkpoint.meta, checkpoint.normaliser, seed=0)
        _checkpoints[policy, trained] = checkpoint
    return _checkpoints[policy, trained]


def _frames_of_another(job: Job) -> dict[str, np.ndarray]:
    """The frames with which another episode begins."""
    other = _robot(job.args)
    other.reset(job.seed + 1_000)
    other.advance_to(20 * other.spec.period_ns)
    frames = dict(other.read().frames)  # rendered now: they are lazy, and the cameras close
    other.close()
    return {c.name: np.stack([frames[c.name]] * len(c.lags)) for c in other.spec.cameras}


if __name__ == "__main__":
    try:
        main(tyro.cli(Args))
    except OnsetError as error:
        raise SystemExit(f"error: {error}") from error
