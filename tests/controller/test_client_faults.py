"""The link over a network that fails, in real time. The bounds are the ones that hold by design."""

import asyncio
import itertools
import time
from collections import Counter
from dataclasses import replace

import numpy as np

from benchmarks._proxy import Proxy
from controller.client import GrpcLink
from controller.errors import ErrorCode, OnsetError
from controller.link_state import LinkState
from controller.messages import Notice, NoticeKind, Open
from controller.types import Observation
from tests.controller.client_scene import LONG, Scene, balance
from tests.controller.grpc_fakes import FakeServer, answer_at_once
from tests.controller.helpers import MS, ROBOT, observation
from tests.controller.test_client import one_reply, received, until


def test_a_life_in_good_order_streams_drains_and_closes():
    scene = Scene()
    with scene.running() as link:
        assert link.state is LinkState.STREAMING
        began_ns = time.monotonic_ns()
        time.sleep(0.02)
        assert link.status.age_ns(time.monotonic_ns()) >= time.monotonic_ns() - began_ns
        scene.exchange(0)
    assert scene.states == [LinkState.STREAMING, LinkState.DRAINING, LinkState.CLOSED]
    assert link.state is LinkState.CLOSED
    assert link.status.reason == "closed"
    balance(link.stats)


def test_a_link_that_nobody_opened_says_so():
    link = GrpcLink("localhost:1", ROBOT, robot_id="a", prompt="p")
    assert link.state is LinkState.CONNECTING
    link.close()
    assert link.state is LinkState.CLOSED


def test_a_fatal_error_closes_and_is_the_reason():
    async def give_up(o, session):
        await session.send(OnsetError(ErrorCode.INTERNAL, "model", "gone", "a model", fatal=True))

    scene = Scene(give_up)
    with scene.running() as link:
        scene.submit(0)
        until(lambda: link.state is LinkState.CLOSED)
        assert "model" in link.status.reason
    balance(link.stats)
    assert link.stats.lost == 1


def test_a_cut_without_a_word_is_stale_then_given_up_and_resumed_within_a_second():
    scene = Scene()
    with scene.running() as link:
        scene.exchange(0)
        scene.proxy.blackhole()
        cut_ns = time.monotonic_ns()
        scene.submit(1)
        until(lambda: link.state is LinkState.CONNECTING)
        assert scene.states[-2:] == [LinkState.STALE, LinkState.CONNECTING]
        stale_ns, lost_ns = (status.since_ns - cut_ns for status in scene.statuses[-2:])
        assert 120 * MS <= stale_ns < 250 * MS
        assert 250 * MS <= lost_ns < 500 * MS
        time.sleep(0.2)
        scene.proxy.restore()
        back_s = time.monotonic()
        until(lambda: link.poll(0))
        assert time.monotonic() - back_s < 1.0
        assert link.state is LinkState.STREAMING
    balance(link.stats)


def test_an_outage_after_another_is_found_as_soon():
    scene = Scene()
    with scene.running() as link:
        for id in (0, 2):
            scene.exchange(id)
            scene.proxy.blackhole()
            began, failed = time.monotonic(), link.stats.failed_attempts
            scene.submit(id + 1)
            until(lambda: link.state is LinkState.CONNECTING)
            assert time.monotonic() - began < 0.45
            until(lambda: link.stats.failed_attempts > failed)  # noqa: B023
            scene.proxy.restore()
            until(lambda: link.state is LinkState.STREAMING)


def test_a_stale_link_that_is_heard_from_streams_on():
    async def slow(o, session):
        await asyncio.sleep(0.15)
        await answer_at_once(o, session)

    scene = Scene(slow, stale_after_s=0.05, reply_deadline_s=0.25)
    with scene.running() as link:
        scene.exchange(0)
        assert LinkState.STALE in scene.states
        assert link.state is LinkState.STREAMING
        assert link.stats.reopens == 0


def test_pings_alone_find_a_cut_when_no_reply_is_awaited():
    scene = Scene(reply_deadline_s=10.0)
    with scene.running() as link:
        scene.exchange(0)
        scene.proxy.blackhole()
        began = time.monotonic()
        until(lambda: link.state is LinkState.CONNECTING)
        assert time.monotonic() - began < 1.2
        assert "ping" in link.status.reason


