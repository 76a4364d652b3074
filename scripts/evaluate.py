"""Evaluates a policy on a task, in virtual time through the real control loop.

Beside the policy stand its reference lines: the scripted expert that sees everything, an arm that
holds still, random actions, and the same policy with untrained weights. Seeds are the same for all.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.progress import track

from controller.bounds import check_range
from controller.errors import OnsetError
from controller.types import CacheFigures, Observation
from scripts.evaluate_args import Args
from scripts.evaluate_cases import Case, Variant, conditions, make_cases
from scripts.evaluate_report import Outcome, Report
from scripts.evaluate_suite import (
    SUITES,
    check_flicker,
    check_prompts,
    make_robot,
    suite_figures,
    suite_rows,
    suite_table,
    tasks_of,
)
from scripts.results import code_commit, write_results
from sim.delay import Stream, whole
from sim.env import SimRobot
from sim.reaction import reaction_ns
from sim.rollout import expert, loop_config, run_episode
from sim.simulated import Simulated
from vla.cache.asked import Whose
from vla.cache.config import CacheConfig, CacheMode
from vla.cache.selector import load_selector, selector_for
from vla.checkpoint import Checkpoint, load_checkpoint, random_checkpoint
from vla.engine import Engine
from vla.finished import Finished

CONSOLE = Console()


@dataclass(frozen=True)
class Job:
    """One episode of one row."""

    args: Args
    case: Case
    seed: int


def main(args: Args) -> None:
    commit, allowed = code_commit(), SUITES[args.suite].who
    if unknown := sorted(set(args.who or ()) - set(allowed)):
        raise SystemExit(f"--who: given {unknown}; allowed: {list(allowed)}")
    # Here rather than in a worker: what is wrong is to be told at once, and once.
    tasks = tasks_of(args.suite, args.task, args.tasks, args.hardness)
    check_flicker(args.suite, args.flicker)
    cases = plan(args)
    jobs = [
        Job(dataclasses.replace(args, task=task), case, seed)
        for task in tasks
        for case in cases
        for seed in range(case.episodes)
    ]
    outcomes: dict[str, dict[Case, list[Outcome]]] = {task: {} for task in tasks}
    light = [f"flicker={args.flicker:g}"] if args.flicker else []
    title = " ".join([args.task or args.suite, *args.hardness, *light])
    with multiprocessing.get_context("spawn").Pool(args.workers, initializer=_quiet) as pool:
        done = pool.imap(run_job, jobs, chunksize=5)
        for job, outcome in zip(
            jobs, track(done, f"{title}: episodes", len(jobs), console=CONSOLE), strict=True
        ):
            outcomes[job.args.task].setdefault(job.case, []).append(outcome)
    reports = {task: Report(found) for task, found in outcomes.items()}
    if args.suite == "onset":
        report_task(args, reports[args.task], title, commit)
    else:
        report_suite(args, reports, commit)


def report_task(args: Args, report: Report, title: str, commit: str) -> None:
    CONSOLE.print(report.table(title))
    if args.json is not None:
        figures = report.figures()
        if "success_difference_learned" in figures:
            policy = Path(_policy(args)).stem
            figures[f"success_difference_{policy}"] = figures["success_difference_learned"]
        write_results(args.json, figures, report.filled_rows(), commit=commit)
        CONSOLE.print(f"wrote {args.json}")
    if args.plot is not None:
        report.plot(args.plot, title)
        CONSOLE.print(f"wrote {args.plot}")


def report_suite(args: Args, reports: Mapping[str, Report], commit: str) -> None:
    CONSOLE.print(suite_table(args.suite, reports))
    if args.json is not None:
        write_results(args.json, suite_figures(reports), suite_rows(reports), commit=commit)
        CONSOLE.print(f"wrote {args.json}")


def plan(args: Args) -> list[Case]:
    """The rows of the table.

    Raises:
        OnsetError: The checkpoint does not offer a schedule, does not know a task, or a value is
            out of range.
    """
    suite, checkpoint = SUITES[args.suite], load_checkpoint(Path(_policy(args)))
    who = args.who or suite.who
    check_range("least_steps", args.least_steps, 1, checkpoint.meta.model.horizon)
    if args.suite == "metaworld" and "policy" in who:
        check_prompts(args.tasks, checkpoint.meta.prompts)
    period_ns = checkpoint.meta.robot.period_ns
    delays = args.delays if args.delays is not None else () if args.scales else suite.delays
    found = conditions(delays, args.scales, args.times, period_ns)
    execute_steps = None if args.execute_steps == "auto" else args.execute_steps
    variants = _variants(checkpoint, args)
    return make_cases(
        *(who, variants, found, execute_steps, args.least_steps, args.episodes, period_ns),
        suite.tick_ns,
    )


def _policy(args: Args) -> str:
    """The policy's own name or path: a suite has one for all of its tasks."""
    return args.policy or (args.task if args.suite == "onset" else args.suite)


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


_robots: dict[str, Simulated] = {}
_checkpoints: dict[tuple, Checkpoint] = {}
_engines: dict[tuple, Engine] = {}


def run_job(job: Job) -> Outcome:
    """Runs one episode; robot and engine are kept for the next one of the process."""
    args, case = job.args, job.case
    if args.task not in _robots:
        _robots[args.task] = _robot(args)
    robot = _robots[args.task]
    stream, latency = _stream(job, robot), case.condition.latency
    config = loop_config(case.cadence.execute_steps, robot.control_period_ns)
    told: list[CacheFigures] = []
    noted = stream if case.variant.cache == "off" else _noting(stream, told)
    episode = run_episode(robot, noted, job.seed, latency=latency, config=config)
    motion_ns = None
    if args.scales and isinstance(robot, SimRobot) and case.who in ("policy", "expert"):
        motion_ns = reaction_ns(robot, stream, job.seed, latency=latency, config=config)
    return Outcome(episode, motion_ns, tuple(told))


def _noting(stream: Stream, told: list[CacheFigures]) -> Stream:
    """The same stream; the cache's figures of each observation are noted."""

    def noted(observation: Observation):
        pieces = list(stream(observation))
        told.extend(p.cache for p in pieces[:1] if isinstance(p, Finished) and p.cache is not None)
        return pieces

    return noted


def _robot(args: Args) -> Simulated:
    spec = _checkpoint(_policy(args), trained=True).meta.robot
    return make_robot(args.suite, args.task, args.hardness, args.flicker, spec)


def _stream(job: Job, robot: Simulated) -> Stream:
    """The row's policy."""
    lower, upper = robot.spec.action_lower, robot.spec.action_upper
    who, steps, horizon = job.case.who, job.case.variant.steps, len(job.case.variant.ready_at)
    if who == "expert":
        return whole(expert(robot, horizon), steps)
    if who == "still":
        return whole(lambda o: np.tile(o.state[: len(lower)], (horizon, 1)), steps)
    if who == "random":
        rng = np.random.default_rng([job.seed, 2])
        size = (horizon, len(lower))
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
    case, policy = job.case, _policy(job.args)
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
