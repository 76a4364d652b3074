"""A recording of the simulated arm in virtual time: it moves, its actions run out, it holds."""

from __future__ import annotations

from enum import IntEnum
from pathlib import Path

import numpy as np

from controller.record import Level, describe_run, new_records
from controller.recorder import RecordingWriter
from controller.types import Command
from sim.env import SimRobot
from sim.tasks import make_task

TICK_NS = 5_000_000
RUN_TICKS, COAST_TICKS, STOP_TICKS = 240, 40, 30  # per episode; then it holds


class Mode(IntEnum):
    RUNNING = 0
    COASTING = 1
    DECELERATING = 2
    HOLDING = 3


def record_simulation(path: Path, episodes: int = 1, ticks: int = 400, seed: int = 3) -> None:
    """Writes a recording of the whack scene at 200 Hz; its clock begins at 50 s."""
    robot = SimRobot(make_task("whack"))
    clock = 50_000_000_000
    meta = describe_run(
        robot.spec,
        TICK_NS,
        clock,
        modes=Mode,
        strategy="onset",
        server="localhost:1",
        extra={"task": "whack", "seed": str(seed)},
    )
    width, deep = len(robot.spec.action), len(robot.spec.state)
    with RecordingWriter(path, meta) as writer:
        for episode in range(episodes):
            robot.reset(seed + episode, now_ns=clock)
            start = robot.position
            records = new_records(ticks, width, deep)
            phase = 0.0
            for i, record in enumerate(records):
                robot.advance_to(clock)
                past = i - RUN_TICKS - COAST_TICKS
                pace = np.clip(1 - past / STOP_TICKS, 0, 1)  # of the wave: slows down, then stops
                phase += TICK_NS * 1e-9 * pace
                wave = 0.4 * np.sin(3 * phase + np.arange(width)) - 0.4 * np.sin(np.arange(width))
                command = start + np.minimum(1, i / 60) * wave * [1, 0.5, 0.5, 0.5, 1, 0.5]
                if past < 0:
                    record["desired"] = start + (command - start).round(1)
                mode = (i >= RUN_TICKS) + (past >= 0) + (past >= STOP_TICKS)
                record["tick"] = episode * ticks + i
                record["time_ns"], record["step"] = clock, i // 8
                record["episode"], record["mode"] = episode, mode
                record["target"] = record["command"] = command
                record["measured"] = robot.read().state
                robot.write(Command(clock, command.astype(np.float32)))
                clock += TICK_NS
            writer.append(records)
            writer.event(clock, Level.ERROR, f"session lost in episode {episode}")
            writer.flush()
