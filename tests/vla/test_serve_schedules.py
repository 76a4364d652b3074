"""Schedules through the server: what leaves when, and what a policy does not offer."""

import threading
import time

import numpy as np
import pytest

from controller.client import describe
from controller.errors import OnsetError
from tests.vla.helpers import (
    HORIZON,
    PROMPTS,
    LocalServer,
    chunk_of,
    link_to,
    observation,
    until,
)
from vla.engine import Engine
from vla.finished import Finished
from vla.schedule import horizon_aware
from vla.serve import config as serving


def test_near_term_actions_leave_before_the_last_exist(tiny):
    engine = Engine(tiny, schedule="has")
    with LocalServer(tiny, schedule="has") as server, link_to(server) as link:
        asked = observation(2)
        link.submit(asked)
        pieces = []
        until(lambda: pieces.extend(link.poll(0)) or (pieces and pieces[-1].final))
    table = engine.schedule.ready_at
    assert len(pieces) == len(np.unique(table)) > 1
    assert [p.final for p in pieces] == [False] * (len(pieces) - 1) + [True]
    for piece in pieces:
        index = piece.steps - asked.step
        assert (table[index] == piece.timing.expert_steps).all()
        np.testing.assert_allclose(piece.actions, engine.chunk(asked, PROMPTS[0])[index], atol=1e-6)
    assert sorted(np.concatenate([p.steps for p in pieces]) - asked.step) == [*range(HORIZON)]
    spent = [p.timing.expert_ns for p in pieces]
    assert (np.diff(spent) > 0).all()


class Stepwise:
    """Runs the horizon-aware table; past the warm-up each expert step waits for a permit."""

    def __init__(self) -> None:
        self.table = horizon_aware(HORIZON, 0, 4)
        self.warm = False
        self.steps: list[int] = []
        self.permits = threading.Semaphore(0)

    def stream(self, asked, prompt, strategy, memory=None):
        began_ns = time.perf_counter_ns()
        for step in range(1, self.table.steps + 1):
            if self.warm:
                assert self.permits.acquire(timeout=20)
                self.steps.append(step)
            ripe = np.flatnonzero(self.table.ready_at == step)
            if len(ripe):
                actions = np.full((len(ripe), 2), step, np.float32)
                final, spent_ns = step == self.table.steps, time.perf_counter_ns() - began_ns
                yield Finished(asked.step, asked.step + ripe, actions, final, 0, spent_ns, step, 8)
        self.warm = True


def test_each_slice_leaves_when_it_is_ready_and_says_when_that_was(tiny):
    engine = Stepwise()
    with LocalServer(tiny, lambda: engine) as server, link_to(server) as link:
        link.submit(observation(0))
        pieces = []
        for step in sorted(set(engine.table.ready_at.tolist())):
            engine.permits.release(step - len(engine.steps))
            link.wait(10.0)
            pieces += link.poll(0)
            # It is here, and the step after it has not run.
            assert engine.steps == list(range(1, step + 1))
            assert [p.timing.expert_steps for p in pieces][-1] == step
    assert len(pieces) > 1
    timings = [piece.timing for piece in pieces]
    for name in ("expert_ns", "total_ns"):
        assert (np.diff([getattr(timing, name) for timing in timings]) > 0).all()
    assert all(t.total_ns >= t.queue_ns + t.encode_ns + t.expert_ns for t in timings)


def test_what_robots_do_not_execute_is_neither_computed_nor_sent(tiny):
    whole = Engine(tiny, schedule="has")
    with LocalServer(tiny, schedule="has", executed=3) as server, link_to(server) as link:
        assert link.opened.max_delay == HORIZON - 3
        link.submit(observation(1))
        pieces = []
        until(lambda: pieces.extend(link.poll(0)) or (pieces and pieces[-1].final))
    steps = np.sort(np.concatenate([p.steps for p in pieces])) - observation(1).step
    last = whole.schedule.steps_for(3)
    assert pieces[-1].timing.expert_steps == last < whole.schedule.steps
    np.testing.assert_array_equal(steps, np.flatnonzero(whole.schedule.ready_at <= last))


def test_one_step_is_one_expert_step_and_is_described_so(mean_flow):
    with LocalServer(mean_flow, schedule="one_step") as server, link_to(server) as link:
        assert describe(server.address).expert_steps == 1
        link.submit(observation(1))
        piece = chunk_of(link)
    assert (piece.timing.expert_steps, piece.final, len(piece.steps)) == (1, True, HORIZON)


def test_a_schedule_without_its_head_is_refused_before_a_port_is_opened(tiny):
    with pytest.raises(OnsetError, match=r"given has_meanflow; allowed: what tiny offers: \['cons"):
        LocalServer(tiny, schedule="has_meanflow").__enter__()


def test_more_actions_than_a_chunk_holds_are_refused(tiny):
    with pytest.raises(OnsetError, match=f"executed: given 9; allowed: 1..{HORIZON}"):
        serving.describe(tiny, serving.ServeConfig(executed=HORIZON + 1))


def test_an_unknown_schedule_is_refused_before_anything_is_served(tiny):
    with pytest.raises(OnsetError, match="schedule: given hass; allowed: .*one_step"):
        serving.describe(tiny, serving.ServeConfig(schedule="hass"))
