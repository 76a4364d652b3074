"""What benchmarks/jitter.py reads from a recording, and a policy in a thread as a link."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks._jitter_chart import later
from benchmarks._jitter_variants import PolicyThread, Times, read_times
from controller.types import Observation


def test_ticks_left_out_and_the_time_before_the_first_episode_are_told_apart(monkeypatch) -> None:
    rows = np.zeros(6, [("episode", "i8"), ("time_ns", "i8"), ("late_ns", "i8"), ("busy_ns", "i8")])
    rows["episode"] = [-1, -1, 0, 0, 0, 1]
    rows["time_ns"] = np.array([0, 9, 10, 11, 14, 15]) * 5_000_000  # 12 and 13 were left out
    rows["late_ns"] = [9, 9, 1, 2, 3, 4]
    rows["busy_ns"] = [0, 9, 9, 10, 20, 30]  # each of the tick before
    recording = SimpleNamespace(records=rows)
    monkeypatch.setattr("benchmarks._jitter_variants.read_recording", lambda _: recording)
    times = read_times(None, 200, 5, "")
    assert times.late_ns.tolist() == [1, 2, 3, 4]
    assert times.busy_ns.tolist() == [10, 20, 30]
    assert times.missed == 2
    assert times.missed_fraction == pytest.approx(2 / 6)


def test_nothing_missed_is_a_fraction_of_0() -> None:
    assert Times(np.zeros(3, np.int64), np.zeros(2, np.int64), 0, 1, "").missed_fraction == 0


def test_a_tick_left_out_is_late_by_its_period() -> None:
    late, share = later(np.array([3_000_000, 1_000_000]), 2, 5_000_000)
    assert late.tolist() == [1.0, 3.0, 5.0, 5.0]
    assert share.tolist() == [0.75, 0.5, 0.25, 0.0]


class Echo:
    """A policy of one piece, whose action is the observation's number."""

    def stream(self, observation: Observation, prompt: str) -> Iterator[SimpleNamespace]:
        actions = np.full((1, 2), observation.id, np.float32)
        yield SimpleNamespace(start_step=0, steps=np.arange(1), actions=actions, final=True)


@pytest.mark.timeout(20)
def test_a_policy_in_a_thread_answers_as_a_link() -> None:
    with PolicyThread(Echo(), "do it") as link:
        link.submit(SimpleNamespace(id=7))
        slices = []
        while not slices:
            link.wait(0.1)
            slices = link.poll(0)
        assert (slices[0].observation_id, slices[0].actions[0, 0]) == (7, 7.0)
        link.submit(SimpleNamespace(id=8))
        time.sleep(0.2)
        link.reset("1", "do another")
        assert link.poll(0) == []
