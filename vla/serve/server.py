"""The policy server: gRPC in front, the model on a thread of its own.

    robot --> stream (event loop) --> decoding threads --> queue --> model's thread
      ^                                                                   |
      +-------------------- stream's outbox <-----------------------------+

Nothing of the model runs in the event loop, so that it always answers.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import signal
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from controller.codec import encode_description
from controller.errors import ErrorCode, OnsetError
from controller.messages import Description
from controller.short_slices import shorten_slices
from controller.transport import SERVER_OPTIONS
from controller.wakeful import Wakeful
from onset.v1 import policy_pb2 as pb
from vla.checkpoint import Checkpoint
from vla.serve.config import ServeConfig, check_config
from vla.serve.metrics import Metrics
from vla.serve.runner import Inference, Reply, Runner, blank_observation
from vla.serve.served import Served, as_served
from vla.serve.stream import Malformed, SessionStream, Shared

_log = logging.getLogger(__name__)

_SERVICE = pb.DESCRIPTOR.services_by_name["PolicyService"].full_name
_STOP_GRACE_S = 1.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# A terminal or a supervisor may tell a process and its group: that is one request, not two.
_SAME_SIGNAL_S = 0.2
# Without it a second server on the same port would silently get half of the robots.
_OPTIONS = (*SERVER_OPTIONS, ("grpc.so_reuseport", 0))


class PolicyServer:
    """Serves one policy. Its methods belong to one event loop.

    Attributes:
        config: Its settings.
        metrics: Its counts.
        failed: Set when the model's thread has ended without being asked to; every robot has
            been told then, and nothing is left to do but ``stop``.
    """

    def __init__(
        self,
        policy: Checkpoint | Served,
        config: ServeConfig | None = None,
        make_engine: Callable[[], Inference] | None = None,
    ) -> None:
        """Args:
        policy: The built-in one as its checkpoint, or another kind.
        config: Settings.
        make_engine: Called on the model's thread; the policy's own engine when None.

        Raises:
            OnsetError: A setting cannot be met.
        """
        self.config = config = config or ServeConfig()
        check_config(config)
        self.metrics = Metrics()
        self.failed = asyncio.Event()
        self._keys = itertools.count()
        self._stopping = False
        self._loop: asyncio.AbstractEventLoop | None = None
        served = as_served(policy)
        description = served.describe(config)
        encode_description(description)  # checks it
        self._runner = Runner(
            make_engine or (lambda: served.engine(config)),
            (blank_observation(description.robot), next(iter(description.prompts), "")),
            lambda reply: self._call(self._deliver, reply),
            lambda: self._call(self._model_ended),
            config.threads,
        )
        self._shared = Shared(
            description,
            served,
            self._runner,
            self.metrics,
            ThreadPoolExecutor(config.decode_threads, thread_name_prefix="onset-decode"),
            config.max_sessions,
            config.shared_frames,
            Wakeful() if config.keep_awake else None,
        )
        self._server: grpc.aio.Server | None = None

    @property
    def description(self) -> Description:
        return self._shared.description

    async def start(self) -> int:
        """Warms the model up, then listens; returns the port.

        Raises:
            OnsetError: The address is taken, or the model does not run.
            RuntimeError: From torch.
        """
        self._loop = asyncio.get_running_loop()
        await asyncio.wrap_future(self._runner.start())
        # For this thread and gRPC's, which follow; the model's has begun and has its usual ones.
        shorten_slices()
        self._server = grpc.aio.server(options=_OPTIONS)
        self._server.add_generic_rpc_handlers((_handlers(self),))
        host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
        address = f"{host}:{self.config.port}"
        try:
            port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            # A server that gRPC frees before it was stopped is named in a debug record, and a
            # handler that keeps the record keeps freed memory. Only one that ran can be stopped.
            await self._server.start()
            await self._end()
            raise OnsetError(
                ErrorCode.BAD_VALUE, "host, port", address, "an address that is free"
            ) from error
        await self._server.start()
        return port

    async def describe(
        self, request: pb.DescribeRequest, context: grpc.aio.ServicerContext
    ) -> pb.DescribeReply:
        """The unary call."""
        return encode_description(self.description)

    async def session(
        self,
        requests: AsyncIterator[pb.ClientMessage | Malformed],
        context: grpc.aio.ServicerContext,
    ) -> None:
        """One robot's stream."""
        key = next(self._keys)
        stream = self._shared.streams[key] = SessionStream(self._shared, key)
        await stream.run(requests, context)

    def _deliver(self, reply: Reply) -> None:
        stream = self._shared.streams.get(reply.request.session)
        if stream is not None:
            stream.deliver(reply)
        if reply.handed is not None:
            reply.handed.put(None)

    def _model_ended(self) -> None:
        if self._stopping:
            return
        _log.error("the model's thread has ended")
        self.failed.set()
        self._shared.draining = True
        for stream in self._streams():
            stream.end(
                OnsetError(ErrorCode.UNAVAILABLE, "model", "ended", "another server", fatal=True)
            )

    def _call[*Ts](self, function: Callable[[*Ts], object], *arguments: *Ts) -> None:
        """Runs a function in the event loop, where that still runs."""
        if self._loop is not None and not self._loop.is_closed():
            try:
                self._loop.call_soon_threadsafe(function, *arguments)
            except RuntimeError:  # it was closed in between: nobody is left to be told
                _log.debug("the event loop ended before the model's thread")

    async def drain(self) -> None:
        """Sends the robots elsewhere, answers what has been received, and stops."""
        self._shared.draining = True
        streams = self._streams()
        _log.info("draining %d sessions", len(streams))
        for stream in streams:
            stream.announce_drain()
        waits = [asyncio.create_task(stream.idle()) for stream in streams]
        if waits:
            _, late = await asyncio.wait(waits, timeout=self.config.drain_s)
            for task in late:
                task.cancel()
        await self.stop()

    async def stop(self) -> None:
        """Ends every stream, then the threads."""
        await self._end()
        _log.info("at the end: %s", self.metrics.summary())

    async def _end(self) -> None:
        self._stopping = self._shared.draining = True
        for stream in self._streams():
            stream.end()
        if self._server is not None:
            await self._server.stop(_STOP_GRACE_S)
        self._runner.stop()
        await asyncio.to_thread(self._runner.join, _STOP_GRACE_S)
        self._shared.decoders.shutdown(wait=False, cancel_futures=True)

    def _streams(self) -> list[SessionStream]:
        return list(self._shared.streams.values())


