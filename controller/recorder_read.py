"""Reads recordings, whole ones and those that were cut anywhere."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from mcap.data_stream import ReadDataStream
from mcap.exceptions import McapError
from mcap.opcode import Opcode
from mcap.records import Channel, Chunk, McapRecord, Message
from mcap.stream_reader import breakup_chunk
from mcap.writer import MCAP0_MAGIC
from numpy.typing import NDArray
from zstandard import ZstdError

from controller.errors import ErrorCode, OnsetError
from controller.record import Level, RecordMeta
from controller.recorder_format import (
    EVENT_TOPIC,
    META_TOPIC,
    TICK_TOPIC,
    decode_events,
    decode_records,
)

_FRAME = struct.Struct("<BQ")  # opcode, length of what follows


@dataclass(frozen=True)
class Event:
    """Something that happened seldom.

    Attributes:
        time_ns: Robot's clock [ns].
        level: How much it matters.
        text: What happened.
    """

    time_ns: int
    level: Level
    text: str


@dataclass(frozen=True)
class Recording:
    """What a file holds.

    Attributes:
        path: The file.
        meta: Description of the run.
        records: One a tick, in the file's order; see ``controller.record``. Shape (n,).
        events: In the file's order.
        complete: Whether the recorder closed the file; else its end is missing.
        lost_bytes: Bytes at the end of a cut file that are no whole part of it.
    """

    path: Path
    meta: RecordMeta
    records: NDArray[np.void]
    events: tuple[Event, ...]
    complete: bool
    lost_bytes: int = 0

    @property
    def missing_ticks(self) -> int:
        """Ticks between the first and the last record that have none [count]."""
        steps = np.diff(self.records["tick"])
        return int((steps[steps > 1] - 1).sum())

    @property
    def duration_s(self) -> float:
        """From the first record to the last [s]."""
        times = self.records["time_ns"]
        return float(times[-1] - times[0]) * 1e-9 if len(times) else 0.0

    def remarks(self) -> list[str]:
        """Says in plain words what is missing; empty when nothing is."""
        said = []
        if not self.complete:
            part = f", and its last {self.lost_bytes} bytes are half a part" * bool(self.lost_bytes)
            said.append(
                f"{self.path.name} was never closed{part}: "
                f"it can be read up to {self.duration_s:.2f} s after its first record"
            )
        if self.missing_ticks:
            said.append(
                f"{self.missing_ticks} ticks between the first record and the last have none"
            )
        return said


def read_recording(path: Path) -> Recording:
    """Reads a recording as far as it goes.

    Raises:
        OnsetError: BAD_VALUE when the file is no recording, or was cut before its description.
        OSError: The file cannot be read.
    """
    data = path.read_bytes()
    if not data.startswith(MCAP0_MAGIC):
        raise OnsetError(
            ErrorCode.BAD_VALUE, "recording", path, "a file that Onset's recorder wrote (MCAP)"
        )
    topics: dict[int, str] = {}
    messages: dict[str, list[bytes]] = {META_TOPIC: [], TICK_TOPIC: [], EVENT_TOPIC: []}
    end, complete = len(MCAP0_MAGIC), False
    for opcode, begin, stop in _frames(data):
        if opcode == Opcode.DATA_END:
            complete = True  # what follows are indexes
            break
        try:
            inside = _records_of(opcode, data[begin:stop])
        except (McapError, ZstdError, ValueError, struct.error):
            break  # a power cut may leave blocks of zeros in the last parts
        for record in inside:
            if isinstance(record, Channel):
                topics[record.id] = record.topic
            elif isinstance(record, Message):
                messages.setdefault(topics.get(record.channel_id, ""), []).append(record.data)
        end = stop
    if not messages[META_TOPIC]:
        raise OnsetError(
            ErrorCode.BAD_VALUE,
            "recording",
            f"{path}, {len(data)} bytes without a description of the run",
            f"a file with a message on {META_TOPIC}",
        )
    try:
        meta = RecordMeta.from_dict(json.loads(messages[META_TOPIC][0]))
        records = decode_records(messages[TICK_TOPIC], meta)
        events = tuple(
            Event(time_ns, Level(level), text)
            for time_ns, level, text in decode_events(messages[EVENT_TOPIC])
        )
    except (ValueError, KeyError, TypeError) as error:
        raise OnsetError(
            ErrorCode.BAD_VALUE, "recording", f"{path}: {error}", "messages of Onset's schemas"
        ) from error
    return Recording(path, meta, records, events, complete, 0 if complete else len(data) - end)


def _frames(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yields opcode, begin and end of each part that is there whole."""
    at = len(MCAP0_MAGIC)
    while at + _FRAME.size <= len(data):
        opcode, length = _FRAME.unpack_from(data, at)
        begin = at + _FRAME.size
        at = begin + length
        if opcode == 0 or at > len(data):
            return
        yield opcode, begin, at


def _records_of(opcode: int, body: bytes) -> list[McapRecord]:
    stream = ReadDataStream(BytesIO(body))
    if opcode == Opcode.CHUNK:
        return breakup_chunk(Chunk.read(stream), validate_crc=True)
    if opcode == Opcode.CHANNEL:
        return [Channel.read(stream)]
    if opcode == Opcode.MESSAGE:
        return [Message.read(stream, len(body))]
    return []
