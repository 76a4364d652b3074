import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.errors import OnsetError
from controller.latency import DelayEstimator
from tests.controller.helpers import MS


def fed(values, **changes) -> DelayEstimator:
    settings = {"max_delay": 100, "skip_first": 0} | changes
    estimator = DelayEstimator(40 * MS, **settings)
    for value in values:
        estimator.observe(value)
    return estimator


@given(
    st.lists(st.integers(0, 10**9), min_size=1, max_size=120), st.sampled_from([0.5, 0.9, 0.95, 1])
)
def test_latency_is_the_quantile_of_the_window(values, quantile):
    expected = np.quantile(values[-50:], quantile, method="inverted_cdf")
    assert fed(values, quantile=quantile).latency_ns == expected


def test_exponential_round_trips_give_the_analytic_quantile():
    mean = 50 * MS
    values = np.random.default_rng(0).exponential(mean, 4000).astype(int)
    latency = fed(values, window=4000).latency_ns
    assert latency == pytest.approx(mean * math.log(20), rel=0.05)


@pytest.mark.parametrize(
    ("latency", "margin", "delay"),
    [(0, 0, 0), (1, 0, 1), (40 * MS, 0, 1), (40 * MS + 1, 0, 2), (40 * MS, 1, 2), (79 * MS, 0, 2)],
)
def test_delay_is_rounded_up_to_whole_steps(latency, margin, delay):
    assert fed([latency], margin_ns=margin).delay() == delay


def test_a_spike_is_forgotten():
    estimator = fed([10 * MS] * 20 + [10**10] * 5)
    assert estimator.delay() == 100
    assert estimator.over_limit
    for _ in range(50):
        estimator.observe(10 * MS)
    assert estimator.delay() == 1
    assert not estimator.over_limit


def test_cold_replies_are_left_out_after_start_and_reset():
    estimator = fed([10**10] * 3, skip_first=3, min_delay=2)
    assert estimator.latency_ns is None
    assert estimator.delay() == 2
    estimator.observe(100 * MS)
    assert estimator.delay() == 3
    estimator.reset()
    estimator.observe(10**10)
    assert estimator.delay() == 2


def test_delay_is_clamped_and_says_so():
    estimator = fed([400 * MS], max_delay=8)
    assert (estimator.delay(), estimator.over_limit) == (8, True)
    assert fed([320 * MS], max_delay=8).over_limit is False
    assert fed([1], min_delay=3).delay() == 3


@pytest.mark.parametrize("changes", [{"quantile": 0}, {"window": 0}, {"min_delay": 101}])
def test_settings_out_of_range_are_refused(changes):
    with pytest.raises(OnsetError):
        fed([], **changes)


round_trips = st.lists(st.integers(0, 10**10), max_size=120)


@given(round_trips, st.integers(0, 10**10), st.data())
def test_the_delay_keeps_to_its_bounds(values, margin, data):
    most = data.draw(st.integers(0, 60))
    least = data.draw(st.integers(0, most))
    estimator = fed(values, margin_ns=margin, max_delay=most, min_delay=least)
    assert least <= estimator.delay() <= most
    if values and not estimator.over_limit:
        covered = estimator.delay() * 40 * MS
        assert covered >= estimator.latency_ns + margin


@given(round_trips, st.integers(0, 10**9), st.integers(0, 10**9))
def test_a_greater_margin_never_shortens_the_delay(values, one, more):
    assert fed(values, margin_ns=one + more).delay() >= fed(values, margin_ns=one).delay()


@given(
    st.lists(st.integers(0, 10**9), min_size=50, max_size=50),
    st.lists(st.tuples(st.integers(0, 49), st.integers(10**10, 10**12)), max_size=2),
)
def test_two_spikes_among_fifty_raise_the_delay_no_further_than_the_usual_most(usual, spikes):
    values = list(usual)
    for at, spike in spikes:
        values[at] = spike
    assert fed(values).latency_ns <= max(usual)


@given(st.integers(0, 49), st.integers(10**10, 10**12), st.integers(0, 10**9))
def test_a_spike_in_a_full_and_even_window_changes_nothing(at, spike, usual):
    values = [usual] * 50
    values[at] = spike
    assert fed(values).delay() == fed([usual] * 50).delay()


@given(round_trips, st.lists(st.integers(0, 10**9), min_size=50, max_size=60))
def test_what_has_left_the_window_is_forgotten(before, after):
    assert fed(before + after).latency_ns == fed(after).latency_ns


@given(st.integers(0, 5), round_trips, round_trips)
def test_after_a_reset_it_is_as_new(skipped, before, after):
    again = fed(before, skip_first=skipped)
    again.reset()
    for value in after:
        again.observe(value)
    new = fed(after, skip_first=skipped)
    assert (again.latency_ns, again.delay()) == (new.latency_ns, new.delay())
    assert again.latency_ns == fed(after[skipped:]).latency_ns


@given(round_trips, st.lists(st.integers(0, 120), max_size=30))
def test_lost_replies_are_counted_and_measure_nothing(values, lost_after):
    estimator = fed([], skip_first=3)
    for number, value in enumerate(values):
        for _ in range(lost_after.count(number)):
            estimator.lose()
        estimator.observe(value)
    assert estimator.latency_ns == fed(values, skip_first=3).latency_ns
    assert estimator.lost == sum(number < len(values) for number in lost_after)
    estimator.reset()
    assert estimator.lost == 0
