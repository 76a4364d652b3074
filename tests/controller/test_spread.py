"""The caller does what no helper has begun, so that nothing waits for a helper."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from controller.spread import helpers_for, spread
from tests.controller.helpers import ROBOT


def test_results_come_in_the_order_of_the_items():
    with ThreadPoolExecutor(2) as helpers:
        assert spread(lambda x: 10 * x, list(range(20)), helpers) == [10 * x for x in range(20)]
    assert spread(lambda x: -x, [1, 2]) == [-1, -2]
    assert spread(lambda x: -x, []) == []


def test_busy_helpers_are_not_waited_for():
    release = threading.Event()
    with ThreadPoolExecutor(1) as helpers:
        helpers.submit(release.wait)
        here = threading.get_ident()
        try:
            assert spread(lambda _: threading.get_ident(), [0, 1, 2], helpers) == [here] * 3
        finally:
            release.set()


def test_two_that_spread_from_within_the_same_helpers_both_end():
    with ThreadPoolExecutor(2) as helpers:
        inner = lambda x: sum(spread(lambda y: x + y, [1, 2, 3], helpers))  # noqa: E731
        assert list(helpers.map(inner, range(8), timeout=10)) == [3 * x + 6 for x in range(8)]


def test_what_is_raised_is_raised_here():
    with ThreadPoolExecutor(1) as helpers, pytest.raises(ZeroDivisionError):
        spread(lambda x: 1 // x, [1, 0], helpers)


def test_no_thread_begins_before_it_is_needed():
    before = threading.active_count()
    with helpers_for(ROBOT) as helpers:
        assert threading.active_count() == before
        assert helpers.submit(int).result(5) == 0
