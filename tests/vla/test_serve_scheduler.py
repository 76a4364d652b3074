"""The scheduler in virtual time, and the session's own checks."""

import numpy as np
import pytest

from controller.errors import ErrorCode, OnsetError
from controller.messages import Open, Reset
from controller.strategy import STRATEGIES
from tests.vla.helpers import HORIZON, MS, PROMPTS, ROBOT, observation, tiny_checkpoint
from vla.serve.config import ServeConfig, describe
from vla.serve.scheduler import Request, Scheduler
from vla.serve.session import OVERLOAD_INTERVAL_NS, Session


def request(session: int, id: int = 0, at: int = 0, deadline: int = 100) -> Request:
    return Request.of(session, observation(id, deadline_ns=deadline), PROMPTS[0], at, 0)


def taken(scheduler: Scheduler) -> list[tuple[int, int]]:
    pairs = []
    while (item := scheduler.take()) is not None:
        pairs.append((item.session, item.observation.id))
    return pairs


def test_the_earliest_deadline_goes_first_whatever_the_order_of_arrival():
    scheduler = Scheduler()
    scheduler.put(request(1, at=0, deadline=90))
    scheduler.put(request(2, at=10, deadline=20))
    scheduler.put(request(3, at=20, deadline=40))
    assert taken(scheduler) == [(2, 0), (3, 0), (1, 0)]
    assert len(scheduler) == 0


def test_equal_deadlines_go_in_order_of_arrival():
    scheduler = Scheduler()
    for session in (5, 3, 4):
        scheduler.put(request(session))
    assert [session for session, _ in taken(scheduler)] == [5, 3, 4]


def test_a_newer_observation_takes_the_place_of_the_older_one():
    scheduler = Scheduler()
    assert scheduler.put(request(1, id=1)) is None
    assert scheduler.put(request(2, id=1)) is None
    replaced = scheduler.put(request(1, id=2))
    assert replaced is not None
    assert (replaced.session, replaced.observation.id) == (1, 1)
    assert sorted(taken(scheduler)) == [(1, 2), (2, 1)]


def test_a_session_that_sends_often_keeps_its_turn():
    scheduler = Scheduler()
    scheduler.put(request(1, id=0, at=0, deadline=100))
    scheduler.put(request(2, id=0, at=1, deadline=120))
    for id in range(1, 50):
        scheduler.put(request(1, id=id, at=id, deadline=100))
    assert taken(scheduler) == [(1, 49), (2, 0)]


def test_every_request_is_taken_replaced_or_dropped_exactly_once():
    rng = np.random.default_rng(0)
    scheduler, out, put = Scheduler(), [], []
    for id in range(500):
        item = request(int(rng.integers(6)), id, at=id, deadline=int(rng.integers(1, 99)))
        put.append(id)
        ends = [scheduler.put(item)]
        if rng.random() < 0.4:
            ends.append(scheduler.take())
        if rng.random() < 0.1:
            ends.append(scheduler.drop(int(rng.integers(6))))
        out += [end.observation.id for end in ends if end is not None]
    out += [id for _, id in taken(scheduler)]
    assert sorted(out) == put


def test_only_a_deadline_that_passed_in_the_queue_is_overdue():
    assert not request(1, at=10, deadline=5).overdue(15)
    assert request(1, at=10, deadline=5).overdue(16)
    assert not request(1, at=10, deadline=0).overdue(10**9)


@pytest.fixture
def session():
    return Session.opened(Open("arm-1", ROBOT, PROMPTS[0], "e0", "naive"))


@pytest.fixture(scope="module")
def description(tmp_path_factory):
    return describe(tiny_checkpoint(tmp_path_factory.mktemp("tiny")), ServeConfig())


def test_a_session_may_begin_anywhere_and_then_only_goes_forward(session, description):
    first = observation(41, step=900)
    session.check(first, description)
    session.accept(first)
    session.check(observation(42, step=900), description)
    for bad, field in ((observation(41, step=901), "id"), (observation(42, step=899), "step")):
        with pytest.raises(OnsetError) as caught:
            session.check(bad, description)
        error = caught.value
        assert (error.code, error.field) == (ErrorCode.STEP_ORDER, f"observation.{field}")
        assert (error.fatal, error.observation_id) == (False, bad.id)


def test_after_a_reset_steps_start_again_and_ids_go_on(session, description):
    session.accept(observation(41, step=900))
    session.outstanding |= {40, 41}
    assert session.reset(Reset("e1", PROMPTS[1])) == {40, 41}
    assert (session.episode, session.prompt, session.outstanding) == ("e1", PROMPTS[1], set())
    session.check(observation(42, step=0), description)
    with pytest.raises(OnsetError, match="step_order"):
        session.check(observation(41, step=0), description)


@pytest.mark.parametrize("name", STRATEGIES)
def test_only_what_counts_on_a_delay_is_remembered_and_each_episode_begins_with_nothing(name):
    session = Session.opened(Open("arm-1", ROBOT, PROMPTS[0], "e0", name))
    before = session.memory
    # Nothing else ever asks for what was sent: it would pile up.
    assert (before is not None) == STRATEGIES[name].delayed
    if before is None:
        return
    before.note(0, np.arange(4), np.ones((4, 2), np.float32))
    asked = observation(1, step=0, delay=2, set_point=np.zeros(2, np.float32))
    np.testing.assert_array_equal(before.amend(asked, 0).committed, np.ones((2, 2)))
    session.reset(Reset("e1", PROMPTS[1]))
    assert session.memory is not None
    assert session.memory.amend(asked, 0) is asked


def test_a_delay_past_the_chunk_is_refused(session, description):
    assert description.max_delay == HORIZON - 1
    session.check(observation(0, delay=HORIZON - 1), description)
    with pytest.raises(OnsetError, match=f"bad_value: observation.delay.*0..{HORIZON - 1}"):
        session.check(observation(0, delay=HORIZON), description)


def test_overload_is_told_once_a_second(session):
    times = [0, 10 * MS, OVERLOAD_INTERVAL_NS - 1, OVERLOAD_INTERVAL_NS]
    assert [session.may_tell_overload(now) for now in times] == [True, False, False, True]
