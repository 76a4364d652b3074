"""The way to the park pose: from rest to rest, slow, straight, together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.errors import ErrorCode, OnsetError
from controller.park import ParkMotion
from tests.controller.executor_fakes import ARM, SO101, limits_of

SLOW = (2.0, 10.0, 100.0)


def poses():
    limits = limits_of()
    ends = zip(limits.lower.tolist(), limits.upper.tolist(), strict=True)
    return st.tuples(*(st.floats(low, high) for low, high in ends)).map(np.array)


@given(start=poses(), end=poses(), share=st.floats(0.05, 1), rates=st.sampled_from([SO101, SLOW]))
@settings(max_examples=100, deadline=None)
def test_it_goes_from_rest_to_rest_within_its_share_of_the_limits(start, end, share, rates):
    limits = limits_of(ARM, rates)
    motion = ParkMotion(start, end, limits, 50, share)
    times = np.linspace(0, motion.duration_ns, 400)
    places, rates_ = map(np.array, zip(*(motion.at(50 + int(t)) for t in times), strict=True))
    np.testing.assert_allclose(places[0], start, atol=1e-12)
    np.testing.assert_allclose(places[-1], end, atol=1e-7)
    assert not rates_[0].any()
    assert (np.abs(rates_) <= share * limits.velocity * (1 + 1e-9)).all()
    step_s = motion.duration_ns * 1e-9 / 399
    acceleration = np.abs(np.diff(rates_, axis=0)) / step_s
    assert (acceleration <= share * limits.acceleration * 1.001).all()
    # What it says of its velocity is what it does.
    moved = (rates_[1:] + rates_[:-1]) / 2 * step_s
    np.testing.assert_allclose(np.diff(places, axis=0), moved, atol=1e-4)
    # Straight: every joint has gone the same share of its way.
    far = np.abs(end - start) > 1e-3
    shares = (places - start)[:, far] / (end - start)[far]
    np.testing.assert_allclose(shares, np.broadcast_to(shares[:, :1], shares.shape), atol=1e-9)


@pytest.mark.parametrize("rates", [SO101, SLOW])
@pytest.mark.parametrize("way", [1e-5, 1e-3, 0.01, 0.1, 1.0])
def test_the_jerk_of_short_ways_keeps_the_limit_too(way, rates):
    limits = limits_of(ARM, rates)
    motion = ParkMotion(np.zeros(3), np.array([way, 0, 0]), limits, 0)
    seconds = motion.duration_ns * 1e-9
    assert 60 * way / seconds**3 <= limits.jerk[0] * (1 + 1e-6)


def test_before_and_behind_it_stands():
    motion = ParkMotion(np.zeros(3), np.array([1.0, -0.5, 0.2]), limits_of(), 1000)
    for now_ns, place in ((0, [0, 0, 0]), (1000 + motion.duration_ns + 5, [1, -0.5, 0.2])):
        position, velocity = motion.at(now_ns)
        np.testing.assert_allclose(position, place, atol=1e-9)
        np.testing.assert_allclose(velocity, 0, atol=1e-9)


def test_where_it_is_there_already_it_takes_no_time():
    motion = ParkMotion(np.zeros(3), np.zeros(3), limits_of(), 0)
    assert motion.duration_ns <= 1_000_000
    assert not motion.at(500_000)[0].any()


def test_a_slower_share_takes_longer():
    ways = [ParkMotion(np.zeros(3), np.ones(3), limits_of(), 0, s) for s in (1.0, 0.5, 0.1)]
    times = [way.duration_ns for way in ways]
    assert times == sorted(times)
    assert times[0] < times[2] / 2


@pytest.mark.parametrize("share", [0, -0.1, 1.1, np.nan])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(OnsetError) as raised:
        ParkMotion(np.zeros(3), np.ones(3), limits_of(), 0, share)
    assert raised.value.code is ErrorCode.BAD_VALUE
