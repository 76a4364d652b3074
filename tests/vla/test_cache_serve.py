"""The cache in the server: reply fields, episodes, slack time, sessions that end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from controller.errors import OnsetError
from controller.messages import Reset
from tests.vla.cache_helpers import ROWS, scene
from tests.vla.helpers import PROMPTS, LocalServer, Wire, link_to, until
from vla.cache.asked import Whose
from vla.cache.config import CacheConfig, CacheMode, DenseReason
from vla.engine import Engine

QUARTER = CacheConfig(CacheMode.PIXEL, 0.25, cut_share=1.0)


class Settling(Engine):
    """Counts the caches that slack time made whole."""

    settled = 0

    def settle(self, cancelled: Callable[[], bool] | None = None) -> None:
        before = len(self._unsettled)
        super().settle(cancelled)
        self.settled += before - len(self._unsettled)


@pytest.fixture
def engines():
    return []


@pytest.fixture
def caching(tiny, engines):
    def make() -> Engine:
        engines.append(Settling(tiny, cache=QUARTER))
        return engines[-1]

    with LocalServer(tiny, make) as server:
        yield server


def test_replies_say_what_was_computed_and_slack_time_makes_the_rest(caching, engines) -> None:
    with link_to(caching) as link:
        told = []
        for number in range(4):
            link.submit(scene(number))
            told.append(until(lambda: link.poll(0))[0].cache)
            until(lambda: engines[0].settled == number + 1)  # noqa: B023
    assert told[0].dense_reason == DenseReason.FIRST
    assert (told[0].rows, told[0].rows_computed, told[0].base_id) == (ROWS, ROWS, 0)
    for number, figures in enumerate(told[1:], start=1):
        assert figures.rows_computed == ROWS // 4
        assert figures.reused == 0.75
        assert (figures.max_age, figures.dense_reason) == (1, "")
        assert figures.base_id == number - 1  # made whole since


def test_a_reset_begins_with_everything(caching) -> None:
    with Wire(caching.address) as wire:
        wire.open()
        wire.send(scene(0))
        assert wire.next().slice.cache.dense_reason == DenseReason.FIRST
        wire.send(scene(1))
        assert wire.next().slice.cache.dense_reason == ""
        wire.send(Reset("e1", PROMPTS[1]))
        wire.send(scene(2, step=0))
        assert wire.next().slice.cache.dense_reason == DenseReason.EPISODE


def test_a_session_that_ends_is_forgotten(caching, engines) -> None:
    for _ in range(3):
        with link_to(caching) as link:
            link.submit(scene(0))
            until(lambda: link.poll(0))
    with link_to(caching) as link:
        link.submit(scene(0))
        until(lambda: link.poll(0))
        # A session's end is seen between two requests.
        link.submit(scene(1))
        until(lambda: link.poll(0))
        until(lambda: len(engines[0].encoder.store) == 1)


def test_actions_are_those_of_the_engine_without_a_cache_where_all_is_computed(tiny) -> None:
    plain = Engine(tiny)
    cached = Engine(tiny, cache=CacheConfig(CacheMode.DENSE))
    for number in range(3):
        one = list(plain.stream(scene(number), PROMPTS[0]))
        other = list(cached.stream(scene(number), PROMPTS[0], whose=Whose(1, "e")))
        np.testing.assert_allclose(one[0].actions, other[0].actions, atol=1e-5)
        assert other[0].cache is not None
        assert other[0].cache.dense_reason
        cached.settle()


def test_non_finite_actions_are_an_error_and_then_everything_is_computed(tiny) -> None:
    engine = Engine(tiny, cache=QUARTER)
    whose = Whose(1, "e")
    list(engine.stream(scene(0), PROMPTS[0], whose=whose))
    cache = engine.encoder.store.get(1)
    assert cache is not None
    cache.slot.keys_values.fill_(torch.nan)
    with pytest.raises(OnsetError, match="non-finite"):
        list(engine.stream(scene(1), PROMPTS[0], whose=whose))
    after = list(engine.stream(scene(2), PROMPTS[0], whose=whose))
    assert after[0].cache is not None
    assert after[0].cache.dense_reason == DenseReason.NON_FINITE


def test_settling_serves_every_session_that_was_answered(tiny) -> None:
    engine = Engine(tiny, cache=replace(QUARTER, slack=True))
    for number in range(2):
        for session in range(3):
            frame = scene(number, 2, seed=session)
            list(engine.stream(frame, PROMPTS[0], whose=Whose(session, "e")))
    engine.settle(lambda: True)
    assert engine.encoder.store.get(0).ages.any()
    engine.settle()
    assert not any(engine.encoder.store.get(session).ages.any() for session in range(3))
    engine.forget(1)
    assert engine.encoder.store.get(1) is None
