"""Writes recordings, in a process of its own.

    executor --> rings "records", "events" --+
                                             |-- each 40 ms --> a chunk of an MCAP file --> flush
    client   --> ring "client_events" -------+

Nobody waits for the recorder: a ring that it does not drain in time is written over, and the file
says how many records that cost. Each drain ends with the file handed to the operating system, so
that the death of any process costs at most the time since the last drain; the rings keep that
too, for a recorder that is started in place of a dead one. A power cut may cost more: nothing is
forced onto the disk. An hour at 200 records a second is about 0.3 GB, and costs 50 MB of memory
for the index that is written at the end.

The process is started with the run's description on its standard input, and says on its standard
output which file it writes::

    python -m controller.recorder --segment onset-1 --output recordings < meta.json
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from controller.errors import ErrorCode, OnsetError
from controller.record import EVENT_DTYPE, Level, RecordMeta
from controller.recorder_read import Event, Recording, read_recording
from controller.recorder_write import RecordingWriter, new_path
from controller.shared import RingLayout, Segment

__all__ = [
    "DRAIN_S",
    "Event",
    "Recorder",
    "Recording",
    "RecordingWriter",
    "Ring",
    "new_path",
    "record_layout",
    "read_recording",
    "record_process",
    "start_recorder",
]

DRAIN_S = 0.04  # between drains [s]
RECORDS_KEPT, EVENTS_KEPT = 8192, 256  # in the rings [count]
ORPHAN_S = 10.0  # without a record, and without the process that started it [s]


class Ring(Protocol):
    """What the recorder needs of a ring's reader, see ``controller.shared_ring``."""

    def read_all(self, *, done: bool = True) -> tuple[NDArray[np.void], int]:
        """Returns what came since the last call, shape (n,), and how many were lost before it."""
        ...

    def done(self) -> None:
        """Says that what was read is safe."""
        ...


class Recorder:
    """Drains rings into a file.

    Attributes:
        lost: Records and events that were written over before they were read [count].
    """

    def __init__(self, writer: RecordingWriter, records: Ring, events: Sequence[Ring]) -> None:
        self._writer, self._records, self._events = writer, records, events
        self._time_ns = 0
        self.lost = 0

    def drain(self) -> int:
        """Writes what has come since the last drain, and flushes; returns how much it was."""
        # Events first: what a record shows has its reason in the file already.
        read = [ring.read_all(done=False) for ring in self._events]
        records, lost = self._records.read_all(done=False)
        if len(records):
            self._time_ns = int(records["time_ns"][0])
        self._tell_lost(lost, "records")
        self._tell_lost(sum(lost for _, lost in read), "events")
        for events, _ in read:
            for time_ns, level, text in events.tolist():
                known = Level(level) if level in Level else Level.INFO
                self._writer.event(time_ns, known, text.decode(errors="replace"))
        if len(records):
            self._writer.append(records)
            self._time_ns = int(records["time_ns"][-1])
        self._writer.flush()
        for ring in (*self._events, self._records):
            ring.done()
        return len(records) + sum(len(events) for events, _ in read)

    def _tell_lost(self, lost: int, what: str) -> None:
        if lost:
            self.lost += lost
            said = f"overrun: {lost} {what} were written over before they were read"
            self._writer.event(self._time_ns, Level.WARNING, said)

    def close(self) -> None:
        """Writes what is left, and closes the file."""
        self.drain()
        self._writer.close()


def record_layout(meta: RecordMeta) -> dict[str, RingLayout]:
    """Returns the layout of the segment that the recorder reads.

    Each ring has one writer: the executor writes ``records`` and ``events``, the client
    ``client_events``. They hold 16 s at 500 records a second.
    """
    return {
        "records": RingLayout(meta.dtype, RECORDS_KEPT),
        "events": RingLayout(EVENT_DTYPE, EVENTS_KEPT),
        "client_events": RingLayout(EVENT_DTYPE, EVENTS_KEPT),
    }


def record_process(
    records: Ring,
    events: Sequence[Ring],
    output: Path,
    meta: RecordMeta,
    stopped: Callable[[], bool],
    *,
    opened: Callable[[Path], None] = lambda path: None,
) -> int:
    """Records until told to stop; returns how many records were written.

    Args:
        records: Of the run's type.
        events: Each of ``EVENT_DTYPE``.
        output: Folder for the file.
        meta: The run.
        stopped: Asked before each drain.
        opened: Told the path once the file is there.
    """
    with RecordingWriter(new_path(output, meta.robot), meta) as writer:
        recorder = Recorder(writer, records, events)
        opened(writer.path)
        parent, heard = os.getppid(), time.monotonic()
        while not stopped():
            if recorder.drain():
                heard = time.monotonic()
            # Whoever should stop it may be dead. The executor may outlive that process, so it is
            # silence that counts.
            if os.getppid() != parent and time.monotonic() - heard > ORPHAN_S:
                break
            time.sleep(DRAIN_S)
        recorder.close()
        return writer.count


def start_recorder(segment: str, output: Path, meta: RecordMeta) -> tuple[subprocess.Popen, Path]:
    """Starts the recorder of a shared segment.

    Stop it by SIGTERM and wait for it: it then writes what is left. SIGINT, which a terminal sends
    to every process, does not stop it: the arm is still to be decelerated.

    Returns:
        The process, and the file that it writes.

    Raises:
        OnsetError: UNAVAILABLE when it does not start; the message is on its standard error.
    """
    command = [sys.executable, "-m", "controller.recorder", "--segment", segment]
    process = subprocess.Popen(
        [*command, "--output", str(output)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    if process.stdin is None or process.stdout is None:
        raise OnsetError(ErrorCode.INTERNAL, "recorder", "no pipes", "a process with pipes")
    try:
        with process.stdin as pipe:
            pipe.write(json.dumps(meta.to_dict()).encode())
    except BrokenPipeError:
        pass  # it has ended: there is no path either
    path = process.stdout.readline().decode().strip()
    if not path:
        code = process.wait()
        raise OnsetError(ErrorCode.UNAVAILABLE, "recorder", f"exit code {code}", "a recorder")
    return process, Path(path)


def main() -> None:
    """Records a shared segment until SIGTERM."""
    parser = argparse.ArgumentParser(
        prog="python -m controller.recorder",
        description="Records a shared segment until SIGTERM. Reads the run's description, "
        "RecordMeta as JSON, from its standard input, and prints the path of the file.",
    )
    parser.add_argument("--segment", required=True, help="name of the shared segment")
    parser.add_argument("--output", required=True, type=Path, help="folder for the file")
    args = parser.parse_args()
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    meta = RecordMeta.from_dict(json.load(sys.stdin))
    with Segment.attach(args.segment, record_layout(meta)) as segment:
        records, *events = (segment.ring(name).reader() for name in record_layout(meta))
        record_process(
            records,
            events,
            args.output,
            meta,
            lambda: bool(told),
            opened=lambda path: print(path, flush=True),
        )


if __name__ == "__main__":
    try:
        main()
    except (OnsetError, OSError) as failure:
        raise SystemExit(f"recorder: error: {failure}") from failure
