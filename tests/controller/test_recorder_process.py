"""The recorder as a process of its own, over shared memory: killed, replaced, told to stop."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from controller.errors import ErrorCode, OnsetError
from controller.record import Level, new_event
from controller.recorder import RECORDS_KEPT, read_recording, record_layout, start_recorder
from controller.shared import Segment
from tests.controller.record_fakes import META, some_records

ROOT = Path(__file__).parents[2]


@pytest.fixture
def segment() -> Iterator[Segment]:
    with Segment.create(f"rec-{os.getpid()}", record_layout(META)) as made:
        yield made


def start_executor(segment: Segment, count: int) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.controller.record_fakes", segment.name, str(count)]
    return subprocess.Popen(command, cwd=ROOT)


def stop(recorder: subprocess.Popen) -> int:
    recorder.send_signal(signal.SIGTERM)
    return recorder.wait(timeout=20)


def wait_for_recording(path: Path) -> None:
    give_up = time.monotonic() + 20
    while not len(read_recording(path).records):
        assert time.monotonic() < give_up
        time.sleep(0.05)


def wait_for_records(segment: Segment, count: int) -> None:
    give_up = time.monotonic() + 20
    while segment.ring("records").written < count:
        assert time.monotonic() < give_up
        time.sleep(0.005)


def test_stops_with_everything_in_the_file(segment: Segment, tmp_path: Path) -> None:
    recorder, path = start_recorder(segment.name, tmp_path, META)
    executor = start_executor(segment, 300)
    segment.ring("client_events").write(new_event(9, Level.ERROR, "session lost"))
    assert executor.wait(timeout=20) == 0
    recorder.send_signal(signal.SIGINT)  # a terminal sends it to everybody
    time.sleep(0.1)
    assert recorder.poll() is None  # the executor is gone; it goes on
    for record in some_records(5, first=300):
        segment.ring("records").write(record)
    assert stop(recorder) == 0
    recording = read_recording(path)
    assert recording.complete
    assert recording.meta == META
    assert recording.records["tick"].tolist() == list(range(305))
    assert {event.text for event in recording.events} == {"begins at tick 0", "session lost"}


@pytest.mark.timeout(120)
def test_killed_recorder_loses_at_most_100_ms(segment: Segment, tmp_path: Path) -> None:
    """And the one that takes its place loses nothing."""
    executor = start_executor(segment, 4000)
    wait_for_records(segment, 1)
    paths, losses = [], []
    for enough in (300, 600, 900):
        recorder, path = start_recorder(segment.name, tmp_path, META)
        wait_for_records(segment, enough)
        wait_for_recording(path)  # else a slow start leaves nothing to be lost
        recorder.kill()
        killed_ns = time.monotonic_ns()
        recorder.wait()
        recording = read_recording(path)
        assert not recording.complete
        assert recording.missing_ticks == 0
        losses.append(killed_ns - int(recording.records["time_ns"][-1]))
        paths.append(path)
    # Of three, the middle one: a machine that is busy elsewhere may keep the recorder waiting
    # once. benchmarks/faults.py measures the worst.
    assert sorted(losses)[1] < 100_000_000, losses
    last, path = start_recorder(segment.name, tmp_path, META)
    executor.wait(timeout=20)
    assert stop(last) == 0
    paths.append(path)
    assert len(set(paths)) == 4
    ticks = np.concatenate([read_recording(path).records["tick"] for path in paths])
    assert set(ticks.tolist()) == set(range(4000))


def test_killed_executor_loses_nothing(segment: Segment, tmp_path: Path) -> None:
    recorder, path = start_recorder(segment.name, tmp_path, META)
    executor = start_executor(segment, 100_000)
    wait_for_records(segment, 200)
    executor.kill()
    executor.wait()
    written = segment.ring("records").written
    time.sleep(0.2)
    assert read_recording(path).records["tick"].tolist() == list(range(written))
    assert stop(recorder) == 0


def test_overrun_of_a_stopped_recorder_is_told(segment: Segment, tmp_path: Path) -> None:
    recorder, path = start_recorder(segment.name, tmp_path, META)
    recorder.send_signal(signal.SIGSTOP)
    for record in some_records(RECORDS_KEPT + 40):
        segment.ring("records").write(record)
    recorder.send_signal(signal.SIGCONT)
    assert stop(recorder) == 0
    recording = read_recording(path)
    assert len(recording.records) == RECORDS_KEPT
    assert recording.events[-1].level == Level.WARNING
    assert "overrun: 40 records" in recording.events[-1].text


def test_full_disk_ends_the_recorder_alone(segment: Segment, tmp_path: Path) -> None:
    recorder, path = start_recorder(segment.name, tmp_path, META)
    resource.prlimit(recorder.pid, resource.RLIMIT_FSIZE, (20_000, 20_000))
    give_up = time.monotonic() + 20
    count = 0
    while recorder.poll() is None:
        assert time.monotonic() < give_up
        for record in some_records(10, first=count):
            segment.ring("records").write(record)
        count += 10
        time.sleep(0.01)
    assert recorder.returncode == 1
    recording = read_recording(path)
    assert len(recording.records) > 10
    assert recording.missing_ticks == 0
    assert "never closed" in recording.remarks()[0]


def test_segment_of_another_robot_is_refused(segment: Segment, tmp_path: Path) -> None:
    other = replace(META, action_names=("x",), action_units=("rad",))
    with pytest.raises(OnsetError) as refused:
        start_recorder(segment.name, tmp_path, other)
    assert refused.value.code is ErrorCode.UNAVAILABLE
    assert list(tmp_path.iterdir()) == []
