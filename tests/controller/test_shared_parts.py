import itertools
import os
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.errors import ErrorCode, OnsetError
from controller.shared import (
    Latest,
    LatestLayout,
    Ring,
    RingLayout,
    RingReader,
    Segment,
    remove_segment,
)
from controller.shared_slots import Slots
from tests.controller.shared_workers import (
    CAPACITY,
    LAYOUT,
    VALUE,
    is_whole,
    kill,
    record,
    start,
    value,
)

COUNT = itertools.count()
SMALL = 4


@pytest.fixture
def name():
    name = f"p{os.getpid()}-{next(COUNT)}"
    yield name
    remove_segment(name)


def new_latest() -> tuple[memoryview, Latest]:
    memory = memoryview(bytearray(LatestLayout(VALUE).size))
    return memory, Latest(memory, VALUE)


def new_ring(capacity: int = SMALL) -> tuple[memoryview, Ring]:
    dtype = record(0).dtype
    memory = memoryview(bytearray(RingLayout(dtype, capacity).size))
    return memory, Ring(memory, dtype, capacity)


@settings(max_examples=150, deadline=None)
@given(steps=st.lists(st.one_of(st.just("write"), st.just("new writer"), st.integers(0, 2))))
def test_every_reader_gets_the_newest_value(steps):
    memory, writer = new_latest()
    readers = [Latest(memory, VALUE) for _ in range(3)]
    version = 0
    for step in steps:
        if step == "write":
            version += 1
            writer.write(value(version))
        elif step == "new writer":
            writer = Latest(memory, VALUE)
        else:
            found = readers[step].read()
            assert readers[step].read_version == version == readers[step].version
            assert (found is None) == (version == 0)
            assert found is None or (found["version"] == version and is_whole(found, "version"))


@settings(max_examples=300, deadline=None)
@given(
    steps=st.lists(
        st.one_of(
            st.integers(1, SMALL + 3),
            st.sampled_from(["read", "look", "done", "new reader", "new writer"]),
        ),
        max_size=40,
    )
)
def test_the_ring_is_a_queue_that_counts_what_it_loses(steps):
    memory, ring = new_ring()
    reader: RingReader = ring.reader()
    written = read = done = 0
    for step in steps:
        if isinstance(step, int):
            for _ in range(step):
                written += 1
                ring.write(record(written))
        elif step in ("read", "look"):
            lost_then = max(0, written - SMALL - read)
            records, lost = reader.read_all(done=step == "read")
            assert lost == lost_then
            assert records["tick"].tolist() == list(range(read + lost + 1, written + 1))
            assert all(is_whole(one, "tick") for one in records)
            read = written
            done = read if step == "read" else done
        elif step == "done":
            reader.done()
            done = read
        elif step == "new reader":
            older, reader = reader, ring.reader()
            with pytest.raises(OnsetError) as caught:
                older.read_all()
            assert caught.value.code == ErrorCode.UNAVAILABLE
            read = done
        else:
            ring = Ring(memory, record(0).dtype, SMALL)
        assert ring.written == written
        assert ring.unread == written - done


class Killed(Exception):
    """The writer dies here."""


