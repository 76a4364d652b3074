"""Recordings: round trip, cut files, overruns, viewers."""

from __future__ import annotations

import json
import os
import time
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from mcap.reader import make_reader
from numpy.typing import NDArray

from controller import recorder
from controller.errors import OnsetError
from controller.record import EVENT_DTYPE, Level, RecordMeta, new_event, record_dtype
from controller.recorder import (
    Event,
    Recorder,
    RecordingWriter,
    new_path,
    read_recording,
    record_process,
)
from controller.recorder_format import encode_records
from tests.controller.helpers import MS
from tests.controller.record_fakes import META, FakeRing, some_records

AT = datetime(2026, 1, 2, 3, 4, 5)


def same(a: NDArray[np.void], b: NDArray[np.void]) -> bool:
    """Equal in every bit, NaN included."""
    return a.dtype == b.dtype and a.tobytes() == b.tobytes()


def write(path: Path, parts: int = 4, each: int = 10) -> NDArray[np.void]:
    """A closed recording of several chunks; returns its records."""
    records = some_records(parts * each)
    with RecordingWriter(path, META) as writer:
        for part in range(parts):
            writer.event(100 * MS + part, Level.INFO, f"part {part}")
            writer.append(records[part * each : (part + 1) * each])
            writer.flush()
    return records


def test_round_trip(tmp_path: Path) -> None:
    records = write(tmp_path / "a.mcap")
    recording = read_recording(tmp_path / "a.mcap")
    assert recording.meta == META
    assert same(recording.records, records)
    assert recording.events[1] == Event(100 * MS + 1, Level.INFO, "part 1")
    assert recording.complete
    assert recording.lost_bytes == recording.missing_ticks == 0
    assert recording.remarks() == []
    assert recording.duration_s == pytest.approx(39 * 0.005)


def test_infinite_values_come_back_as_nan(tmp_path: Path) -> None:
    records = some_records(2)
    records["command"][0] = [np.inf, -np.inf]
    with RecordingWriter(tmp_path / "a.mcap", META) as writer:
        writer.append(records)
    read = read_recording(tmp_path / "a.mcap").records
    assert np.isnan(read["command"][0]).all()
    assert same(read[1:], records[1:])


def test_cut_at_every_byte(tmp_path: Path) -> None:
    path = tmp_path / "a.mcap"
    records = write(path, parts=2, each=2)
    data = path.read_bytes()
    cut = tmp_path / "cut.mcap"
    known = -1
    for size in range(len(data) + 1):
        cut.write_bytes(data[:size])
        try:
            recording = read_recording(cut)
        except OnsetError:
            assert known == -1  # once the description is there, it stays
            continue
        count = len(recording.records)
        assert count >= known
        assert count % 2 == 0
        assert same(recording.records, records[:count])
        assert 0 <= recording.lost_bytes <= size
        assert recording.complete or "never closed" in recording.remarks()[0]
        if recording.complete:
            assert count == len(records)
        known = count
    assert known == len(records)


def test_every_chunk_stands_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.mcap"
    records = some_records(30)
    writer = RecordingWriter(path, META)
    for i in range(3):
        writer.append(records[10 * i : 10 * i + 10])
        writer.flush()
        recording = read_recording(path)  # the writer still has it open
        assert same(recording.records, records[: 10 * i + 10])
        assert not recording.complete
        assert recording.lost_bytes == 0
    writer.close()
    writer.close()


def test_damaged_end_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.mcap"
    records = some_records(20)
    writer = RecordingWriter(path, META)
    writer.append(records[:10])
    writer.flush()
    good = path.stat().st_size
    writer.append(records[10:])
    writer.flush()
    data = bytearray(path.read_bytes())
    for damage in (bytes(len(data) - good), data[good:-200] + bytes(200)):
        (tmp_path / "b.mcap").write_bytes(data[:good] + damage)
        recording = read_recording(tmp_path / "b.mcap")
        assert same(recording.records, records[:10])
        assert recording.lost_bytes == len(data) - good
        assert f"last {recording.lost_bytes} bytes" in recording.remarks()[0]


@pytest.mark.parametrize("content", [b"", b"text", bytes(100)])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.mcap").write_bytes(content)
    with pytest.raises(OnsetError, match="recorder wrote"):
        read_recording(tmp_path / "a.mcap")


def test_records_of_another_robot_are_refused(tmp_path: Path) -> None:
    with (
        RecordingWriter(tmp_path / "a.mcap", META) as writer,
        pytest.raises(OnsetError, match="records"),
    ):
        writer.append(np.zeros(1, record_dtype(3, 3)))


