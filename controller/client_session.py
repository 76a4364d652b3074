"""One gRPC stream from Open to its end, and the reopening of lost ones. Runs in asyncio."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import NoReturn

import grpc
import grpc.aio

from controller.codec import decode_server, encode_client
from controller.errors import ErrorCode, OnsetError
from controller.mailbox import Mailbox
from controller.messages import Close, Notice, Open, Opened, Reset, ServerMessage
from controller.transport import CLIENT_OPTIONS
from controller.types import ActionSlice, Observation
from onset.v1 import policy_pb2 as pb
from onset.v1 import policy_pb2_grpc

Event = Notice | OnsetError

_LOST_CODES = {
    grpc.StatusCode.OK,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
}
_MAX_PATIENCE = 32
_CLOSE_GRACE_S = 0.5


@dataclass(frozen=True)
class LinkConfig:
    """Settings of a link.

    Attributes:
        reply_deadline_s: A session that says nothing this long after an observation was sent is
            given up and opened again [s]. Each time doubles it until the next episode, to 32
            times at most, so that a slow model is not taken for a dead one for ever.
        open_timeout_s: Longest wait for Opened [s].
        min_backoff_s: Wait before the first reopening [s]; doubles up to ``max_backoff_s``.
        max_backoff_s: Longest wait between reopenings [s].
    """

    reply_deadline_s: float = 0.25
    open_timeout_s: float = 10.0
    min_backoff_s: float = 0.05
    max_backoff_s: float = 1.0


@dataclass
class LinkStats:
    """Counts since the link was made.

    Attributes:
        reopens: Sessions opened after the first one.
        reply_timeouts: Sessions given up because the server said nothing in time.
        observations: Observations sent.
        replaced: Observations replaced by a newer one before they were sent.
        slices: Slices received.
        notices: Notices received.
        errors: Errors received that the session survives.
        malformed: Messages received that do not decode.
        bytes_up: Bytes sent, without the transport's own.
        bytes_down: Bytes received, without the transport's own.
    """

    reopens: int = 0
    reply_timeouts: int = 0
    observations: int = 0
    replaced: int = 0
    slices: int = 0
    notices: int = 0
    errors: int = 0
    malformed: int = 0
    bytes_up: int = 0
    bytes_down: int = 0


class _Lost(Exception):
    """The session ended in a way that opening again may mend."""


class SessionRunner:
    """Keeps a session open until it is told to close or meets a fatal error."""

    def __init__(
        self,
        address: str,
        opening: Open,
        mailbox: Mailbox,
        config: LinkConfig,
        stats: LinkStats,
        on_opened: Callable[[Opened], None],
        on_event: Callable[[Event], None],
    ) -> None:
        self._address = address
        self._opening = opening
        self._mailbox = mailbox
        self._config = config
        self._stats = stats
        self._on_opened = on_opened
        self._on_event = on_event
        self._wake = asyncio.Event()
        self._closing = asyncio.Event()
        self._backoff_s = config.min_backoff_s
        self._patience = 1
        self._unanswered_since: float | None = None
        self._opened_before = False

    def wake(self) -> None:
        """Something is in the mailbox. To be called in the event loop."""
        self._wake.set()

    def close(self) -> None:
        """Ends the session in good order. To be called in the event loop."""
        self._closing.set()
        self._wake.set()

    async def run(self) -> None:
        """Opens and reopens until closed.

        Raises:
            OnsetError: A fatal error of the server, or a status that reopening cannot mend.
        """
        while not self._closing.is_set():
            try:
                await self._session()
            except _Lost as lost:
                if self._closing.is_set():
                    return
                self._on_event(OnsetError(ErrorCode.UNAVAILABLE, "session", lost, "a live session"))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), self._backoff_s)
            self._backoff_s = min(2 * self._backoff_s, self._config.max_backoff_s)

    async def _session(self) -> None:
        async with grpc.aio.insecure_channel(self._address, options=CLIENT_OPTIONS) as channel:
            call = policy_pb2_grpc.PolicyServiceStub(channel).Session()
            try:
                await self._open(call)
                await self._exchange(call)
            finally:
                call.cancel()

    async def _open(self, call: grpc.aio.StreamStreamCall) -> None:
        episode, prompt = self._mailbox.take_opening()
        opening = replace(self._opening, episode=episode, prompt=prompt)
        try:
            async with asyncio.timeout(self._config.open_timeout_s):
                await self._send(call, encode_client(opening, opening.robot))
                reply = await self._receive(call)
        except TimeoutError as error:
            raise _Lost(f"no opened within {self._config.open_timeout_s} s") from error
        if isinstance(reply, OnsetError):
            self._end_with(reply)
        if not isinstance(reply, Opened):
            raise OnsetError(
                ErrorCode.NOT_OPEN, "message", type(reply).__name__, "opened first", fatal=True
            )
        _check_opened(reply, opening)
        self._stats.reopens += self._opened_before
        self._opened_before = True
        self._on_opened(reply)

    async def _exchange(self, call: grpc.aio.StreamStreamCall) -> None:
        """Sends and receives until one side ends the session."""
        self._unanswered_since = None
        self._wake.set()
        writer = asyncio.create_task(self._write(call))
        enders = {asyncio.create_task(self._read(call)), asyncio.create_task(self._watch())}
        running = {writer, *enders}
        try:
            while enders <= running:
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _write(self, call: grpc.aio.StreamStreamCall) -> None:
        # An end of the call is left to the reader, which sees it after the last message.
        with contextlib.suppress(_Lost, OnsetError):
            while not self._closing.is_set():
                await self._wake.wait()
                self._wake.clear()
                while (message := self._mailbox.take()) is not None:
                    await self._send_message(call, message)
            await self._send(call, encode_client(Close(), self._opening.robot))
            await _guard(call, call.done_writing())

    async def _send_message(
        self, call: grpc.aio.StreamStreamCall, message: Reset | Observation
    ) -> None:
        try:
            wire = encode_client(message, self._opening.robot)
        except OnsetError as error:
            self._stats.errors += 1
            self._on_event(error)
            return
        if isinstance(message, Reset):
            self._patience = 1
        await self._send(call, wire)
        if isinstance(message, Observation):
            self._stats.observations += 1
            if self._unanswered_since is None:
                self._unanswered_since = asyncio.get_running_loop().time()

    async def _read(self, call: grpc.aio.StreamStreamCall) -> None:
        while True:
            try:
                message = await self._receive(call)
            except OnsetError as error:
                if error.fatal:
                    raise
                self._stats.malformed += 1
                self._on_event(error)
                continue
            self._unanswered_since = None
            if isinstance(message, ActionSlice):
                self._stats.slices += 1
                self._backoff_s = self._config.min_backoff_s
                self._mailbox.deliver(message)
            elif isinstance(message, Notice):
                self._stats.notices += 1
                self._on_event(message)
            elif isinstance(message, OnsetError):
                if message.fatal:
                    self._end_with(message)
                self._stats.errors += 1
                self._on_event(message)
            else:
                self._on_opened(message)

    async def _watch(self) -> None:
        """Ends a session whose server is silent, or that does not end when it is closed."""
        clock = asyncio.get_running_loop()
        while not self._closing.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), self._config.reply_deadline_s / 4)
            deadline_s = self._config.reply_deadline_s * self._patience
            since = self._unanswered_since
            if since is not None and clock.time() - since > deadline_s:
                self._stats.reply_timeouts += 1
                self._patience = min(2 * self._patience, _MAX_PATIENCE)
                raise _Lost(f"no reply within {deadline_s} s")
        await asyncio.sleep(_CLOSE_GRACE_S)

    async def _send(self, call: grpc.aio.StreamStreamCall, wire: pb.ClientMessage) -> None:
        await _guard(call, call.write(wire))
        self._stats.bytes_up += wire.ByteSize()

    async def _receive(self, call: grpc.aio.StreamStreamCall) -> ServerMessage:
        message = await _guard(call, call.read())
        if message is None:  # what gRPC makes of bytes that are no protobuf
            raise OnsetError(ErrorCode.BAD_VALUE, "message", "undecodable bytes", "ServerMessage")
        if not isinstance(message, pb.ServerMessage):  # gRPC's mark for the end of a stream
            raise _Lost("the server ended the stream")
        self._stats.bytes_down += message.ByteSize()
        return decode_server(message, self._opening.robot)

    def _end_with(self, error: OnsetError) -> NoReturn:
        """Ends the session for an error of the server; some errors pass with time."""
        if error.code in (ErrorCode.UNAVAILABLE, ErrorCode.OVERLOADED):
            raise _Lost(str(error))
        error.fatal = True
        raise error


async def _guard[T](call: grpc.aio.StreamStreamCall, operation: Awaitable[T]) -> T:
    """Awaits an operation on a call, and turns each way in which a call ends into one of two.

    Raises:
        _Lost: Opening again may mend it.
        OnsetError: It will not; fatal.
    """
    try:
        return await operation
    except grpc.aio.AioRpcError as error:
        code, details = error.code(), error.details()
    except asyncio.InvalidStateError:
        code, details = await call.code(), await call.details()
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise  # this task was cancelled, not the call
        code, details = grpc.StatusCode.CANCELLED, ""
    if code in _LOST_CODES:
        raise _Lost(f"{code.name}: {details}")
    raise OnsetError(
        ErrorCode.INTERNAL,
        "session.status",
        f"{code.name}: {details}",
        "a status that opening again may mend",
        fatal=True,
    )


def _check_opened(opened: Opened, opening: Open) -> None:
    robot = opening.robot
    pairs = (
        ("state_names", opened.state_names, robot.state_names),
        ("action_names", opened.action_names, robot.action_names),
        ("camera_names", opened.camera_names, tuple(c.name for c in robot.cameras)),
        ("period_ns", opened.period_ns, robot.period_ns),
        ("strategy", opened.strategy, opening.strategy),
    )
    for name, given, expected in pairs:
        if given != expected:
            raise OnsetError(ErrorCode.BAD_NAMES, f"opened.{name}", given, expected, fatal=True)