def test_the_newest_observation_is_sent_again_at_once_with_its_step_and_commitment():
    async def silent_at_first(o, session):
        if len(scene.sent()) > 2:
            await answer_at_once(o, session)

    scene = Scene(silent_at_first, reply_deadline_s=2.0)
    with scene.running() as link:
        scene.submit(6)
        until(lambda: len(scene.sent()) == 1)
        scene.submit(7)
        until(lambda: len(scene.sent()) == 2)
        scene.proxy.cut()
        until(lambda: link.state is LinkState.CONNECTING)
        assert link.stats.lost == 2
        time.sleep(0.1)
        scene.proxy.restore()
        back_s = time.monotonic()
        piece = one_reply(link)[0]
        assert time.monotonic() - back_s < 0.6
        assert piece.observation_id == 7
        first, again = scene.sent()[1:]
        assert (again.id, again.step, again.delay) == (first.id, first.step, first.delay)
        np.testing.assert_array_equal(again.committed, first.committed)
        # The server counts the deadline from receipt: what has passed of it is taken off.
        assert again.deadline_ns <= first.deadline_ns - 100 * MS
        opening = received(scene.servicer, Open)[-1]
        assert (opening.episode, opening.prompt) == ("0", "hit the red mole")
    stats = link.stats
    assert (stats.observations, stats.resent, stats.lost, stats.answered) == (3, 1, 2, 1)
    balance(stats)


def test_an_observation_that_ends_sessions_is_sent_twice_and_no_more():
    async def fall(o, session):
        if o.id == 0:
            await session.context.abort(14, "the server fell over")
        await answer_at_once(o, session)

    scene = Scene(fall)
    with scene.running() as link:
        scene.submit(0)
        until(lambda: link.stats.lost == 2)
        until(lambda: link.state is LinkState.STREAMING)
        scene.exchange(1)
        assert [o.id for o in scene.sent()] == [0, 0, 1]
    balance(link.stats)


def test_an_observation_is_not_sent_past_its_deadline_and_its_prompt_is_not_lost():
    scene = Scene()
    with scene.running() as link:
        scene.exchange(0)
        scene.proxy.cut()
        until(lambda: link.state is LinkState.CONNECTING)
        scene.submit(1, deadline_ns=50 * MS, prompt="hit the blue mole")
        time.sleep(0.1)
        scene.proxy.restore()
        until(lambda: link.stats.expired == 1)
        scene.exchange(2)
        assert [o.id for o in scene.sent()] == [0, 2]
        assert received(scene.servicer, Open)[-1].prompt == "hit the blue mole"
    balance(link.stats)


def test_an_observation_of_an_episode_that_is_over_is_not_sent_again():
    async def silent(o, session):
        pass

    scene = Scene(silent, reply_deadline_s=5.0)
    with scene.running() as link:
        scene.submit(3)
        until(scene.sent)
        scene.proxy.cut()
        until(lambda: link.state is LinkState.CONNECTING)
        link.reset("1", "hit the red mole")
        scene.proxy.restore()
        until(lambda: link.state is LinkState.STREAMING)
        time.sleep(0.1)
        assert [o.id for o in scene.sent()] == [3]
        assert received(scene.servicer, Open)[-1].episode == "1"
    stats = link.stats
    assert (stats.resent, stats.withdrawn, stats.lost) == (1, 1, 1)
    balance(stats)


def test_late_bytes_of_an_old_session_are_not_taken_with_those_of_the_new_one():
    scene = Scene()
    with scene.running() as link:
        scene.exchange(0)
        scene.proxy.stall(0.6)
        scene.submit(1)
        until(lambda: link.stats.reopens == 1)
        pieces = []
        until(lambda: pieces.extend(link.poll(0)) or pieces)
        time.sleep(0.2)  # for whatever else may come
        pieces += link.poll(0)
        # The server may have answered it in both sessions; the robot takes one answer.
        assert Counter(p.observation_id for p in pieces) == {1: 1}
    balance(link.stats)


