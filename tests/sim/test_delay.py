"""Arrival times in virtual time against what they must be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.errors import OnsetError
from sim.delay import Compute, DelayedLink, Fixed, whole
from tests.sim.helpers import MS, arrivals, observation, pieces


def test_pieces_arrive_when_their_expert_steps_are_done() -> None:
    link = DelayedLink(pieces(1, 3, 10), Compute(9 * MS, 5 * MS))
    link.submit(observation(4, 100 * MS))
    assert arrivals(link, 300 * MS) == [(114, 4, 4), (124, 4, 5), (159, 4, 6)]


def test_one_server_works_on_one_observation_at_a_time() -> None:
    link = DelayedLink(pieces(1, 10), Compute(9 * MS, 5 * MS))
    link.submit(observation(0, 0))
    link.submit(observation(1, 40 * MS))
    # The first inference ends at 59 ms.
    assert arrivals(link, 300 * MS) == [(14, 0, 0), (59, 0, 1), (73, 1, 1), (118, 1, 2)]


def test_an_observation_that_waits_is_replaced_by_a_newer_one() -> None:
    link = DelayedLink(pieces(10), Compute(0, 10 * MS))
    for number in range(4):
        link.submit(observation(number, number * 40 * MS))
    # 0 runs until 100 ms; 1 is replaced by 2, which runs until 200 ms; 3 follows.
    assert arrivals(link, 400 * MS) == [(100, 0, 0), (200, 2, 2), (300, 3, 3)]


def test_fixed_delays_every_piece_alike_and_knows_no_queue() -> None:
    link = DelayedLink(pieces(1, 10), Fixed(90 * MS))
    link.submit(observation(0, 0))
    link.submit(observation(1, 40 * MS))
    assert arrivals(link, 300 * MS) == [(90, 0, 0), (90, 0, 1), (130, 1, 1), (130, 1, 2)]


def test_what_arrives_between_two_polls_comes_in_order_of_arrival() -> None:
    link = DelayedLink(pieces(1, 2), Compute(0, 7 * MS))
    link.submit(observation(0, 0))
    link.submit(observation(1, 5 * MS))
    order = [(p.observation_id, int(p.steps[0]), p.final) for p in link.poll(100 * MS)]
    assert order == [(0, 0, False), (0, 1, True), (1, 1, False), (1, 2, True)]
    assert link.poll(200 * MS) == []


def test_a_whole_chunk_is_one_final_piece() -> None:
    link = DelayedLink(whole(lambda o: np.ones((32, 6), np.float32), 10), Compute(MS, 2 * MS))
    link.submit(observation(3, 0))
    assert link.poll(20 * MS) == []
    (piece,) = link.poll(21 * MS)
    assert (piece.observation_id, piece.start_step, piece.final) == (3, 3, True)
    np.testing.assert_array_equal(piece.steps, 3 + np.arange(32))
    assert piece.actions.shape == (32, 6)


@given(
    gaps=st.lists(st.integers(0, 120), min_size=1, max_size=12),
    prefix=st.integers(0, 60),
    step=st.integers(0, 20),
)
def test_inferences_never_overlap_and_the_newest_is_always_answered(gaps, prefix, step) -> None:
    link = DelayedLink(pieces(1, 4), Compute(prefix * MS, step * MS))
    now = 0
    for number, gap in enumerate(gaps):
        now += gap * MS
        link.submit(observation(number, now))
    times: dict[int, list[int]] = {}
    for at, number, _ in arrivals(link, now + 1_000 * MS):
        times.setdefault(number, []).append(at)
    assert len(gaps) - 1 in times
    ended = 0
    for number in sorted(times):
        first, last = times[number]
        capture = sum(gaps[: number + 1])
        began = max(capture, ended)
        assert (first, last) == (began + prefix + step, began + prefix + 4 * step)
        ended = last


def test_negative_times_and_seeds_are_refused() -> None:
    with pytest.raises(OnsetError, match="latency_ns"):
        Fixed(-1)
    with pytest.raises(OnsetError, match="step_ns"):
        Compute(1, -1)
    with pytest.raises(OnsetError, match="seed"):
        DelayedLink(pieces(1), Fixed(0), seed=-1)
