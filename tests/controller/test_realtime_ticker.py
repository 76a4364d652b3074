import itertools
import json
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from controller.clock import ManualClock, MonotonicClock
from controller.errors import OnsetError
from controller.realtime import LatenessHistogram, Tick, Ticker
from controller.realtime_ticker import _bin, _lower_ns

PERIOD = 5_000_000


def test_deadlines_are_absolute():
    clock = ManualClock(start_ns=1_000)
    ticker = Ticker(clock, PERIOD)
    for index in range(5):
        assert next(ticker) == Tick(1_000 + index * PERIOD, 0, 0)
        # Work that fits its period moves nothing.
        clock.sleep_until_ns(clock.now_ns() + PERIOD * index // 5)


def test_an_overrun_of_several_periods_is_counted_and_the_phase_kept():
    clock = ManualClock()
    ticker = Ticker(clock, PERIOD)
    next(ticker)
    clock.sleep_until_ns(3 * PERIOD + 700)  # 1 and 2 are wholly past; 3 has begun
    assert next(ticker) == Tick(3 * PERIOD, 700, 2)
    assert next(ticker) == Tick(4 * PERIOD, 0, 0)
    clock.sleep_until_ns(6 * PERIOD)  # 5 is past to the nanosecond
    assert next(ticker) == Tick(6 * PERIOD, 0, 1)
    clock.sleep_until_ns(8 * PERIOD - 1)
    assert next(ticker) == Tick(7 * PERIOD, PERIOD - 1, 0)


def test_a_start_to_come_is_waited_for():
    clock = ManualClock()
    assert next(Ticker(clock, PERIOD, start_ns=42)) == Tick(42, 0, 0)
    assert clock.now_ns() == 42


@settings(max_examples=200, deadline=None)
@given(busy=st.lists(st.integers(0, 4 * PERIOD), max_size=30))
def test_every_deadline_is_met_or_missed(busy):
    clock = ManualClock()
    ticker = Ticker(clock, PERIOD)
    missed = 0
    for met, work in enumerate(busy):
        tick = next(ticker)
        missed += tick.missed
        assert 0 <= tick.late_ns < PERIOD
        assert tick.deadline_ns + tick.late_ns == clock.now_ns()
        assert tick.deadline_ns == (met + missed) * PERIOD
        clock.sleep_until_ns(clock.now_ns() + work)


def test_in_real_time_it_never_comes_early():
    clock = MonotonicClock()
    for tick in itertools.islice(Ticker(clock, 1_000_000), 20):
        assert clock.now_ns() >= tick.deadline_ns + tick.late_ns


def test_a_period_must_be_positive():
    with pytest.raises(OnsetError):
        Ticker(ManualClock(), 0)


@given(late=st.integers(0, 2**33))
@example(late=0)
@example(late=1023)
@example(late=1024)
@example(late=2**30 - 1)
@example(late=2**30)
def test_each_value_lies_in_its_bin_and_the_bins_are_narrow(late):
    index = _bin(late)
    assert _lower_ns(index) <= late
    if late < 2**30:
        assert late < _lower_ns(index + 1)
    if 2**10 <= late < 2**30:
        assert (_lower_ns(index + 1) - _lower_ns(index)) * 16 <= late


def test_the_bins_join():
    edges = [_lower_ns(index) for index in range(323)]
    assert edges == sorted(set(edges))
    assert [_bin(edge) for edge in edges[:322]] == list(range(322))
    assert _bin(-5) == 0


@settings(max_examples=150, deadline=None)
@given(
    values=st.lists(
        st.one_of(st.integers(0, 2_000), st.integers(0, 10**7), st.integers(0, 10**10)), min_size=1
    ),
    share=st.floats(0.001, 1.0),
)
def test_quantiles_are_numpys_within_a_bin(values, share):
    histogram = LatenessHistogram()
    for value in values:
        histogram.add(value)
    # The least value that at least this share does not exceed.
    exact = int(np.sort(values)[math.ceil(share * len(values)) - 1])
    got = histogram.quantile(share)
    assert got is not None
    assert exact <= got <= max(values)
    if exact < 2**30:
        assert got <= _lower_ns(_bin(exact) + 1)
    assert histogram.quantile(1.0) == histogram.max_ns == max(values)


def test_many_ticks_agree_with_numpy():
    values = np.random.default_rng(0).lognormal(11.0, 1.0, 20_000).astype(int)
    histogram = LatenessHistogram()
    for value in values.tolist():
        histogram.add(value)
    for share in (0.5, 0.9, 0.99, 0.999):
        exact = np.quantile(values, share, method="inverted_cdf")
        assert exact <= (histogram.quantile(share) or 0) <= exact * 17 / 16


def test_histograms_merge_and_go_to_json():
    one, other, both = (LatenessHistogram() for _ in range(3))
    for index, late in enumerate((0, 1_500, 2_000_000, 5_000_000_000, 30)):
        (one if index % 2 else other).add(late, missed=index)
        both.add(late, missed=index)
    merged = one.merge(other).to_dict()
    assert merged == both.to_dict()
    assert json.loads(json.dumps(merged)) == merged
    assert merged["count"] == 5
    assert merged["missed"] == 10
    assert merged["missed_fraction"] == pytest.approx(10 / 15)
    assert merged["max_ns"] == 5_000_000_000


def test_an_empty_histogram_knows_nothing():
    empty = LatenessHistogram()
    assert empty.quantile(0.99) is None
    assert (empty.count, empty.max_ns, empty.missed_fraction) == (0, 0, 0.0)
    for wrong in (0.0, -0.1, 1.1):
        with pytest.raises(OnsetError):
            empty.quantile(wrong)


def test_counting_keeps_no_memory():
    histogram = LatenessHistogram()
    values = [value * 1_000 for value in range(2_000)]
    for value in values:
        histogram.add(value)
    tracemalloc.start()
    try:
        for _ in range(5):
            for value in values:
                histogram.add(value)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Counts over 256 are numbers of their own, at most one for each bin.
    assert kept < 64 * 330
