"""Records of a small run, rings without shared memory, and a recorder process to be killed."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from controller.record import EVENT_DTYPE, RecordMeta, describe_run, new_event, new_records
from controller.recorder import record_process
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

    def read_all(self) -> tuple[NDArray[np.void], int]:
        rows, lost = self._waiting, self.lost
        self._waiting, self.lost = rows[:0], 0
        return rows, lost


class ClockRing:
    """An executor of the fastest kind: a record each 2 ms, due at its time on the real clock."""

    def __init__(self) -> None:
        self._start_ns, self._given = time.monotonic_ns(), 0

    def read_all(self) -> tuple[NDArray[np.void], int]:
        due = (time.monotonic_ns() - self._start_ns) // (2 * MS)
        records = some_records(due - self._given, self._given)
        records["time_ns"] = self._start_ns + records["tick"] * 2 * MS
        self._given = due
        return records, 0


def record_for_ever(folder: Path) -> None:
    """Records a ``ClockRing`` until killed, and says which file it writes."""
    events = FakeRing(EVENT_DTYPE)
    events.put(new_event(0, 2, "begins"))
    record_process(
        ClockRing(), events, folder, META, lambda: False, opened=lambda p: print(p, flush=True)
    )


if __name__ == "__main__":
    record_for_ever(Path(sys.argv[1]))
