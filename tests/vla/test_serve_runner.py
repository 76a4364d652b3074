"""The model's thread: its own threads setting, its end, and its queue."""

import threading
from concurrent.futures import Future

import pytest
import torch

import vla.serve.runner as serve_runner
from controller.errors import OnsetError
from controller.types import ActionSlice
from tests.vla.helpers import PROMPTS, LocalServer, Wire, observation, until
from vla.engine import Engine
from vla.serve.metrics import Metrics
from vla.serve.runner import Runner, blank_observation
from vla.serve.scheduler import Request


def request(session: int, id: int) -> Request:
    return Request.of(session, observation(id), PROMPTS[0], 0, 0)


def running(make_engine, robot, threads: int = 1):
    """A started runner, its replies, and an event that tells of its end."""
    replies, ended = [], threading.Event()
    warm_up = blank_observation(robot), PROMPTS[0]
    runner = Runner(make_engine, warm_up, replies.append, ended.set, threads)
    return runner, runner.start(), replies, ended


def test_torch_has_the_threads_asked_for_on_the_models_thread(tiny):
    seen: Future[tuple[str, int]] = Future()

    class Curious:
        def stream(self, asked, prompt, strategy, memory=None):
            if not seen.done():
                seen.set_result((threading.current_thread().name, torch.get_num_threads()))
            yield from Engine(tiny).stream(asked, prompt, strategy, memory)

    runner, ready, _, ended = running(Curious, tiny.meta.robot, threads=2)
    ready.result(timeout=10)
    assert seen.result() == ("onset-model", 2)
    assert torch.get_num_threads() == 1  # this thread's own setting is as it was
    runner.stop()
    assert runner.join(5)
    assert ended.is_set()


def test_it_stops_after_the_request_that_it_is_at(tiny):
    begun, go = threading.Event(), threading.Event()

    class Slow:
        def __init__(self):
            self.engine = Engine(tiny)

        def stream(self, asked, prompt, strategy, memory=None):
            if asked.id:
                begun.set()
                go.wait(10)
            yield from self.engine.stream(asked, prompt, strategy, memory)

    runner, ready, replies, ended = running(Slow, tiny.meta.robot)
    ready.result(timeout=10)
    runner.submit(request(1, 1))
    assert begun.wait(10)
    runner.submit(request(2, 2))
    runner.stop()
    assert not ended.is_set()
    go.set()
    assert runner.join(5)
    assert {reply.request.observation.id for reply in replies} == {1}


@pytest.mark.parametrize("taken", [True, False])
def test_the_model_lets_its_first_actions_go_but_does_not_wait_for_ever(tiny, monkeypatch, taken):
    """Where nobody takes them, it goes on after its patience."""
    monkeypatch.setattr(serve_runner, "HAND_OVER_S", 10.0 if taken else 0.05)
    handed, went_on, replies = threading.Event(), [], []

    class Watched:
        def stream(self, asked, prompt, strategy, memory=None):
            for piece in Engine(tiny, schedule="has").stream(asked, prompt, strategy, memory):
                yield piece
                went_on.append((len(replies), handed.is_set()))

    def post(reply):
        if isinstance(reply.message, ActionSlice):  # and no word of its being late
            replies.append(reply)
        if reply.handed is not None and taken:
            threading.Timer(0.05, lambda: (handed.set(), reply.handed.put(None))).start()

    warm_up = blank_observation(tiny.meta.robot), PROMPTS[0]
    runner = Runner(Watched, warm_up, post, lambda: None)
    runner.start().result(timeout=10)
    went_on.clear()
    runner.submit(request(1, 1))
    until(lambda: replies and replies[-1].message.final)
    runner.stop()
    assert runner.join(5)
    assert len(replies) > 1
    assert went_on[0] == (1, taken)
    assert [reply.handed is not None for reply in replies] == [True] + [False] * (len(replies) - 1)


def test_a_dropped_request_is_never_begun(tiny):
    runner, ready, replies, _ = running(lambda: Engine(tiny), tiny.meta.robot)
    ready.result(timeout=10)
    assert runner.drop(1) is None
    runner.submit(request(1, 1))
    until(lambda: replies)
    assert runner.drop(1) is None
    runner.stop()
    assert runner.join(5)


def test_a_thread_that_dies_in_its_warm_up_says_so(tiny, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)

    def broken():
        raise LookupError("a bug")

    _, ready, _, ended = running(broken, tiny.meta.robot)
    with pytest.raises(OnsetError, match="its thread ended"):
        ready.result(timeout=10)
    assert ended.wait(5)


def test_a_bug_that_ends_the_thread_ends_the_server_and_not_in_silence(tiny, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)

    class Buggy:
        def __init__(self):
            self.engine = Engine(tiny)

        def stream(self, asked, prompt, strategy, memory=None):
            if asked.id == 9:
                raise LookupError("a bug")
            yield from self.engine.stream(asked, prompt, strategy, memory)

    with LocalServer(tiny, Buggy) as server, Wire(server.address) as wire:
        wire.open()
        wire.send(observation(8))
        assert wire.next().slice.observation_id == 8
        wire.send(observation(9))
        error = wire.error()
        # What a robot takes for a reason to open again, here or elsewhere.
        assert (error.code, error.fatal) == (13, True)
        assert wire.ended()
        assert server.server.failed.is_set()


def test_the_summary_names_every_count_and_duration():
    metrics = Metrics()
    assert metrics.summary().startswith("sessions 0, observations 0, superseded 0")
    assert metrics.quantiles_ms() == {}
    metrics.queue_ns.extend(n * 1_000_000 for n in range(101))
    metrics.inference_ns.append(2_000_000)
    assert metrics.quantiles_ms()["queue"] == pytest.approx((50.0, 99.0))
    assert "inference p50 2.0 ms p99 2.0 ms" in metrics.summary()
