"""Writes one recording: an MCAP file in chunks that each stand alone."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
from mcap.writer import Writer
from numpy.typing import NDArray

from controller import recorder_format as form
from controller.errors import ErrorCode, OnsetError
from controller.record import Level, RecordMeta


class RecordingWriter:
    """One recording: appended to, and handed to the operating system at each ``flush``.

    Attributes:
        path: The file.
        count: Records written [count].
    """

    def __init__(self, path: Path, meta: RecordMeta) -> None:
        """Makes the file, with its description in it.

        Raises:
            FileExistsError: There is such a file: a recording is never written over.
        """
        self.path, self.count = path, 0
        self._dtype = meta.dtype
        self._file: BinaryIO = path.open("xb")
        # Chunks end where ``flush`` says.
        self._writer = Writer(self._file, chunk_size=2**40)
        self._writer.start(library=f"onset {meta.version}".strip())
        self._writer.add_metadata("onset", form.metadata_of(meta))
        now = meta.started_ns
        describes = self._channel(form.META_TOPIC, "onset.Meta", form.meta_schema(meta))
        self._ticks = self._channel(form.TICK_TOPIC, "onset.Tick", form.tick_schema(meta))
        self._events = self._channel(form.EVENT_TOPIC, "foxglove.Log", form.event_schema())
        self._put(describes, now, form.encode_meta(meta))
        self.flush()

    def _channel(self, topic: str, name: str, schema: dict) -> int:
        known = self._writer.register_schema(name, "jsonschema", form.schema_bytes(schema))
        return self._writer.register_channel(topic, "json", known)

    def _put(self, channel: int, time_ns: int, message: bytes, sequence: int = 0) -> None:
        at = max(0, time_ns)
        self._writer.add_message(channel, at, message, at, sequence)

    def append(self, records: NDArray[np.void]) -> None:
        """Appends records of the run's type, in order. Shape (n,).

        Raises:
            OnsetError: BAD_SHAPE when they are of another type.
        """
        if records.dtype != self._dtype:
            raise OnsetError(ErrorCode.BAD_SHAPE, "records", records.dtype, self._dtype)
        times, ticks = records["time_ns"].tolist(), records["tick"].tolist()
        for time_ns, tick, message in zip(times, ticks, form.encode_records(records), strict=True):
            self._put(self._ticks, time_ns, message, tick % 2**32)
        self.count += len(records)

    def event(self, time_ns: int, level: Level, text: str) -> None:
        """Appends an event at a time on the robot's clock [ns]."""
        self._put(self._events, time_ns, form.encode_event(time_ns, int(level), text))

    def flush(self) -> None:
        """Hands everything to the operating system: from here on no process can lose it."""
        self._writer.flush()

    def close(self) -> None:
        """Writes the indexes that make a long file quick to open; a second call does nothing."""
        if not self._file.closed:
            self._writer.finish()
            self._file.close()

    def __enter__(self) -> RecordingWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def new_path(folder: Path, robot: str, at: datetime | None = None) -> Path:
    """Returns a path for a new recording, named by robot and time; makes the folder.

    Args:
        folder: Where recordings are kept.
        robot: Robot model; what no file name can hold is replaced.
        at: Wall time; now by default.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = "".join(c if c.isalnum() or c in "-_." else "_" for c in robot) or "robot"
    stem = f"{name}_{at or datetime.now():%Y%m%d-%H%M%S}"
    count, path = 1, folder / f"{stem}.mcap"
    while path.exists():
        count += 1
        path = folder / f"{stem}-{count}.mcap"
    return path
