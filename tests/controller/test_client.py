import asyncio
import time
from dataclasses import replace

import numpy as np
import pytest

from controller.client import GrpcLink, describe
from controller.client_session import LinkConfig
from controller.clock import MonotonicClock
from controller.errors import ErrorCode, OnsetError
from controller.link import EpisodicLink
from controller.loop import ControlLoop
from controller.loop_types import LoopConfig
from controller.mailbox import Letter, Mailbox
from controller.messages import Close, Notice, NoticeKind, Open, Reset
from controller.robot import FakeRobot
from controller.types import Observation
from tests.controller.grpc_fakes import FakeServer, Servicer, answer, answer_at_once, pb_slice
from tests.controller.helpers import DESCRIPTION, MS, ROBOT, WIDE, observation

QUICK = LinkConfig(reply_deadline_s=2.0, open_timeout_s=5.0, min_backoff_s=0.02)


def link_to(server: FakeServer, robot=ROBOT, **changes) -> GrpcLink:
    settings = {"robot_id": "arm-1", "prompt": "hit the red mole", "config": QUICK} | changes
    settings.setdefault("on_event", lambda event: None)
    return GrpcLink(server.address, robot, **settings)


def until(condition, timeout_s: float = 5.0):
    """Waits for a condition and returns its value."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.005)
    pytest.fail("the condition did not come true in time")


def one_reply(link: GrpcLink):
    return until(lambda: link.poll(0))


def received(servicer: Servicer, kind: type) -> list:
    return [message for message in servicer.received if isinstance(message, kind)]


def test_an_observation_is_answered_and_the_session_closes_in_good_order():
    servicer = Servicer(DESCRIPTION, answer_at_once)
    with FakeServer(servicer) as server:
        with link_to(server, episode="e1") as link:
            assert isinstance(link, EpisodicLink)
            assert link.opened.horizon == 8
            link.submit(observation(id=4))
            pieces = one_reply(link)
            assert [piece.observation_id for piece in pieces] == [4]
            stats = link.stats
            assert (stats.observations, stats.slices, stats.reopens) == (1, 1, 0)
            assert stats.bytes_up > 24 * 32
        until(lambda: received(servicer, Close))
    opening = received(servicer, Open)[0]
    assert (opening.robot_id, opening.episode, opening.robot) == ("arm-1", "e1", ROBOT)


def test_a_wait_ends_with_the_slice_with_its_timeout_and_with_the_session():
    with FakeServer(Servicer(DESCRIPTION, answer_at_once)) as server, link_to(server) as link:
        began = time.monotonic()
        link.wait(0.05)
        assert 0.05 <= time.monotonic() - began < 2
        for id in range(3):
            link.submit(observation(id=id, step=id))
            link.wait(5.0)
            assert [piece.observation_id for piece in link.poll(0)] == [id]
        link.close()
        began = time.monotonic()
        for _ in range(2):
            link.wait(5.0)
            assert link.poll(0) == []
        assert time.monotonic() - began < 2


def test_describe_tells_what_is_served():
    with FakeServer(Servicer(DESCRIPTION, answer_at_once)) as server:
        assert describe(server.address) == DESCRIPTION
    with pytest.raises(OnsetError, match="unavailable"):
        describe(server.address, timeout_s=0.2)


def test_no_server_is_an_error_that_says_so():
    config = replace(QUICK, open_timeout_s=0.3)
    link = GrpcLink("localhost:1", ROBOT, robot_id="a", prompt="p", config=config)
    with pytest.raises(OnsetError, match="localhost:1"):
        link.__enter__()
    with pytest.raises(OnsetError, match="not_open"):
        link.submit(observation())


def test_a_refused_open_is_raised_with_the_servers_words():
    servicer = Servicer(DESCRIPTION, answer_at_once)
    servicer.refusal = OnsetError(
        ErrorCode.UNKNOWN_PROMPT, "open.prompt", "sing", ["hit the red mole"], fatal=True
    )
    with FakeServer(servicer) as server, pytest.raises(OnsetError) as caught:
        link_to(server, prompt="sing").__enter__()
    assert caught.value.code is ErrorCode.UNKNOWN_PROMPT
    assert "hit the red mole" in caught.value.allowed


def test_names_that_the_server_answers_differently_end_the_session():
    class Wrong(Servicer):
        def opened(self, opening):
            return replace(super().opened(opening), action_names=("grip.pos", "pan.pos"))

    with FakeServer(Wrong(DESCRIPTION, answer_at_once)) as server:
        with pytest.raises(OnsetError) as caught:
            link_to(server).__enter__()
        assert (caught.value.code, caught.value.field) == (
            ErrorCode.BAD_NAMES,
            "opened.action_names",
        )


def test_an_error_that_is_not_fatal_and_a_notice_reach_the_robot_and_the_session_goes_on():
    async def complain(o: Observation, session):
        if o.id == 0:
            await session.send(
                OnsetError(ErrorCode.STEP_ORDER, "observation.step", 3, ">= 5", observation_id=0)
            )
            await session.send(Notice(NoticeKind.OVERLOAD, "busy", 0))
        else:
            await answer_at_once(o, session)

    events = []
    with (
        FakeServer(Servicer(DESCRIPTION, complain)) as server,
        link_to(server, on_event=events.append) as link,
    ):
        link.submit(observation(id=0))
        until(lambda: len(events) == 2)
        assert (events[0].code, events[0].observation_id) == (ErrorCode.STEP_ORDER, 0)
        assert events[1] == Notice(NoticeKind.OVERLOAD, "busy", 0)
        link.submit(observation(id=1))
        assert one_reply(link)[0].observation_id == 1
        assert (link.stats.errors, link.stats.notices, link.stats.reopens) == (1, 1, 0)
        assert link.events == events


def test_a_fatal_error_is_raised_by_every_later_call_after_the_last_slices():
    async def give_up(o: Observation, session):
        await session.send(answer(o, 2))
        await session.send(OnsetError(ErrorCode.INTERNAL, "model", "gone", "a model", fatal=True))

    with FakeServer(Servicer(DESCRIPTION, give_up)) as server, link_to(server) as link:
        link.submit(observation(id=0))
        until(lambda: link._error)
        assert link.poll(0)[0].observation_id == 0
        for call in (
            lambda: link.poll(0),
            lambda: link.submit(observation(id=1)),
            lambda: link.reset("e", "p"),
            link.raise_for_error,
        ):
            with pytest.raises(OnsetError, match="model"):
                call()


def test_garbage_and_bad_slices_are_counted_and_dropped():
    async def garbage_first(o: Observation, session):
        if o.id == 0:
            bad = pb_slice(replace(answer(o, 2), actions=np.full((8, 2), np.nan, np.float32)))
            await session.context.write(bad)
            await session.context.write(pb_slice(answer(o, 3)))
        await answer_at_once(o, session)

    with FakeServer(Servicer(DESCRIPTION, garbage_first)) as server, link_to(server) as link:
        link.submit(observation(id=0))
        pieces = one_reply(link)
        assert np.isfinite(pieces[0].actions).all()
        assert (link.stats.malformed, link.stats.slices, link.stats.reopens) == (2, 1, 0)


def test_bytes_that_are_no_protobuf_do_not_end_the_session():
    class Raw:
        """Passes for a message when gRPC serialises it."""

        def SerializeToString(self):
            return b"\xff\xff\xff garbage"

    async def reply(o: Observation, session):
        await session.context.write(b"\xff\xff\xff garbage")
        await answer_at_once(o, session)

    with FakeServer(Servicer(DESCRIPTION, reply)) as server, link_to(server) as link:
        link.submit(observation(id=0))
        assert one_reply(link)[0].observation_id == 0
        assert link.stats.malformed == 1


def test_a_bad_observation_is_refused_before_it_is_queued():
    with (
        FakeServer(Servicer(DESCRIPTION, answer_at_once)) as server,
        link_to(server) as link,
    ):
        with pytest.raises(OnsetError) as caught:
            link.submit(observation(state=np.full(3, np.nan, np.float32)))
        assert caught.value.code is ErrorCode.NON_FINITE
        link.submit(observation(id=1))
        assert one_reply(link)[0].observation_id == 1


def test_a_killed_server_is_found_again_and_the_episode_resumed():
    servicer = Servicer(DESCRIPTION, answer_at_once)
    with FakeServer(servicer) as server, link_to(server, episode="e1") as link:
        link.submit(observation(id=0, prompt="hit the blue mole"))
        one_reply(link)
        server.kill()
        link.submit(observation(id=1, step=20))  # lost with the server, or sent to the next one
        again = Servicer(DESCRIPTION, answer_at_once)
        with FakeServer(again, port=server.port):
            until(lambda: link.stats.reopens == 1)
            link.submit(observation(id=2, step=30))
            until(lambda: any(p.observation_id == 2 for p in link.poll(0)))
            opening = received(again, Open)[0]
            assert (opening.robot_id, opening.episode) == ("arm-1", "e1")
            assert opening.prompt == "hit the blue mole"
            link.raise_for_error()
        assert any(event.code is ErrorCode.UNAVAILABLE for event in link.events)


def test_a_server_that_is_leaving_or_full_is_tried_again():
    servicer = Servicer(DESCRIPTION, answer_at_once)
    servicer.refusal = OnsetError(
        ErrorCode.OVERLOADED, "session", "64 robots", "at most 64", fatal=True
    )

    def relent(event):
        servicer.refusal = None

    with FakeServer(servicer) as server, link_to(server, on_event=relent) as link:
        assert len(received(servicer, Open)) == 2
        assert "64 robots" in link.events[0].given


def test_a_silent_server_is_given_up_after_the_reply_deadline():
    async def silent_at_first(o: Observation, session):
        if o.id > 0:
            await answer_at_once(o, session)

    config = replace(QUICK, reply_deadline_s=0.1)
    with (
        FakeServer(Servicer(DESCRIPTION, silent_at_first)) as server,
        link_to(server, config=config) as link,
    ):
        link.submit(observation(id=0))
        until(lambda: link.stats.reopens == 1)
        assert link.stats.reply_timeouts == 1
        link.submit(observation(id=1))
        assert one_reply(link)[0].observation_id == 1


def test_a_slow_model_is_not_taken_for_a_dead_one_for_ever():
    async def slow(o: Observation, session):
        await asyncio.sleep(0.15)
        await answer_at_once(o, session)

    config = replace(QUICK, reply_deadline_s=0.05)
    with (
        FakeServer(Servicer(DESCRIPTION, slow)) as server,
        link_to(server, config=config) as link,
    ):
        for id in range(20):
            link.submit(observation(id=id))
            time.sleep(0.05)
            if link.stats.slices:
                break
        until(lambda: link.stats.slices)


def test_a_reset_goes_before_the_observations_of_its_episode():
    servicer = Servicer(DESCRIPTION, answer_at_once)
    with FakeServer(servicer) as server, link_to(server) as link:
        link.submit(observation(id=0))
        one_reply(link)
        link.reset("e2", "hit the blue mole")
        link.submit(observation(id=1, step=0))
        assert one_reply(link)[-1].observation_id == 1
        tail = servicer.received[-2:]
        assert tail[0] == Reset("e2", "hit the blue mole")
        assert tail[1].step == 0


def test_the_mailbox_keeps_only_the_newest_observation_and_loses_no_prompt():
    box = Mailbox("e", "first")
    assert not box.put(observation(id=0, prompt="second"))
    assert box.put(observation(id=1))
    letter = box.take()
    assert isinstance(letter, Letter)
    assert (letter.observation.id, letter.observation.prompt) == (1, "second")
    assert box.take() is None
    assert box.take_opening() == ("e", "second")
    box.put(observation(id=2))
    box.put_reset("f", "third")
    assert box.take() == Reset("f", "third")
    assert box.take() is None
    box.put_reset("g", "fourth")
    assert box.take_opening() == ("g", "fourth")
    assert box.take() is None  # the Open has said it


def test_the_control_loop_runs_over_the_wire():
    servicer = Servicer(DESCRIPTION, answer_at_once)
    robot = replace(WIDE, period_ns=20 * MS)
    config = LoopConfig(control_period_ns=10 * MS, execute_steps=2)
    with FakeServer(servicer) as server, link_to(server, robot=robot) as link:
        clock = MonotonicClock()
        body = FakeRobot(robot, clock)
        loop = ControlLoop(body, link, config, "hit the red mole")
        begin = clock.now_ns()
        for tick in range(40):
            clock.sleep_until_ns(begin + tick * 10 * MS)
            loop.tick(clock.now_ns())
        assert loop.counters.slices >= 5
        assert loop.estimator.latency_ns is not None
        assert body.commands[-1].position[0] > 0