def die_in_store(monkeypatch, stage: int) -> None:
    """Lets the next store stop behind its number (0), in the midst of its bytes (1), behind them
    (2), or whole but not announced (3)."""
    store = Slots.store

    def dying(self: Slots, number: int, data: bytes) -> None:
        at = number % self._count * self._stride
        self._words[at // 8] = number
        size = (0, self._size // 2, self._size, self._size)[stage]
        self._bytes[at + 16 : at + 16 + size] = data[:size]
        if stage == 3:
            store(self, number, data)
        raise Killed

    monkeypatch.setattr(Slots, "store", dying)


@pytest.mark.parametrize("stage", range(4))
@pytest.mark.parametrize("before", range(3))
def test_a_writer_that_dies_leaves_the_value_before(monkeypatch, stage, before):
    memory, writer = new_latest()
    for version in range(1, before + 1):
        writer.write(value(version))
    early, late = Latest(memory, VALUE), Latest(memory, VALUE)
    early.read()
    with monkeypatch.context() as patch:
        die_in_store(patch, stage)
        with pytest.raises(Killed):
            writer.write(value(99))
    for reader in (early, late):
        found = reader.read()
        assert reader.read_version == before
        assert found is None if before == 0 else (found is not None and found["version"] == before)
    Latest(memory, VALUE).write(value(before + 1))
    found = late.read()
    assert found is not None
    assert found["version"] == before + 1


@pytest.mark.parametrize("stage", range(4))
@pytest.mark.parametrize("before", [0, 2, SMALL, SMALL + 1])
def test_a_ring_goes_on_behind_a_writer_that_died(monkeypatch, stage, before):
    memory, ring = new_ring()
    for tick in range(1, before + 1):
        ring.write(record(tick))
    with monkeypatch.context() as patch:
        die_in_store(patch, stage)
        with pytest.raises(Killed):
            ring.write(record(99))
    reader = ring.reader()
    # The slot it was writing held the oldest record of a full ring.
    oldest = max(1, before - SMALL + 1)
    oldest += before >= SMALL
    records, lost = reader.read_all()
    assert records["tick"].tolist() == list(range(oldest, before + 1))
    assert lost == oldest - 1
    Ring(memory, record(0).dtype, SMALL).write(record(before + 1))
    records, lost = reader.read_all()
    assert records["tick"].tolist() == [before + 1]
    assert lost == 0


def test_a_value_whose_bytes_come_late_is_not_taken_for_whole():
    """As on a CPU that shows a number before the bytes it stands for."""
    memory, writer = new_latest()
    reader = Latest(memory, VALUE)
    writer.write(value(1))
    reader.read()
    writer.write(value(2))
    at = 64  # version 2 is in the first buffer; its bytes begin behind two words
    kept = bytes(memory[at + 16 : at + 32])
    memory[at + 16 : at + 32] = bytes(16)
    found = reader.read()
    assert found is not None
    assert found["version"] == reader.read_version == 1
    fresh = Latest(memory, VALUE)
    found = fresh.read()
    assert found is not None
    assert found["version"] == 1
    memory[at + 16 : at + 32] = kept
    for one in (reader, fresh):
        found = one.read()
        assert found is not None
        assert found["version"] == 2


def test_a_record_whose_bytes_come_late_is_waited_for_once():
    memory, ring = new_ring()
    reader = ring.reader()
    for tick in (1, 2, 3):
        ring.write(record(tick))
    at = 3 * 64 + 2 * (len(memory) - 3 * 64) // SMALL + 16
    kept = bytes(memory[at : at + 8])
    memory[at : at + 8] = bytes(8)
    records, lost = reader.read_all()
    assert (records["tick"].tolist(), lost) == ([1], 0)
    memory[at : at + 8] = kept
    records, lost = reader.read_all()
    assert (records["tick"].tolist(), lost) == ([2, 3], 0)
    # One that never comes is lost, and holds nothing up.
    ring.write(record(4))
    ring.write(record(5))
    ring.write(record(6))
    memory[at : at + 8] = bytes(8)
    records, lost = reader.read_all()
    assert (records["tick"].tolist(), lost) == ([4, 5], 0)
    records, lost = reader.read_all()
    assert (records["tick"].tolist(), lost) == ([], 1)


def test_a_reader_of_a_writer_at_full_speed_sees_whole_values_that_only_get_newer(name):
    with Segment.create(name, LAYOUT) as segment:
        worker = start("values", name)
        latest = segment.latest("value")
        version = reads = 0
        seen = set()
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            found = latest.read()
            reads += 1
            if found is None:
                assert version == 0
                continue
            assert is_whole(found, "version")
            assert found["version"] == latest.read_version >= version
            version = latest.read_version
            seen.add(version)
        kill(worker)
        assert len(seen) > 10
        assert latest.version > 1000


def test_a_ring_at_full_speed_loses_nothing_unseen(name):
    with Segment.create(name, LAYOUT) as segment:
        worker = start("records", name)
        ring = segment.ring("records")
        reader = ring.reader()
        last = got = 0
        until = time.monotonic() + 1.0
        alive = True
        while alive:
            if time.monotonic() > until:
                kill(worker)
                alive = False
            records, lost = reader.read_all()
            ticks = records["tick"].tolist()
            assert all(is_whole(one, "tick") for one in records)
            # Lost ones lie before or between those read: order and total are what counts.
            assert ticks == sorted(set(ticks))
            assert not ticks or ticks[0] > last
            last += lost + len(ticks)
            assert not ticks or ticks[-1] <= last
            got += len(ticks)
        assert last == ring.written > 1000
        assert got > 0


def test_writers_killed_at_any_moment_leave_whole_values(name):
    with Segment.create(name, LAYOUT):
        worker = start("killer", name)
        out, _ = worker.communicate(timeout=60)
        version, tick, torn = map(int, out.split())
        assert version > 100
        assert tick > 100
        assert torn == 0


def test_a_killed_reader_is_continued_by_the_next(name, tmp_path):
    file = tmp_path / "ticks"
    written = 0
    with Segment.create(name, LAYOUT) as segment:
        ring = segment.ring("records")
        for _ in range(6):
            known = file.read_text().count("\n") if file.exists() else 0
            worker = start("reader", name, str(file))
            until = time.monotonic() + 10
            while not file.exists() or file.read_text().count("\n") < known + 50:
                assert time.monotonic() < until
                if ring.unread < CAPACITY:
                    written += 1
                    ring.write(record(written))
            kill(worker)
        records, lost = ring.reader().read_all()
        lines = [tuple(map(int, line.split())) for line in file.read_text().splitlines()]
        lines += [(tick, lost) for tick in records["tick"].tolist()]
    assert all(lost == 0 for _, lost in lines)
    ticks = [tick for tick, _ in lines]
    assert sorted(set(ticks)) == list(range(1, written + 1))
    # Only what a killed reader was not done with comes again.
    again = [before - now + 1 for before, now in itertools.pairwise(ticks) if now != before + 1]
    assert len(again) <= 6
    assert all(0 < count <= CAPACITY for count in again)
