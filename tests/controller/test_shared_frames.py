"""Frames through shared memory: what is put in comes out, or an error says that it does not."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller import shared_frames
from controller.errors import ErrorCode, OnsetError
from controller.shared_frames import (
    SharedFramesReader,
    SharedFramesWriter,
    empty_frames,
    offer_frames,
)
from controller.types import CameraSpec, RobotSpec
from tests.controller.helpers import ROBOT

LARGE = replace(ROBOT, cameras=(CameraSpec("front", 320, 320), CameraSpec("wrist", 64, 48)))


def offered(robot: RobotSpec = LARGE, slots: int = 3) -> SharedFramesWriter:
    writer = offer_frames(robot, slots)
    assert writer is not None
    return writer


def found(writer: SharedFramesWriter, robot: RobotSpec = LARGE) -> SharedFramesReader:
    reader = SharedFramesReader.find(writer.name, robot)
    assert reader is not None
    writer.forget_name()
    assert writer.reserve()
    return reader


@pytest.fixture
def ends() -> Iterator[tuple[SharedFramesWriter, SharedFramesReader]]:
    writer = offered()
    yield writer, found(writer)
    writer.close()


def drawn(robot: RobotSpec, seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    frames = empty_frames(robot)
    return {name: random.integers(0, 256, f.shape, dtype=np.uint8) for name, f in frames.items()}


def refused(reader: SharedFramesReader, slot: int, id: int) -> OnsetError:
    with pytest.raises(OnsetError) as caught:
        reader.take(slot, id, empty_frames(LARGE))
    assert (caught.value.code, caught.value.fatal) == (ErrorCode.BAD_FRAME, False)
    return caught.value


cameras = st.lists(
    st.tuples(
        st.integers(1, 40), st.integers(1, 40), st.lists(st.integers(0, 9), min_size=1, unique=True)
    ),
    min_size=1,
    max_size=4,
)


@given(cameras, st.integers(1, 4), st.integers(1, 9), st.integers(0, 2**62 - 9))
@settings(deadline=None, max_examples=40)
def test_what_is_put_in_comes_out(shapes, slots, count, first_id):
    specs = [CameraSpec(f"c{i}", h, w, lags=tuple(lags)) for i, (h, w, lags) in enumerate(shapes)]
    robot = replace(ROBOT, cameras=tuple(specs))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared_frames, "WORTH_BYTES", 0)
        writer = offered(robot, slots)
    reader = found(writer, robot)
    waiting: list[tuple[int, int, dict]] = []
    for id in range(first_id, first_id + count):
        frames = drawn(robot, id)
        waiting.append((writer.put(id, frames), id, frames))
        if len(waiting) == slots:  # as late as may be
            slot, asked, expected = waiting.pop(0)
            taken = empty_frames(robot)
            reader.take(slot, asked, taken)
            for name, frame in expected.items():
                np.testing.assert_array_equal(taken[name], frame)
    writer.close()


def test_frames_need_not_be_contiguous(ends):
    writer, reader = ends
    frames = drawn(LARGE, 0)
    turned = {name: np.asfortranarray(f)[:, ::-1] for name, f in frames.items()}
    taken = empty_frames(LARGE)
    reader.take(writer.put(5, turned), 5, taken)
    np.testing.assert_array_equal(taken["front"], frames["front"][:, ::-1])


def test_frames_that_were_overwritten_are_refused(ends):
    writer, reader = ends
    slot = writer.put(0, drawn(LARGE, 0))
    for id in (1, 2, 3):
        writer.put(id, drawn(LARGE, id))
    assert str(refused(reader, slot, 0)) == (
        "bad_frame: observation.shared_slot: given frames of observation 3 in 0; "
        "allowed: those of observation 0"
    )


def test_a_slot_that_nothing_was_put_into_is_refused(ends):
    _, reader = ends
    assert "observation -1" in str(refused(reader, 1, 0))
    assert "0 bytes in 700" in str(refused(reader, 700, 0))  # behind the file's end


def test_a_file_that_is_cut_off_is_refused_and_ends_no_process():
    writer = offered()
    path = shared_frames.FOLDER / writer.name
    reader = SharedFramesReader.find(writer.name, LARGE)
    assert reader is not None
    assert writer.reserve()
    slot = writer.put(0, drawn(LARGE, 0))
    os.truncate(path, 1000)
    assert "992 bytes in 0" in str(refused(reader, slot, 0))
    os.truncate(path, 0)
    assert "0 bytes in 0" in str(refused(reader, slot, 0))
    writer.close()


def test_frames_are_never_mixed():
    writer = offered(slots=1)
    reader, mixed, refusals, read = found(writer), [], 0, 0
    room, taken = empty_frames(LARGE), empty_frames(LARGE)
    put = [writer.put(0, {name: np.zeros_like(f) for name, f in room.items()})]  # its end is an id

    def write() -> None:
        for id in range(1, 1500):
            writer.put(id, {name: np.full_like(f, id % 251) for name, f in room.items()})
            put.append(id)  # told after it is there, as a message is
            time.sleep(0.0002)

    thread = threading.Thread(target=write)
    thread.start()
    while thread.is_alive():
        id = put[-1]
        try:
            reader.take(0, id, taken)
        except OnsetError:
            refusals += 1
            continue
        read += 1
        if any((frame != id % 251).any() for frame in taken.values()):
            mixed.append(id)
    thread.join()
    writer.close()
    assert not mixed
    assert read
    assert refusals  # it did meet what it is about


@pytest.mark.parametrize(
    "name",
    ["../../etc/passwd", "/etc/passwd", "onset-plan", "onset_frames-" + "a" * 31, "x" * 5000]
    + ["onset_frames-" + "a" * 32 + "/..", "onset_frames-" + "A" * 32, "onset_frames-" + "\n" * 32],
)
def test_no_other_file_can_be_named(name):
    with pytest.raises(OnsetError, match="bad_value: open.shared_frames: given '") as caught:
        SharedFramesReader.find(name, LARGE)
    assert len(str(caught.value)) < 250


def test_what_is_no_plain_file_is_not_opened(tmp_path):
    name = "onset_frames-" + "0123456789abcdef" * 2
    path = shared_frames.FOLDER / name
    assert SharedFramesReader.find(name, LARGE) is None  # there is none
    try:
        os.mkfifo(path)  # opening one for reading would wait for a writer
        assert SharedFramesReader.find(name, LARGE) is None
        path.unlink()
        path.symlink_to(tmp_path)
        assert SharedFramesReader.find(name, LARGE) is None
    finally:
        path.unlink()


def test_no_name_is_left():
    writer, other = offered(), offered()
    file, second = (shared_frames.FOLDER / each.name for each in (writer, other))
    assert file.stat().st_mode & 0o777 == 0o600
    assert second.exists()
    writer.forget_name()
    assert not file.exists()
    writer.close()
    other.close()
    assert not second.exists()


def test_both_ends_let_go_of_the_file():
    def files() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = files()
    writer = offered()
    reader = found(writer)
    assert files() == before + 2
    writer.close()
    del reader
    assert files() == before


def test_small_and_huge_frames_travel_in_messages():
    small = replace(ROBOT, cameras=(CameraSpec("front", 72, 72, lags=(0, 3)),))
    huge = replace(ROBOT, cameras=(CameraSpec("front", 4096, 4096, lags=(0, 1)),))
    assert offer_frames(small, 3) is None
    assert offer_frames(huge, 3) is None
    assert offer_frames(LARGE, shared_frames.MAX_SLOTS + 1) is None


def test_a_system_without_such_memory_has_none(monkeypatch, tmp_path):
    monkeypatch.setattr(shared_frames, "FOLDER", tmp_path / "none")
    assert offer_frames(LARGE, 3) is None


def test_memory_that_is_short_is_told(monkeypatch, caplog):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    writer = offered()
    assert not writer.reserve()
    assert "frames travel in messages" in caplog.text
    assert "No space left" in caplog.text
    writer.close()
