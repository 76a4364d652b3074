"""Latencies that vary: what they draw, and what arrives through a link."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.errors import OnsetError
from sim.delay import Compute, DelayedLink, Fixed, Latency
from sim.jitter import Jitter, Lossy, Recorded
from tests.sim.helpers import MS, arrivals, observation, pieces

seeds = st.integers(0, 2**62)
ids = st.integers(0, 100_000)
fixed = st.integers(0, 10**9).map(Fixed)
computed = st.builds(Compute, st.integers(0, 10**8), st.integers(0, 10**8))
recorded = st.lists(st.integers(0, 10**9), min_size=1, max_size=9).map(lambda v: Recorded(tuple(v)))
jittered = st.builds(Jitter, st.one_of(fixed, computed, recorded), st.floats(0, 2))
latencies = st.one_of(jittered, st.builds(Lossy, jittered, st.floats(0, 1)))


def times(latency: Latency, seed: int, observation_id: int) -> tuple[int | None, int]:
    drawn = latency.draw(seed, observation_id)
    return drawn.arrival_ns(3), drawn.busy_ns(10)


@given(latencies, seeds, st.lists(ids, min_size=1, max_size=20), st.data())
def test_draws_depend_on_seed_and_observation_and_on_no_order(latency, seed, numbers, data) -> None:
    first = {number: times(latency, seed, number) for number in numbers}
    for number in data.draw(st.permutations(numbers)):
        assert times(latency, seed, number) == first[number]


@given(st.floats(0, 2), seeds, ids)
def test_one_factor_holds_for_a_whole_chunk(sigma, seed, number) -> None:
    inner = Compute(9 * MS, 5 * MS)
    drawn = Jitter(inner, sigma).draw(seed, number)
    factor = drawn.busy_ns(10) / inner.busy_ns(10)
    for steps in range(11):
        assert drawn.arrival_ns(steps) == pytest.approx(factor * inner.arrival_ns(steps), abs=2)


def test_the_factor_is_log_normal_around_the_median() -> None:
    latency = Jitter(Fixed(1000 * MS), 0.5)
    drawn = np.array([times(latency, 7, number)[0] for number in range(4000)]) / (1000 * MS)
    assert np.median(drawn) == pytest.approx(1.0, abs=0.03)
    assert np.quantile(drawn, 0.95) == pytest.approx(math.exp(1.645 * 0.5), rel=0.06)
    assert np.log(drawn).std() == pytest.approx(0.5, rel=0.04)
    # Neither neighbours nor seeds repeat one another.
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.06
    other = [times(latency, 8, number)[0] for number in range(4000)]
    assert abs(np.corrcoef(drawn, other)[0, 1]) < 0.06


@given(st.one_of(fixed, computed), seeds, ids)
def test_without_spread_or_loss_it_is_the_latency_inside(inner, seed, number) -> None:
    assert times(Jitter(inner, 0.0), seed, number) == times(inner, seed, number)
    assert times(Lossy(inner, 0.0), seed, number) == times(inner, seed, number)


def test_a_record_is_replayed_in_order_from_a_place_of_the_seeds() -> None:
    record = tuple(range(0, 700, 100))
    began = set()
    for seed in range(60):
        drawn = [times(Recorded(record), seed, number)[0] for number in range(20)]
        place = record.index(drawn[0])
        assert drawn == [record[(place + number) % 7] for number in range(20)]
        began.add(place)
    assert began == set(range(7))


def test_a_record_is_read_from_a_file(tmp_path) -> None:
    path = tmp_path / "trips.json"
    path.write_text(json.dumps([12_000_000, 3.6, 0]))
    assert Recorded.load(path) == Recorded((12_000_000, 4, 0))


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "3", '["3"]', "[true]", "[NaN]", "[1e999]", "[-1]"]
)
def test_a_file_without_round_trips_is_told(tmp_path, text) -> None:
    path = tmp_path / "trips.json"
    with pytest.raises(OnsetError, match=r"trips\.json"):
        Recorded.load(path)
    path.write_text(text)
    with pytest.raises(OnsetError, match="round_trips"):
        Recorded.load(path)


def test_so_many_answers_are_lost_whatever_their_latency() -> None:
    jitter = Jitter(Fixed(100 * MS), 0.5)
    latency = Lossy(jitter, 0.2)
    arrival = [times(latency, 3, number)[0] for number in range(4000)]
    assert arrival.count(None) / 4000 == pytest.approx(0.2, abs=0.02)
    # Which are lost has nothing to do with how long they would have taken.
    would = np.array([times(jitter, 3, number)[0] for number in range(4000)])
    lost = np.array([found is None for found in arrival])
    assert abs(np.corrcoef(lost, np.log(would))[0, 1]) < 0.06
    assert np.array_equal(would[~lost], [found for found in arrival if found is not None])


def test_a_lost_answer_has_kept_the_server_busy() -> None:
    link = DelayedLink(pieces(1, 10), Lossy(Compute(0, 10 * MS), 1.0))
    link.submit(observation(0, 0))
    assert arrivals(link, 300 * MS) == []
    latency = Lossy(Compute(0, 10 * MS), 0.5)
    seed = next(
        seed
        for seed in range(100)
        if times(latency, seed, 0)[0] is None and times(latency, seed, 1)[0] is not None
    )
    link = DelayedLink(pieces(1, 10), latency, seed)
    link.submit(observation(0, 0))
    link.submit(observation(1, 40 * MS))
    assert arrivals(link, 300 * MS) == [(110, 1, 1), (200, 1, 2)]


def test_a_later_answer_overtakes_an_earlier_one() -> None:
    record = Recorded((200 * MS, 30 * MS))
    seed = next(seed for seed in range(100) if times(record, seed, 0)[0] == 200 * MS)
    link = DelayedLink(pieces(1, 10), record, seed)
    link.submit(observation(0, 0))
    link.submit(observation(1, 40 * MS))
    assert arrivals(link, 300 * MS) == [(70, 1, 1), (70, 1, 2), (200, 0, 0), (200, 0, 1)]


@given(latencies, seeds, st.lists(st.integers(0, 120), min_size=1, max_size=8))
def test_the_pieces_of_a_chunk_keep_their_order_and_each_comes_once(latency, seed, gaps) -> None:
    link = DelayedLink(pieces(1, 4, 10), latency, seed)
    now = 0
    for number, gap in enumerate(gaps):
        now += gap * MS
        link.submit(observation(number, now))
    came = [(p.observation_id, p.steps[0] - p.start_step) for p in link.poll(2**61)]
    for number in {number for number, _ in came}:
        assert [index for other, index in came if other == number] == [0, 1, 2]


@pytest.mark.parametrize("sigma", [-0.1, 5.0, math.nan])
def test_a_spread_out_of_range_is_refused(sigma) -> None:
    with pytest.raises(OnsetError, match="sigma"):
        Jitter(Fixed(1), sigma)


@pytest.mark.parametrize("probability", [-0.1, 1.1, math.nan])
def test_a_probability_out_of_range_is_refused(probability) -> None:
    with pytest.raises(OnsetError, match="probability"):
        Lossy(Fixed(1), probability)


def test_an_empty_or_negative_record_is_refused() -> None:
    with pytest.raises(OnsetError, match="count"):
        Recorded(())
    with pytest.raises(OnsetError, match=r"round_trips_ns\[1\]"):
        Recorded((1, -1))
