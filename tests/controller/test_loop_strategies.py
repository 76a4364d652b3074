"""Each strategy in the loop, in virtual time: what is asked for, and what is then executed.

Actions say where they come from, (observation, index in its chunk), so that every set-point does.
"""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.latency import DelayEstimator
from controller.loop_types import TickCode
from controller.strategy import STRATEGIES
from controller.types import Observation
from tests.controller.helpers import MS
from tests.controller.loop_fakes import CONFIG, FAST, Rig, numbered
from tests.controller.strategy_fakes import GUIDED, LATE, STEP, executed, random_chunks, rig_of

SYNC = replace(FAST, strategy="sync")
BLEND = replace(FAST, strategy="blend")


# ---- sync


def test_sync_stands_still_until_the_chunk_is_there_and_executes_it_from_its_beginning():
    rig = Rig(SYNC, latency_ns=3 * STEP)
    rig.link.chunk = numbered
    results = rig.run(17)
    held, first, second = [None] * 3, *([(i, j) for j in range(4)] for i in range(2))
    assert executed(results) == [*held, *first, *held, *second, *held]
    # The next observation is K steps after the chunk began, and what was left of it is let go.
    assert [o.step for o in rig.link.sent] == [0, 7, 14]
    points = [r.set_point.tolist() for r in results]
    assert points[7:10] == [points[6]] * 3
    assert {(o.delay, len(o.committed), len(o.planned)) for o in rig.link.sent} == {(0, 0, 0)}


