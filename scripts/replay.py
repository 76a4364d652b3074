"""Replays a recording in simulation, and says how far the arm is from the recorded one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from controller.errors import ErrorCode, OnsetError
from controller.record import Level
from controller.recorder_read import Recording, read_recording
from controller.types import Command, Float
from sim.env import SimRobot
from sim.film import Film, write_video
from sim.plot_recording import plot_recording
from sim.robots.so101 import to_joints
from sim.tasks import make_task

CONSOLE = Console()
DEFAULT_TASK = "pick_place"


@dataclass(frozen=True)
class Args:
    """Replays a recording in simulation.

    The recorded commands are written to the simulated arm at their recorded times; the table says
    how far its joints were then from the recorded ones. A recording of a simulated run without
    faults comes out the same; one of a real arm shows how far the simulation is from it. A file
    that was cut, by a crash or a full disk, is replayed as far as it goes.

    Attributes:
        file: The recording, an MCAP file.
        task: The scene; the recorded one where it is known, else pick_place.
        seed: Seed of the scene of the first episode; the recorded one where it is known, else 0.
        plot: Write a picture: desired, commanded, measured and replayed joints, and the mode.
        video: Write a video of the replay.
        events: List the recorded events, not only warnings and errors.
    """

    file: Annotated[Path, tyro.conf.Positional]
    task: str | None = None
    seed: int | None = None
    plot: Path | None = None
    video: Path | None = None
    events: bool = False


@dataclass(frozen=True)
class Replay:
    """What the simulated arm did.

    Attributes:
        state: At each record, as in the recording; NaN where the arm has no such state. Shape
            (n, S).
        films: One an episode.
    """

    state: Float
    films: tuple[Film, ...]


def main(args: Args) -> None:
    recording = read_recording(args.file)
    for remark in recording.remarks():
        CONSOLE.print(f"remark: {remark}", markup=False, highlight=False, soft_wrap=True)
    if not len(recording.records):
        raise OnsetError(ErrorCode.BAD_VALUE, "recording", f"{args.file}, no record", "records")
    CONSOLE.print(summary(recording), markup=False, highlight=False, soft_wrap=True)
    for event in recording.events:
        if args.events or event.level >= Level.WARNING:
            at = (event.time_ns - int(recording.records["time_ns"][0])) * 1e-9
            line = f"  {at:8.3f} s  {event.level.name.lower()}: {event.text}"
            CONSOLE.print(line, markup=False, highlight=False, soft_wrap=True)
    robot = SimRobot(make_task(args.task or recording.meta.extra.get("task", DEFAULT_TASK)))
    replay = replay_recording(recording, robot, args.seed, film=args.video is not None)
    CONSOLE.print(error_table(recording, replay))
    if args.plot is not None:
        title = f"{recording.meta.robot}, {args.file.name}"
        plot_recording(args.plot, recording, title, replayed=replay.state)
        CONSOLE.print(f"wrote {args.plot}", soft_wrap=True)
    if args.video is not None:
        write_video(args.video, list(replay.films), 1e9 / recording.meta.period_ns)
        CONSOLE.print(f"wrote {args.video}", soft_wrap=True)


def summary(recording: Recording) -> str:
    """One paragraph: what was recorded, and how long it was in which mode."""
    meta, records = recording.meta, recording.records
    modes, counts = np.unique(records["mode"], return_counts=True)
    shares = ", ".join(
        f"{meta.mode_names.get(int(mode), f'mode {mode}').lower()} {count / len(records):.1%}"
        for mode, count in zip(modes, counts, strict=True)
    )
    origin = " ".join(part for part in (meta.model, meta.server, meta.strategy) if part)
    return (
        f"{meta.robot}, {meta.started or 'start not known'}"
        f"{f', {origin}' if origin else ''}: "
        f"{len(records)} records in {recording.duration_s:.1f} s, "
        f"{len(np.unique(records['episode']))} episode(s), {len(recording.events)} event(s)\n"
        f"modes: {shares}"
    )


def replay_recording(
    recording: Recording, robot: SimRobot, seed: int | None = None, *, film: bool = False
) -> Replay:
    """Writes the recorded commands to a simulated arm at their times.

    Each episode begins in the recorded pose and with the scene of its seed.

    Args:
        recording: Of an arm with the same action dimensions.
        robot: The simulated arm.
        seed: Of the first episode, the next one has the next; None for the recorded one.
        film: Whether to keep the states for a video.

    Raises:
        OnsetError: BAD_NAMES when the recorded arm is another.
    """
    meta, records = recording.meta, recording.records
    if meta.action_names != robot.spec.action_names:
        raise OnsetError(
            ErrorCode.BAD_NAMES,
            "recording.action_names",
            list(meta.action_names),
            list(robot.spec.action_names),
        )
    first = int(meta.extra.get("seed", 0)) if seed is None else seed
    own = [robot.spec.state_names.index(n) for n in meta.state_names if n in robot.spec.state_names]
    theirs = [i for i, name in enumerate(meta.state_names) if name in robot.spec.state_names]
    state = np.full((len(records), len(meta.state_names)), np.nan, np.float32)
    films: list[Film] = []
    for number, part in enumerate(_episodes(records)):
        at = int(records["time_ns"][part.start])
        prompt = robot.reset(first + number, now_ns=at)
        _take_pose(robot, recording, records["measured"][part.start])
        films.append(Film(robot, f'{robot.task.name}: "{meta.prompt or prompt}"'))
        step = -1
        for i in range(part.start, part.stop):
            record = records[i]
            # A late tick wrote late, and read late.
            now = int(record["time_ns"] + max(0, record["late_ns"]))
            robot.advance_to(now)
            state[i, theirs] = robot.read().state[own]
            if film and record["step"] != step:
                films[-1].capture()
                step = record["step"]
            if np.isfinite(record["command"]).all():
                robot.write(Command(now, record["command"].astype(np.float32)))
    return Replay(state, tuple(films))


def _episodes(records: NDArray[np.void]) -> Iterator[slice]:
    cuts = np.flatnonzero(np.diff(records["episode"])) + 1
    for begin, end in zip([0, *cuts], [*cuts, len(records)], strict=True):
        yield slice(int(begin), int(end))


def _take_pose(robot: SimRobot, recording: Recording, measured: Float) -> None:
    """Puts the arm where the recorded one was, as far as that was measured."""
    names = recording.meta.state_names
    pose = robot.position
    for i, name in enumerate(robot.spec.action_names):
        if name in names and np.isfinite(value := measured[names.index(name)]):
            pose[i] = value
    robot.data.qpos[:6] = robot.data.ctrl[:6] = to_joints(pose)


def error_table(recording: Recording, replay: Replay) -> Table:
    """One row a state dimension: how far the replayed arm was from the recorded one."""
    table = Table(title="replayed against recorded state", box=SIMPLE_HEAD)
    table.add_column("joint")
    for name in ("unit", "rms", "p99", "greatest"):
        table.add_column(name, justify="right")
    meta = recording.meta
    difference = np.abs(replay.state - recording.records["measured"])
    for i, (name, unit) in enumerate(zip(meta.state_names, meta.state_units, strict=True)):
        values = difference[:, i][np.isfinite(difference[:, i])].astype(np.float64)
        if len(values):
            rms, p99 = np.sqrt(np.mean(values**2)), np.quantile(values, 0.99)
            table.add_row(name, unit, f"{rms:.5f}", f"{p99:.5f}", f"{values.max():.5f}")
        else:
            table.add_row(name, unit, "-", "-", "-")
    return table


if __name__ == "__main__":
    try:
        main(tyro.cli(Args))
    except (OnsetError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