def test_each_run_gets_a_file(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    first = new_path(folder, "so 101/a", AT)
    assert first.name == "so_101_a_20260102-030405.mcap"
    write(first)
    second = new_path(folder, "so 101/a", AT)
    assert second.name == "so_101_a_20260102-030405-2.mcap"
    with pytest.raises(FileExistsError):
        RecordingWriter(first, META)


def test_overrun_is_told(tmp_path: Path) -> None:
    ring, events = FakeRing(META.dtype), FakeRing(EVENT_DTYPE)
    drained = Recorder(RecordingWriter(tmp_path / "a.mcap", META), ring, [events])
    ring.put(some_records(5))
    events.put(new_event(3, Level.ERROR, "session lost"))
    assert drained.drain() == 6
    ring.put(some_records(5, first=12))
    ring.lost, events.lost = 7, 2
    drained.drain()
    drained.close()
    assert drained.lost == 9
    recording = read_recording(tmp_path / "a.mcap")
    assert recording.missing_ticks == 7
    assert "7 ticks" in recording.remarks()[0]
    told = [(event.time_ns, event.level, event.text) for event in recording.events]
    at = 100 * MS + 12 * 5 * MS
    assert told == [
        (3, Level.ERROR, "session lost"),
        (at, Level.WARNING, "overrun: 7 records were written over before they were read"),
        (at, Level.WARNING, "overrun: 2 events were written over before they were read"),
    ]


def test_events_of_any_bytes_are_kept(tmp_path: Path) -> None:
    events = FakeRing(EVENT_DTYPE)
    events.put(np.array([(1, 99, b"\xff odd")], EVENT_DTYPE))
    drained = Recorder(RecordingWriter(tmp_path / "a.mcap", META), FakeRing(META.dtype), [events])
    drained.close()
    assert read_recording(tmp_path / "a.mcap").events == (Event(1, Level.INFO, "\ufffd odd"),)


def test_what_is_left_is_written_when_it_stops(tmp_path: Path) -> None:
    ring, events = FakeRing(META.dtype), FakeRing(EVENT_DTYPE)
    asked = []

    def stopped() -> bool:
        asked.append(1)
        ring.put(some_records(3, first=3 * len(asked)))
        return len(asked) > 2

    paths: list[Path] = []
    assert record_process(ring, [events], tmp_path, META, stopped, opened=paths.append) == 9
    recording = read_recording(paths[0])
    assert recording.complete
    assert recording.records["tick"].tolist() == list(range(3, 12))


def test_orphan_stops_when_nothing_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever should have stopped it is gone, and so is whoever wrote records."""
    monkeypatch.setattr(recorder, "ORPHAN_S", 0.2)
    parents = iter([7, 7, 7])
    monkeypatch.setattr(os, "getppid", lambda: next(parents, 1))
    ring, events = FakeRing(META.dtype), FakeRing(EVENT_DTYPE)
    ring.put(some_records(3))
    paths: list[Path] = []
    assert record_process(ring, [events], tmp_path, META, lambda: False, opened=paths.append) == 3
    assert read_recording(paths[0]).complete


def test_viewer_finds_schemas_messages_and_metadata(tmp_path: Path) -> None:
    named = RecordMeta.from_dict(META.to_dict() | {"mode_names": {"0": "RUNNING", "3": "HOLDING"}})
    with RecordingWriter(tmp_path / "a.mcap", named) as writer:
        writer.event(1, Level.WARNING, "hm")
        writer.append(some_records(4))
    with (tmp_path / "a.mcap").open("rb") as file:
        reader = make_reader(file)
        summary = reader.get_summary()
        assert summary is not None
        assert summary.chunk_indexes  # a viewer may jump
        metadata = next(iter(reader.iter_metadata()))
        assert metadata.metadata["prompt"] == "hit the red mole"
        seen = {}
        for schema, channel, message in reader.iter_messages():
            assert schema is not None
            assert (schema.encoding, channel.message_encoding) == ("jsonschema", "json")
            form, value = json.loads(schema.data), json.loads(message.data)
            check(form, value)
            seen[channel.topic] = (schema.name, form)
    assert set(seen) == {"/onset/tick", "/onset/event", "/onset/meta"}
    assert seen["/onset/event"][0] == "foxglove.Log"
    tick = seen["/onset/tick"][1]["properties"]
    assert tick["mode"]["oneOf"][1] == {"title": "HOLDING", "const": 3}
    assert "1: grip.pos [1]" in tick["command"]["description"]


def check(schema: dict, value: object) -> None:
    """Holds a value against what we use of JSON schema; null may stand for a number."""
    if "oneOf" in schema:
        assert all(set(choice) == {"title", "const"} for choice in schema["oneOf"])
        return
    kinds = {"object": dict, "array": list, "string": str, "integer": int}
    if schema["type"] == "number":
        assert value is None or isinstance(value, float)
        return
    assert isinstance(value, kinds[schema["type"]])
    if isinstance(value, dict):
        assert set(value) == set(schema["properties"])
        assert set(schema.get("required", ())) <= set(value)
        for name, item in value.items():
            check(schema["properties"][name], item)
    elif isinstance(value, list):
        assert schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", 99)
        for item in value:
            check(schema["items"], item)


def test_encoding_takes_a_small_part_of_a_core() -> None:
    """500 records a second at 200 us each are a tenth of a core; it takes about 40 us."""
    records = some_records(1000)
    began = time.process_time()
    for i in range(0, 1000, 20):
        encode_records(records[i : i + 20])
    assert (time.process_time() - began) / 1000 < 200e-6
