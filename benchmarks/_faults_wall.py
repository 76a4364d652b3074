"""The fault matrix in wall-clock time: many runs of one fault over one executor and recording."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np

from benchmarks._faults_check import new_starts
from benchmarks._faults_judge import Run, Verdict
from benchmarks._faults_kinds import Fault
from benchmarks._faults_stack import ROBOT, Rig, Traffic, World, rig
from benchmarks._faults_survive import reached_ns
from controller.limits import MotionLimits
from controller.recorder import Recording
from controller.robot_file import load_robot
from controller.watchdog import Mode

PERIOD_NS = 5_000_000
_BEFORE_S = (0.5, 1.2)  # from the first motion to the fault
_STEADY_S = 0.4  # so long it must run at the end
_SETTLE_S = 1.6  # but no longer than this is waited for
_START_S = 5.0
_POLL_S = 0.005


@dataclass(frozen=True)
class Outcome:
    """Runs of a fault.

    Attributes:
        verdict: What they came to.
        runs: When they were.
        recordings: What was recorded.
    """

    verdict: Verdict
    runs: list[Run]
    recordings: list[Recording]


def run_fault(
    world: World, fault: Fault, runs: int, seed: int, on_run: Callable[[], None]
) -> Outcome:
    """Runs a fault again and again; each time in a new scene, at a random time."""
    random, done, sizes = Random(f"{fault.name} {seed}"), [], []
    with rig(world, fault.name) as made:
        for number in range(runs):
            run, path, size = _run(made, fault, seed + number, random)
            done.append(run)
            sizes.append((path, size))
            on_run()
        last_tick = made.close()
    verdict = Verdict(fault.name, "wall", fault.holds)
    done = [
        Run(
            run.fault_ns, run.return_ns, run.end_ns, run.mode,
            max(0.0, (run.end_ns - reached_ns(path, size)) * 1e-6),
        )
        for run, (path, size) in zip(done, sizes, strict=True)
    ]  # fmt: skip
    recordings = made.read()
    records = np.concatenate([recording.records for recording in recordings])
    # A recorder that takes over may write again what the one before it had written just so.
    _, first = np.unique(records["tick"], return_index=True)
    records = records[first]
    events = [event for recording in recordings for event in recording.events]
    verdict.take(
        done,
        records,
        new_starts(records, events),
        Traffic.read(made.log),
        limits(),
        PERIOD_NS,
        world.device.spec.period_ns,
    )
    verdict.missing = last_tick - len(records)
    verdict.lost_ms = max(verdict.lost_ms, verdict.missing * PERIOD_NS * 1e-6)
    return Outcome(verdict, done, recordings)


def limits() -> MotionLimits:
    """The robot file's."""
    return load_robot(ROBOT).limits


def _run(made: Rig, fault: Fault, seed: int, random: Random) -> tuple[Run, Path, int]:
    """One run; with it the recording's path and size at its end."""
    runtime, steps = made.runtime, fault.script(made)
    next(steps)
    made.client.tell(f"begin {seed}")
    if not runtime.wait(Mode.RUNNING, _START_S) and runtime.mode is Mode.FAULT:
        runtime.clear()  # of the run before, which has failed for it
    if not runtime.wait(Mode.RUNNING, _START_S):
        raise RuntimeError(f"{fault.name}: {runtime.mode.name} instead of RUNNING at the start")
    time.sleep(random.uniform(*_BEFORE_S))
    fault_ns = time.monotonic_ns()
    next(steps)
    time.sleep(fault.lasts_s)
    return_ns = _lift(steps)
    _settle(made)
    # In this order: what is in the file by now, of what the executor had done.
    newest_ns, path = made.newest_ns, made.recordings[-1]
    size = path.stat().st_size
    run = Run(fault_ns, return_ns, newest_ns, runtime.mode)
    if run.mode is Mode.FAULT:
        runtime.clear()
    return run, path, size


def _lift(steps) -> int:
    try:
        next(steps)
    except StopIteration as end:
        return end.value
    raise RuntimeError("a script with more than two parts")


def _settle(made: Rig) -> None:
    began = since = time.monotonic()
    while (now := time.monotonic()) - began < _SETTLE_S and now - since < _STEADY_S:
        if made.runtime.mode is not Mode.RUNNING:
            since = now
        time.sleep(_POLL_S)