async def serve(
    policy: Checkpoint | Served,
    config: ServeConfig,
    on_ready: Callable[[str], None],
    make_engine: Callable[[], Inference] | None = None,
) -> bool:
    """Serves until SIGTERM or SIGINT, then drains. A second signal ends the process at once.

    Cancelled, it stops without waiting for answers.

    Args:
        policy: As ``PolicyServer``'s.
        config: Settings.
        on_ready: Is told ``host:port`` once robots can connect.
        make_engine: As ``PolicyServer``'s.

    Returns:
        Whether it ended because it was asked to; False when the model's thread failed.

    Raises:
        OnsetError: The server cannot start.
        RuntimeError: From torch.
    """
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()

    def restore() -> None:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)

    def leave() -> None:
        if not asked.is_set():
            asked.set()
            loop.call_later(_SAME_SIGNAL_S, restore)

    server = PolicyServer(policy, config, make_engine)
    port = await server.start()
    for number in _SIGNALS:
        loop.add_signal_handler(number, leave)
    host = f"[{config.host}]" if ":" in config.host else config.host
    reporter = asyncio.create_task(_report(server))
    ends = [asyncio.create_task(event.wait()) for event in (asked, server.failed)]
    try:
        on_ready(f"{host}:{port}")
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    finally:  # also where it is cancelled
        for task in (reporter, *ends):
            task.cancel()
        if asked.is_set():
            await server.drain()
        else:
            await server.stop()
    return asked.is_set()


async def _report(server: PolicyServer) -> None:
    while True:
        await asyncio.sleep(server.config.metrics_every_s)
        _log.info("%s", server.metrics.summary())


def _parse(data: bytes) -> pb.ClientMessage | Malformed:
    """Parses; for bytes that are no message gRPC itself would end the call with a bare status."""
    try:
        return pb.ClientMessage.FromString(data)
    except DecodeError:
        return Malformed(len(data))


def _handlers(server: PolicyServer) -> grpc.GenericRpcHandler:
    return grpc.method_handlers_generic_handler(
        _SERVICE,
        {
            "Describe": grpc.unary_unary_rpc_method_handler(
                server.describe,
                request_deserializer=pb.DescribeRequest.FromString,
                response_serializer=pb.DescribeReply.SerializeToString,
            ),
            "Session": grpc.stream_stream_rpc_method_handler(
                server.session,
                request_deserializer=_parse,
                response_serializer=pb.ServerMessage.SerializeToString,
            ),
        },
    )
