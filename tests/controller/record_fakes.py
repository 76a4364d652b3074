"""Records of a small run, a ring without shared memory, and an executor that just records."""

from __future__ import annotations

import sys
import time

import numpy as np
from numpy.typing import NDArray

from controller.record import Level, RecordMeta, describe_run, new_event, new_records
from controller.recorder import record_layout
from controller.shared import Segment
from tests.controller.helpers import MS, ROBOT

META: RecordMeta = describe_run(
    ROBOT, 5 * MS, 100 * MS, strategy="naive", prompt="hit the red mole", extra={"seed": "7"}
)


def some_records(count: int, first: int = 0, period_ns: int = 5 * MS) -> NDArray[np.void]:
    """Records with every field different; each third has no desired action. Shape (n,)."""
    records = new_records(count, len(ROBOT.action), len(ROBOT.state))
    tick = first + np.arange(count)
    for i, name in enumerate(records.dtype.names or ()):
        kind = records.dtype[name].base.kind
        column = tick[:, None] if records.dtype[name].shape else tick
        if kind == "f":
            records[name] = np.sin(0.1 * column + i) / 3
        elif records.dtype[name].itemsize > 1:
            records[name] = column * 3 + i
        else:
            records[name] = column % 2
    records["tick"] = tick
    records["time_ns"] = 100 * MS + tick * period_ns
    records["desired"][::3] = np.nan
    return records


class FakeRing:
    """Gives out what is put in, once."""

    def __init__(self, dtype: np.dtype) -> None:
        self._waiting = np.zeros(0, dtype)
        self.lost = 0

    def put(self, rows: NDArray[np.void]) -> None:
        self._waiting = np.concatenate([self._waiting, rows])

    def read_all(self, *, done: bool = True) -> tuple[NDArray[np.void], int]:
        rows, lost = self._waiting, self.lost
        self._waiting, self.lost = rows[:0], 0
        return rows, lost

    def done(self) -> None:
        pass


def run_executor(segment_name: str, count: int, first: int = 0) -> None:
    """Puts records into a segment, one each 2 ms, due at their time on the real clock.

    Args:
        segment_name: A segment of ``record_layout(META)``.
        count: Records; it then ends without a word.
        first: Number of the first tick.
    """
    with Segment.attach(segment_name, record_layout(META)) as segment:
        ring, events = segment.ring("records"), segment.ring("events")
        events.write(new_event(time.monotonic_ns(), Level.INFO, f"begins at tick {first}"))
        due = time.monotonic_ns()
        for record in some_records(count, first):
            due += 2 * MS
            time.sleep(max(0, due - time.monotonic_ns()) * 1e-9)
            record["time_ns"] = due
            ring.write(record)


if __name__ == "__main__":
    run_executor(sys.argv[1], int(sys.argv[2]))
