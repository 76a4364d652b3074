"""The server end to end, over a real socket, with the robot's own link."""

from dataclasses import replace

import numpy as np
import pytest

from controller.client import describe
from controller.errors import ErrorCode, OnsetError
from controller.messages import Close, Notice, NoticeKind, Reset
from controller.strategy import STRATEGIES
from controller.types import CacheFigures, FrameEncoding
from controller.wakeful import Wakeful
from tests.vla.helpers import (
    HORIZON,
    MS,
    PROMPTS,
    ROBOT,
    LocalServer,
    Wire,
    chunk_of,
    link_to,
    observation,
    robot_with,
    until,
)
from vla.engine import Engine
from vla.serve import config as serving

# What needs no training.
UNTRAINED = ("sync", "naive", "blend", "rtc", "rtc_identity")


def kinds(link) -> list[tuple[NoticeKind, int]]:
    return [(e.kind, e.observation_id) for e in link.events if isinstance(e, Notice)]


def test_describe_says_what_the_checkpoint_is(server, tiny):
    description = describe(server.address)
    assert description == serving.describe(tiny, serving.ServeConfig())
    assert description.model_hash == tiny.digest
    assert (description.prompts, description.strategies) == (PROMPTS, UNTRAINED)
    assert (description.robot, description.horizon) == (ROBOT, HORIZON)
    assert (description.expert_steps, description.max_delay) == (4, HORIZON - 1)


def test_actions_over_the_wire_are_the_engines_own(server, tiny):
    engine = Engine(tiny)
    with link_to(server) as link:
        for id in range(3):
            asked = observation(id)
            link.submit(asked)
            piece = chunk_of(link)
            assert piece.observation_id == id
            assert piece.start_step == asked.step
            np.testing.assert_array_equal(piece.steps, asked.step + np.arange(HORIZON))
            expected = engine.chunk(asked, PROMPTS[0])
            np.testing.assert_allclose(piece.actions, expected, atol=1e-6)
            assert piece.final


def test_timing_and_cache_figures_add_up(server):
    with link_to(server) as link:
        link.submit(observation(1))
        piece = chunk_of(link)
    timing, cache = piece.timing, piece.cache
    assert timing.expert_steps == 4
    assert min(timing.queue_ns, timing.decode_ns, timing.encode_ns, timing.expert_ns) > 0
    assert timing.decode_ns <= timing.queue_ns
    assert timing.total_ns >= timing.queue_ns + timing.encode_ns + timing.expert_ns
    assert cache == CacheFigures(rows=8, rows_computed=8, dense_reason="cache off")


def test_a_delay_that_leaves_less_than_is_executed_is_refused(tiny):
    with LocalServer(tiny, executed=6) as server, Wire(server.address) as wire:
        wire.open()
        wire.send(observation(0, delay=3))
        error = wire.error()
        assert (error.field, error.given, error.allowed) == ("observation.delay", "3", "0..2")
        wire.send(observation(1, delay=2))
        assert wire.next().slice.final


def test_a_prefix_session_continues_what_is_committed_and_a_naive_one_does_not(mean_flow):
    engine = Engine(mean_flow)
    given = np.array([[0.3, 0.5], [0.4, 0.6]], np.float32)
    asked = observation(1, delay=3, committed=given)
    with LocalServer(mean_flow) as server:
        description = describe(server.address)
        assert ("prefix" in description.strategies, description.max_delay) == (True, 4)
        for strategy, continued in (("naive", 0), ("prefix", 2)):
            with link_to(server, strategy=strategy) as link:
                link.submit(asked)
                piece = chunk_of(link)
            (expected,) = engine.stream(asked, PROMPTS[0], STRATEGIES[strategy])
            np.testing.assert_array_equal(piece.steps, expected.steps)
            np.testing.assert_allclose(piece.actions, expected.actions, atol=1e-6)
            assert len(piece.steps) == HORIZON - continued


def test_prefix_is_not_offered_by_a_policy_that_was_not_trained_for_it(server):
    with Wire(server.address) as wire:
        refusal = wire.open(strategy="prefix").error
    assert (refusal.code, refusal.fatal) == (10, True)
    assert (refusal.given, refusal.allowed) == ("'prefix'", str(list(UNTRAINED)))


