"""A server's life: robots refused, an address that is taken, how it ends."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import threading
from collections.abc import Iterator

import pytest

from controller.errors import OnsetError
from tests.vla.helpers import LocalServer, Wire, observation, until
from vla.serve.config import ServeConfig
from vla.serve.server import serve


def test_more_robots_than_allowed_are_refused_for_now(tiny):
    with LocalServer(tiny, max_sessions=1) as server, Wire(server.address) as first:
        first.open()
        with Wire(server.address) as second:
            refusal = second.open().error
            assert (refusal.code, refusal.fatal) == (12, True)
            assert second.ended()
        first.send(observation(0))
        assert first.next().slice.final


def test_a_port_that_is_taken_is_refused_in_words(server, tiny):
    with pytest.raises(OnsetError, match="bad_value: host, port: given 127.0.0.1"):
        LocalServer(tiny, port=server.port).__enter__()


class Texts(logging.Handler):
    """What is logged, as text: a record may refer to what is about to be freed."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@pytest.fixture
def grpc_says() -> Iterator[list[str]]:
    """What gRPC logs, which pytest keeps nothing of."""
    texts, logger = Texts(), logging.getLogger("grpc._cython.cygrpc")
    logger.addHandler(texts)
    logger.propagate = False
    logger.setLevel(logging.DEBUG)
    yield texts.texts
    logger.setLevel(logging.NOTSET)
    logger.propagate = True
    logger.removeHandler(texts)


def test_no_server_is_dropped_before_it_was_stopped(server, tiny, grpc_says):
    with pytest.raises(OnsetError):
        LocalServer(tiny, port=server.port).__enter__()
    with LocalServer(tiny):
        pass
    gc.collect()
    assert grpc_says
    assert not [text for text in grpc_says if "running server" in text]


def test_a_server_that_is_cancelled_stops(tiny, grpc_says):
    async def cancelled() -> str:
        ready = asyncio.get_running_loop().create_future()
        served = asyncio.create_task(serve(tiny, ServeConfig(), ready.set_result))
        address = await ready
        served.cancel()
        with pytest.raises(asyncio.CancelledError):
            await served
        return address

    before = set(threading.enumerate())
    host, port = asyncio.run(cancelled()).split(":")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), timeout=5)
    left = set(threading.enumerate()) - before
    assert not [thread.name for thread in left if thread.name.startswith("onset")]
    gc.collect()
    assert not [text for text in grpc_says if "running server" in text]


def test_draining_tells_answers_and_then_leaves(gated):
    server, gate = gated
    with Wire(server.address) as wire:
        wire.open()
        wire.send(observation(0))
        until(lambda: gate.begun == [0])
        drained = server.drain()
        assert wire.next().notice.kind == 2
        wire.send(observation(1))
        error = wire.error()
        assert (error.code, error.observation_id, error.fatal) == (13, 1, False)
        with Wire(server.address) as late:
            refusal = late.open().error
            assert (refusal.code, refusal.fatal) == (13, True)
        assert not drained.done()
        gate.permits.release(1)
        assert wire.next().slice.observation_id == 0
        assert wire.ended()
        drained.result(timeout=10)