def test_a_slice_that_answers_nothing_sent_in_this_session_is_dropped():
    async def stray_first(o, session):
        await answer_at_once(replace(o, id=o.id + 50), session)
        await answer_at_once(o, session)

    scene = Scene(stray_first)
    with scene.running() as link:
        scene.submit(0)
        assert [p.observation_id for p in one_reply(link)] == [0]
        assert (link.stats.strays, link.stats.slices) == (1, 2)


def test_a_write_that_blocks_is_bounded():
    async def talk_and_never_read(o, session):
        while True:
            await session.send(Notice(NoticeKind.OVERLOAD, "busy"))
            await asyncio.sleep(0.02)

    scene = Scene(talk_and_never_read, reply_deadline_s=0.1, max_awaited=100_000)

    def is_told() -> bool:
        told = [str(e) for e in scene.events if isinstance(e, OnsetError)]
        return any("nothing could be sent" in text for text in told)

    with scene.running() as link:
        deadline = time.monotonic() + 5
        for id in itertools.takewhile(lambda _: time.monotonic() < deadline, itertools.count()):
            scene.submit(id)
            time.sleep(0.002)
            if is_told():
                break
        assert is_told()
    balance(link.stats)


def test_a_server_that_falls_behind_finds_the_present_and_no_queue():
    gate = asyncio.Event()

    async def wait(o, session):
        if o.id == 0:
            await gate.wait()
        await answer_at_once(o, session)

    scene = Scene(wait, reply_deadline_s=5.0, max_awaited=3)
    with scene.running() as link:
        for id in range(20):
            scene.submit(id)
            until(lambda: link.stats.observations == min(id + 1, 3))  # noqa: B023
        link.reset("1", "hit the red mole")  # is not held up
        for id in (20, 21):
            scene.submit(id, step=0)
        scene.loop.call_soon_threadsafe(gate.set)
        until(lambda: any(p.observation_id == 21 for p in link.poll(0)))
        assert [o.id for o in scene.sent()] == [0, 1, 2, 21]
    assert (link.stats.replaced, link.stats.withdrawn) == (17, 1)
    balance(link.stats)


def test_a_server_that_leaves_is_sent_nothing_more_and_left_when_it_has_answered():
    async def leave(o, session):
        if o.id == 0:
            await session.send(Notice(NoticeKind.DRAIN, "the server is about to leave"))
            await asyncio.sleep(0.1)
        await answer_at_once(o, session)

    scene = Scene(leave)
    with scene.running() as link:
        scene.submit(0)
        until(lambda: link.state is LinkState.DRAINING)
        scene.submit(1)
        assert one_reply(link)[0].observation_id == 0
        assert one_reply(link)[0].observation_id == 1
        kinds = [type(m) for m in scene.servicer.received]
        assert kinds == [Open, Observation, Open, Observation]
    stats = link.stats
    assert (stats.lost, stats.refused, stats.reopens) == (0, 0, 1)
    balance(stats)


def test_a_pause_of_this_process_is_not_taken_for_silence_of_the_server():
    async def slow(o, session):
        await asyncio.sleep(0.1)
        await answer_at_once(o, session)

    scene = Scene(slow)
    with scene.running() as link:
        scene.submit(0)
        until(scene.sent)
        link._call(lambda: time.sleep(0.5))
        one_reply(link)
        assert link.stats.reply_timeouts == 0


def test_a_slow_network_is_found_out_at_the_first_opening():
    scene = Scene(connect_timeout_s=0.05, reply_deadline_s=1.0)
    with FakeServer(scene.servicer) as server, Proxy(f"127.0.0.1:{server.port}") as proxy:
        proxy.delay(50)
        with GrpcLink(
            proxy.address,
            ROBOT,
            robot_id="a",
            prompt="p",
            config=scene.config,
            on_event=scene.events.append,
        ) as link:
            assert link.stats.failed_attempts >= 1
            assert "no connection within 0.05 s" in scene.events[0].given
            link.submit(observation(deadline_ns=LONG))
            one_reply(link)


def test_one_outage_is_told_once_and_not_with_each_attempt():
    scene = Scene()
    with scene.running() as link:
        scene.exchange(0)
        scene.proxy.blackhole()
        until(lambda: link.stats.failed_attempts >= 2)
        scene.proxy.restore()
        until(lambda: link.state is LinkState.STREAMING)
        assert len({event.given for event in scene.events}) == len(scene.events)