@pytest.mark.parametrize("encoding", list(FrameEncoding))
def test_each_frame_encoding_reaches_the_model(server, tiny, encoding):
    asked = observation(4)
    with link_to(server, robot_with(encoding)) as link:
        link.submit(asked)
        piece = chunk_of(link)
    expected = Engine(tiny).chunk(asked, PROMPTS[0])
    lossless = encoding is not FrameEncoding.JPEG
    np.testing.assert_allclose(piece.actions, expected, atol=1e-6 if lossless else 0.05)
    other = Engine(tiny).chunk(replace(asked, frames=observation(5).frames), PROMPTS[0])
    assert np.abs(other - expected).max() > 1e-3  # the model does look


def test_the_prompt_in_force_is_that_of_open_then_of_observation_then_of_reset(server, tiny):
    engine = Engine(tiny)
    with link_to(server, prompt=PROMPTS[1]) as link:
        asked = [observation(0), observation(1, prompt=PROMPTS[0]), observation(2)]
        for item, prompt in zip(asked, (PROMPTS[1], PROMPTS[0], PROMPTS[0]), strict=True):
            link.submit(item)
            expected = engine.chunk(item, prompt)
            np.testing.assert_allclose(chunk_of(link).actions, expected, atol=1e-6)
        link.reset("e1", PROMPTS[1])
        again = observation(3, step=0)
        link.submit(again)
        np.testing.assert_allclose(
            chunk_of(link).actions, engine.chunk(again, PROMPTS[1]), atol=1e-6
        )
        assert link.stats.errors == 0


def test_sessions_at_once_never_see_each_others_replies(server, tiny):
    engine = Engine(tiny)
    links = [link_to(server, robot_id=f"arm-{i}", prompt=PROMPTS[i % 2]) for i in range(4)]
    try:
        for link in links:
            link.__enter__()
        for id in range(5):
            # The same id in each session, with other pixels and joints.
            asked = [observation(id, seed=100 * i + id) for i in range(len(links))]
            for link, item in zip(links, asked, strict=True):
                link.submit(item)
            for i, (link, item) in enumerate(zip(links, asked, strict=True)):
                expected = engine.chunk(item, PROMPTS[i % 2])
                np.testing.assert_allclose(chunk_of(link).actions, expected, atol=1e-6)
        assert all(link.poll(0) == [] for link in links)
    finally:
        for link in links:
            link.close()


def test_an_observation_that_waits_is_superseded_by_a_newer_one_and_told_so(gated):
    server, gate = gated
    with link_to(server) as link:
        link.submit(observation(0))
        until(lambda: gate.begun == [0])
        for id in (1, 2, 3):
            link.submit(observation(id))
            until(lambda id=id: server.metrics.observations == id + 1)
        until(lambda: len(kinds(link)) == 2)
        assert kinds(link) == [(NoticeKind.SUPERSEDED, 1), (NoticeKind.SUPERSEDED, 2)]
        gate.permits.release(2)
        pieces = []
        until(lambda: pieces.extend(link.poll(0)) or len(pieces) == 2)
        assert [piece.observation_id for piece in pieces] == [0, 3]
        assert gate.begun == [0, 3]
        assert server.metrics.superseded == 2


def test_the_robot_that_runs_dry_first_is_answered_first(gated):
    server, gate = gated
    with (
        link_to(server, robot_id="a") as a,
        link_to(server, robot_id="b") as b,
        link_to(server, robot_id="c") as c,
    ):
        a.submit(observation(10, deadline_ns=10_000 * MS))
        until(lambda: gate.begun == [10])
        b.submit(observation(11, deadline_ns=60_000 * MS))
        until(lambda: server.metrics.observations == 2)
        c.submit(observation(12, deadline_ns=20_000 * MS))
        until(lambda: server.metrics.observations == 3)
        gate.permits.release(3)
        chunk_of(b)
        assert gate.begun == [10, 12, 11]


def test_a_late_start_is_called_overload_once_and_still_answered(gated):
    server, gate = gated
    with link_to(server, robot_id="a") as a, link_to(server, robot_id="b") as b:
        a.submit(observation(0, deadline_ns=10_000 * MS))
        until(lambda: gate.begun == [0])
        b.submit(observation(1, deadline_ns=MS))
        until(lambda: server.metrics.observations == 2)
        gate.permits.release(2)
        assert chunk_of(b).observation_id == 1
        assert kinds(b) == [(NoticeKind.OVERLOAD, 1)]
        assert kinds(a) == []


