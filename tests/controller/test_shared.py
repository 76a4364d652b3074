import itertools
import os
from multiprocessing import shared_memory

import numpy as np
import pytest

from controller import shared_memory as blocks
from controller.errors import ErrorCode, OnsetError
from controller.shared import (
    LatestLayout,
    RingLayout,
    Segment,
    remove_segment,
    remove_stale_segments,
    stale_segments,
)
from tests.controller.shared_workers import LAYOUT, VALUE, is_whole, kill, start, value

COUNT = itertools.count()


@pytest.fixture
def name():
    name = f"t{os.getpid()}-{next(COUNT)}"
    yield name
    remove_segment(name)


def refused(code: ErrorCode, call, *args, **kwargs) -> OnsetError:
    with pytest.raises(OnsetError) as caught:
        call(*args, **kwargs)
    assert caught.value.code == code
    return caught.value


def test_what_one_side_writes_the_other_reads(name):
    with Segment.create(name, LAYOUT) as one, Segment.attach(name, LAYOUT) as other:
        assert other.latest("value").read() is None
        assert other.word("beat").value == 0
        one.latest("value").write(value(7))
        one.word("beat").value = -5
        assert one.word("beat").add(7) == 2
        found = other.latest("value").read()
        assert found is not None
        assert found["version"] == 7
        assert other.word("beat").value == 2
        assert other.creator_pid == os.getpid()
    assert not remove_segment(name)


def test_a_value_read_is_the_readers_own(name):
    with Segment.create(name, LAYOUT) as segment:
        latest = segment.latest("value")
        latest.write(value(1))
        latest.write(value(2)[None][0])  # a scalar does as well as an array
        found = latest.read()
        assert found is not None
        found["filled"] = 0
        again = latest.read()
        assert again is not None
        assert is_whole(again, "version")


def test_another_layout_is_refused_with_both(name):
    other = {**LAYOUT, "value": LatestLayout(np.dtype([("version", "<i8"), ("more", "<f4")]))}
    with Segment.create(name, LAYOUT):
        error = refused(ErrorCode.BAD_SHAPE, Segment.attach, name, other)
        assert "'filled'" in error.given
        assert "'more'" in error.allowed
        assert "records" not in error.given  # what agrees is not repeated
        shuffled = dict(reversed(LAYOUT.items()))
        refused(ErrorCode.BAD_SHAPE, Segment.attach, name, shuffled)
        smaller = {**LAYOUT, "records": RingLayout(VALUE, 3)}
        refused(ErrorCode.BAD_SHAPE, Segment.attach, name, smaller)


def test_names_are_refused_early(name):
    for bad in ("", "Arm", "a/b", "../x", "a" * 25):
        refused(ErrorCode.BAD_VALUE, Segment.create, bad, LAYOUT)
        refused(ErrorCode.BAD_VALUE, Segment.attach, bad, LAYOUT)
    refused(ErrorCode.UNAVAILABLE, Segment.attach, name, LAYOUT, wait_s=0.02)
    with Segment.create(name, LAYOUT) as segment:
        refused(ErrorCode.ALREADY_OPEN, Segment.create, name, LAYOUT)
        assert "records" in refused(ErrorCode.BAD_NAMES, segment.ring, "value").allowed
        refused(ErrorCode.BAD_NAMES, segment.word, "none")


def test_layouts_and_records_are_checked(name):
    refused(ErrorCode.BAD_VALUE, LatestLayout, np.dtype("f8"))
    refused(ErrorCode.BAD_VALUE, LatestLayout, np.dtype([("thing", "O")]))
    refused(ErrorCode.BAD_VALUE, RingLayout, VALUE, 0)
    with Segment.create(name, LAYOUT) as segment:
        latest = segment.latest("value")
        refused(ErrorCode.BAD_SHAPE, latest.write, np.zeros(2, VALUE))
        refused(ErrorCode.BAD_SHAPE, latest.write, np.zeros((), [("version", "<i8")]))
        assert latest.version == 0


def test_no_room_is_said_at_once_and_leaves_no_name(name):
    if not hasattr(os, "posix_fallocate"):
        pytest.skip("this system does not reserve memory")
    wide = np.dtype([("wide", "u1", (2**30,))])
    refused(ErrorCode.TOO_LARGE, Segment.create, name, {"much": RingLayout(wide, 2**20)})
    assert not remove_segment(name)


def test_a_segment_half_made_is_not_attached_to(name):
    foreign = shared_memory.SharedMemory(f"{blocks.PREFIX}{name}", create=True, size=4096)
    try:
        refused(ErrorCode.UNAVAILABLE, Segment.attach, name, LAYOUT)
    finally:
        foreign.close()
        foreign.unlink()


def test_a_closed_segment_gives_nothing_and_closes_again(name):
    segment = Segment.create(name, LAYOUT)
    word = segment.word("beat")
    segment.close()
    segment.close()
    with pytest.raises(ValueError, match="released"):
        _ = word.value
    segment.unlink()
    segment.unlink()


@pytest.mark.parametrize("how", ["leave", "stay"])
def test_an_attached_process_takes_nothing_with_it(name, how):
    with Segment.create(name, LAYOUT) as segment:
        segment.latest("value").write(value(3))
        worker = start(how, name)
        if how == "leave":
            assert worker.wait(10) == 0
        kill(worker)
        with Segment.attach(name, LAYOUT) as other:
            found = other.latest("value").read()
            assert found is not None
            assert found["version"] == 3


def test_a_killed_creator_leaves_its_segment_to_attach_or_to_remove(name):
    worker = start("create", name)
    pid = worker.pid
    assert name not in stale_segments()
    kill(worker)
    listed = blocks._LISTED.is_dir()
    assert (name in stale_segments()) == listed
    with Segment.attach(name, LAYOUT) as segment:
        assert segment.creator_pid == pid
        found = segment.latest("value").read()
        assert found is not None
        assert is_whole(found, "version")
        # In use again: nothing to clean.
        assert name not in stale_segments()
    assert (name in stale_segments()) == listed
    assert remove_segment(name)
    assert name not in stale_segments()


def test_only_what_nobody_uses_is_removed(monkeypatch):
    if not blocks._LISTED.is_dir():
        pytest.skip("this system does not list shared memory")
    # Under a prefix of its own, since other programs on this machine may have segments.
    monkeypatch.setattr(blocks, "PREFIX", f"onset-t{os.getpid()}-")
    with Segment.create("used", LAYOUT):
        Segment.create("unused", LAYOUT).close()
        assert stale_segments() == ["unused"]
        assert remove_stale_segments() == ["unused"]
        assert stale_segments() == []
        Segment.attach("used", LAYOUT).close()