@settings(max_examples=80, deadline=None)
@given(
    latencies=st.lists(st.integers(0, 40), min_size=12, max_size=12),
    execute_steps=st.integers(1, 8),
)
def test_sync_executes_each_action_once_and_in_order_whatever_the_latency(latencies, execute_steps):
    """Also where the answer comes within a step: that step is then the chunk's first."""
    rig = Rig(replace(CONFIG, strategy="sync", execute_steps=execute_steps))
    rig.link.chunk = numbered
    submit = rig.link.submit

    def submit_with_latency(observation: Observation) -> None:
        rig.link.latency_ns = latencies[observation.id % 12] * 10 * MS
        submit(observation)

    rig.link.submit = submit_with_latency
    ended = rig.run(4 * 60)[3::4]
    ran = [value for value in executed(ended) if value is not None]
    count = len(ran)
    assert count >= 1
    assert ran == [(at // execute_steps, at % execute_steps) for at in range(count)]
    began = {r.observation_id: r.step for r in reversed(ended)}
    for observation in rig.link.sent[1:]:
        assert observation.step == began[observation.id - 1] + execute_steps


def test_sync_asks_again_for_a_lost_reply_after_the_longest_delay():
    rig = Rig(replace(SYNC, max_delay=3), lost={1})
    rig.link.chunk = numbered
    results = rig.run(12)
    assert [o.step for o in rig.link.sent] == [0, 4, 8]
    chunks = [[(i, j) for j in range(4)] for i in (0, 2)]
    assert executed(results) == [*chunks[0], *[None] * 4, *chunks[1]]


def test_sync_stands_still_also_when_a_reply_comes_that_was_asked_for_again():
    rig = Rig(replace(SYNC, max_delay=3))
    rig.link.chunk = numbered
    rig.run(4)
    rig.link.latency_ns = 5 * STEP  # of observation 1, at step 4; there at step 9
    rig.run(4)
    rig.link.latency_ns = 3 * STEP  # of observation 2, at step 8; there at step 11
    assert executed(rig.run(7)) == [*[None] * 3, *[(2, j) for j in range(4)]]
    assert rig.loop.counters.superseded == 8


@settings(max_examples=60, deadline=None)
@given(
    cuts=st.sets(st.integers(1, 7), max_size=3),
    first=st.integers(0, 5),
    data=st.data(),
)
def test_sync_shifts_all_slices_of_a_chunk_by_the_same(cuts, first, data):
    """Each slice may come up to the step of its first action, counted from the chunk's start."""
    rig = Rig(replace(SYNC, execute_steps=8))
    edges = [0, *sorted(cuts), 8]
    extra = [0] + [data.draw(st.integers(0, edge)) for edge in edges[1:-1]]

    def submit(observation: Observation) -> None:
        rig.link.sent.append(observation)
        whole = numbered(observation)
        for begin, end, more in zip(edges, edges[1:], extra, strict=False):
            part = replace(
                whole,
                steps=whole.steps[begin:end],
                actions=whole.actions[begin:end],
                final=end == 8,
            )
            rig.link.due.append((rig.clock.now_ns() + (first + more) * STEP, part))

    rig.link.submit = submit
    results = rig.run(2 * (first + 8))
    expected = [[None] * first + [(i, j) for j in range(8)] for i in range(2)]
    assert executed(results) == expected[0] + expected[1]


@pytest.mark.parametrize(("execute_steps", "horizon"), [(1, 4), (4, 8), (8, 8)])
def test_without_any_delay_sync_is_naive(execute_steps, horizon):
    points = []
    for config in (SYNC, FAST):
        rig = Rig(replace(config, execute_steps=execute_steps))
        random_chunks(rig, horizon)
        points.append([r.set_point.tolist() for r in rig.run(40)])
        assert rig.loop.counters.starved == 0
    assert points[0] == points[1]


# ---- blend


@pytest.mark.parametrize("horizon", [8, 12])
def test_blend_averages_the_overlap_3_to_7_and_again_where_three_chunks_meet(horizon):
    rig = Rig(BLEND)
    chunks = random_chunks(rig, horizon)
    results = rig.run(24)
    for step, result in enumerate(results):
        answering = [i for i in chunks if 0 <= step - 4 * i < horizon]
        expected = chunks[answering[0]][step - 4 * answering[0]]
        for i in answering[1:]:
            expected = 0.3 * expected + 0.7 * chunks[i][step - 4 * i]
        np.testing.assert_allclose(result.set_point, expected, rtol=1e-5, atol=1e-6)


def test_blend_leaves_a_chunk_as_it_is_where_none_stands():
    points = []
    for config in (BLEND, FAST):
        rig = Rig(config)
        random_chunks(rig, 4)
        points.append([r.set_point.tolist() for r in rig.run(24)])
    assert points[0] == points[1]


# ---- what the observation says of the old chunk


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_who_compares_is_told_what_the_old_chunk_says_behind_the_committed(strategy):
    delayed = STRATEGIES[strategy].delayed
    changes = {"delay_steps": 2} if delayed else {}
    rig = rig_of(strategy, changes=changes, latency_ns=2 * STEP)
    rig.run(15)
    assert rig.link.sent[0].planned.shape == (0, 2)
    for observation in rig.link.sent[1:]:
        assert len(observation.committed) == (2 if delayed else 0)
        if strategy in GUIDED or STRATEGIES[strategy].catch_up:
            # Two that are committed, and two more: to the end of the chunk, or a delay more.
            first = 4 - STRATEGIES[strategy].start(2)
            old = [[observation.id - 1, first + index] for index in range(4)]
            assert [*observation.committed.tolist(), *observation.planned.tolist()] == old
        else:
            assert observation.planned.shape == (0, 2)


@pytest.mark.parametrize("strategy", GUIDED)
def test_a_guided_chunk_takes_over_behind_the_committed(strategy):
    rig = rig_of(strategy, changes={"delay_steps": 2})
    results = rig.run(12)
    owners = [r.observation_id for r in results]
    assert owners == [0] * 6 + [1] * 4 + [2] * 2
    assert rig.loop.counters.committed == 2 * 2


# ---- a delay past the limit


def latencies_of(rig: Rig, latencies: dict[int, int]) -> None:
    """Sets the latency of each observation from a step on [steps]."""
    submit = rig.link.submit

    def submit_with_latency(observation: Observation) -> None:
        since = max(step for step in latencies if step <= observation.step)
        rig.link.latency_ns = latencies[since] * STEP
        submit(observation)

    rig.link.submit = submit_with_latency


@pytest.mark.parametrize("strategy", ["naive", "blend", *GUIDED, "prefix", *LATE])
def test_past_the_limit_the_robot_plays_out_its_chunk_holds_and_goes_on_by_itself(strategy):
    way = STRATEGIES[strategy]
    estimator = DelayEstimator(STEP, max_delay=2, window=4, skip_first=0)
    rig = rig_of(strategy, changes={"max_delay": 2}, estimator=estimator)
    latencies_of(rig, {0: 1, 20: 14, 60: 1})
    results = rig.run(100)
    points = [r.set_point.tolist() for r in results]
    assert [o.step for o in rig.link.sent] == list(range(0, 100, 4))
    assert max(o.delay for o in rig.link.sent) == (2 if way.delayed else 0)
    over = [r.step for r in results if r.delay_over_limit]
    # Known with the first slow answer, until fast ones alone are remembered.
    assert over == list(range(over[0], over[-1] + 1))
    assert over[0] == 20 + 14
    assert 60 < over[-1] < 90
    starved = [r.step for r in results[5:] if r.code is TickCode.STARVED]
    assert starved
    assert min(starved) >= 20 + 4
    assert max(starved) <= 60 + 2
    assert all(points[step] == points[step - 1] for step in starved)
    assert all(r.code is TickCode.RUNNING for r in results[64:])
    assert rig.loop.counters.over_limit == sum(r.observed and r.delay_over_limit for r in results)


@settings(max_examples=60, deadline=None)
@given(
    strategy=st.sampled_from(list(STRATEGIES)),
    latencies=st.lists(st.integers(0, 80), min_size=15, max_size=15),
    lost=st.sets(st.integers(0, 14), max_size=4),
    max_delay=st.integers(0, 4),
    execute_steps=st.integers(1, 6),
)
def test_a_starved_robot_never_moves_and_no_delay_is_past_the_limit(
    strategy, latencies, lost, max_delay, execute_steps
):
    rig = rig_of(
        strategy, changes={"max_delay": max_delay, "execute_steps": execute_steps}, lost=lost
    )
    submit = rig.link.submit

    def submit_with_latency(observation: Observation) -> None:
        rig.link.latency_ns = latencies[observation.id % 15] * 10 * MS
        submit(observation)

    rig.link.submit = submit_with_latency
    results = rig.run(60)
    for before, now in zip(results, results[1:], strict=False):
        if now.code is TickCode.STARVED:
            assert now.set_point.tolist() == before.set_point.tolist()
            assert now.observation_id == -1
    assert all(0 <= o.delay <= max_delay for o in rig.link.sent)
    assert all(len(o.committed) <= o.delay for o in rig.link.sent)
    assert [r.step for r in results] == list(range(60))


def test_a_margin_below_nothing_lets_an_action_come_within_its_step():
    found = {}
    for margin_ns in (0, -20 * MS):
        rig = Rig(replace(CONFIG, strategy="prefix", margin_ns=margin_ns), latency_ns=55 * MS)
        rig.run(4 * 40)
        # The answer is seen 60 ms after its observation: in the middle of the second step.
        found[margin_ns] = (rig.link.sent[-1].delay, rig.loop.counters.amended > 4)
    assert found == {0: (2, False), -20 * MS: (1, True)}