def test_a_reset_voids_what_is_under_way_and_says_so(gated):
    server, gate = gated
    with Wire(server.address) as wire:
        wire.open()
        wire.send(observation(0, step=50))
        until(lambda: gate.begun == [0])
        wire.send(observation(1, step=51))
        until(lambda: server.metrics.observations == 2)
        wire.send(Reset("e1", PROMPTS[1]))
        told = [wire.next().notice for _ in range(2)]
        assert [notice.observation_id for notice in told] == [0, 1]
        wire.send(observation(2, step=0))
        gate.permits.release(2)
        # Nothing of the old episode comes after the reset.
        assert wire.next().slice.observation_id == 2
        assert gate.begun == [0, 2]


def test_a_fault_of_the_model_is_an_error_for_that_observation_only(tiny):
    class Faulty:
        def __init__(self):
            self.engine, self.calls = Engine(tiny), 0

        def stream(self, asked, prompt, strategy, memory=None):
            self.calls += 1
            if self.calls == 2:
                raise RuntimeError("expected scalar type Half")
            if self.calls == 3:
                raise OnsetError(ErrorCode.INTERNAL, "actions", "non-finite", "finite", fatal=True)
            yield from self.engine.stream(asked, prompt, strategy, memory)

    with LocalServer(tiny, Faulty) as server, Wire(server.address) as wire:
        wire.open()
        for id, given in ((0, "expected scalar type Half"), (1, "non-finite")):
            wire.send(observation(id))
            error = wire.error()
            assert (error.code, error.given) == (14, given)
            assert (error.fatal, error.observation_id) == (False, id)
        wire.send(observation(2))
        assert wire.next().slice.observation_id == 2
        assert server.metrics.errors == 2


def test_a_policy_that_does_not_run_never_opens_a_port(tiny):
    class Broken:
        def stream(self, asked, prompt, strategy, memory=None):
            raise RuntimeError("no kernel image")
            yield

    with pytest.raises(RuntimeError, match="no kernel image"):
        LocalServer(tiny, Broken).__enter__()


def test_close_ends_the_stream_and_half_close_waits_for_the_answers(server):
    with Wire(server.address) as wire:
        wire.open()
        wire.send(Close())
        assert wire.ended()
    with Wire(server.address) as wire:
        wire.open()
        wire.send(observation(0))
        wire.send(None)
        assert wire.next().slice.observation_id == 0
        assert wire.ended()


def test_a_robot_that_vanishes_leaves_nothing_behind(server):
    before = len(server.server._shared.streams)
    with Wire(server.address) as wire:
        wire.open()
        until(lambda: len(server.server._shared.streams) == before + 1)
    until(lambda: len(server.server._shared.streams) == before)


def test_a_robot_that_does_not_read_is_not_read_from(server):
    with Wire(server.address) as wire:
        wire.open()
        for _ in range(3000):
            wire.send(b"\xff\xff\xff")
        wire.send(observation(0))
        errors = [wire.error().code for _ in range(3000)]
        assert set(errors) == {11}
        assert wire.next().slice.observation_id == 0


@pytest.mark.parametrize("wanted", [True, False])
def test_processors_are_kept_awake_while_a_session_is_open(tiny, tmp_path, monkeypatch, wanted):
    device = tmp_path / "cpu_dma_latency"
    device.touch()
    kept = Wakeful(device)
    monkeypatch.setattr("vla.serve.server.Wakeful", lambda: kept)
    with LocalServer(tiny, keep_awake=wanted) as server:
        with link_to(server), link_to(server, robot_id="another"):
            assert kept.awake == wanted
        until(lambda: not kept.awake)
        with link_to(server):
            assert kept.awake == wanted
    assert not kept.awake


@pytest.mark.parametrize("inline", [True, False])
def test_several_compressed_frames_are_decoded_each_for_its_camera(tiny, monkeypatch, inline):
    monkeypatch.setattr("vla.serve.decoding._COMPRESSED_INLINE_BYTES", 10**9 if inline else 0)
    asked = [observation(number) for number in range(3)]
    robot = robot_with(FrameEncoding.PNG)
    with LocalServer(tiny) as server, link_to(server, robot) as link:
        for item in asked:
            link.submit(item)
            expected = Engine(tiny).chunk(item, PROMPTS[0])
            np.testing.assert_allclose(chunk_of(link).actions, expected, atol=1e-6)
