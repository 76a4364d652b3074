"""One gRPC stream from Open to its end, and the reopening of lost ones. Runs in asyncio.

What an observation meets when its session is lost::

    mailbox --take--> sending --> outstanding --final slice--> answered
       ^                |             |
       |                +--- lost ----+   each one is counted as lost
       |                        |
       +------ put back --------+   the newest, once, if nothing was heard of it and no newer waits;
                                    the next session sends it at once, or drops it as expired

The server needs nothing else to resume: Open carries the episode and the prompt in force, each
observation its step and committed actions. The old stream is over before a new one begins, so that
no slice is taken from both.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import NoReturn

import grpc
import grpc.aio

from controller.client_backoff import Backoff, Patience
from controller.client_call import Lost, check_opened, guard
from controller.client_ledger import Ledger
from controller.client_types import Event, LinkConfig, LinkStats
from controller.codec import decode_server, encode_client
from controller.errors import ErrorCode, OnsetError
from controller.link_state import LinkState, StateKeeper
from controller.mailbox import Letter, Mailbox
from controller.messages import Close, Notice, NoticeKind, Open, Opened, Reset, ServerMessage
from controller.shared_frames import SharedFramesWriter, offer_frames
from controller.spread import helpers_for
from controller.transport import CLIENT_OPTIONS
from controller.types import ActionSlice, RobotSpec
from onset.v1 import policy_pb2 as pb
from onset.v1 import policy_pb2_grpc

__all__ = ["Event", "LinkConfig", "LinkStats", "SessionRunner"]

_CLOSE_GRACE_S = 0.5
_LOOKS = 5  # at the silence, within the shortest time that matters


class SessionRunner:
    """Keeps a session open until it is told to close or meets a fatal error."""

    def __init__(
        self,
        address: str,
        opening: Open,
        mailbox: Mailbox,
        config: LinkConfig,
        stats: LinkStats,
        states: StateKeeper,
        random: Random,
        on_opened: Callable[[Opened], None],
        on_event: Callable[[Event], None],
    ) -> None:
        self._address = address
        self._opening = opening
        self._mailbox = mailbox
        self._config = config
        self._stats = stats
        self._states = states
        self._on_opened = on_opened
        self._on_event = on_event
        self._wake = asyncio.Event()
        self._closing = asyncio.Event()
        self._backoff = Backoff(config.min_backoff_s, config.max_backoff_s, random)
        self._patience = Patience(config.reply_deadline_s)
        self._open_patience = Patience(config.connect_timeout_s)
        self._connect_s = config.connect_timeout_s
        self._ledger = Ledger(stats)
        self._helpers = helpers_for(opening.robot)
        self._shared: SharedFramesWriter | None = None
        self._writing_since: float | None = None
        self._leaving = False  # the server has said that it will leave
        self._opened_before = False
        self._told = ""

    def wake(self) -> None:
        """Something is in the mailbox. To be called in the event loop."""
        self._wake.set()

    def close(self) -> None:
        """Ends the session in good order. To be called in the event loop."""
        self._states.enter(LinkState.DRAINING, "closed by the robot")
        self._closing.set()
        self._wake.set()

    async def run(self) -> None:
        """Opens and reopens until closed.

        Raises:
            OnsetError: A fatal error of the server, or a status that reopening cannot mend.
        """
        with self._helpers:
            while not self._closing.is_set():
                try:
                    await self._session()
                except Lost as lost:
                    if self._closing.is_set():
                        return
                    self._states.enter(LinkState.CONNECTING, str(lost))
                    self._tell_lost(str(lost))
                finally:
                    self._settle()
                await self._closes_within(self._backoff.next_s())

    def _tell_lost(self, reason: str) -> None:
        """Says why a session or an attempt was lost; in one outage, each reason once."""
        if reason != self._told:
            self._told = reason
            self._on_event(OnsetError(ErrorCode.UNAVAILABLE, "session", reason, "a live session"))

    def _settle(self) -> None:
        """Accounts for what was outstanding; the newest of it may be sent again."""
        newest = self._ledger.end()
        if newest is not None and not self._closing.is_set():
            self._put_back(newest)

    def _put_back(self, letter: Letter) -> None:
        self._stats.resent += self._mailbox.put_back(letter)

    async def _closes_within(self, wait_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._closing.wait(), wait_s)

    async def _session(self) -> None:
        try:
            if self._config.shared_frames:
                self._shared = offer_frames(self._robot, self._config.max_awaited)
            await self._connected()
        finally:
            self._drop_shared()

    def _drop_shared(self) -> None:
        if self._shared is not None:
            self._shared.close()
            self._shared = None

    async def _connected(self) -> None:
        async with grpc.aio.insecure_channel(self._address, options=CLIENT_OPTIONS) as channel:
            call = policy_pb2_grpc.PolicyServiceStub(channel).Session()
            try:
                try:
                    await self._open(channel, call)
                except Lost:
                    self._stats.failed_attempts += 1
                    self._patience.excuse()
                    raise
                await self._exchange(call)
            finally:
                call.cancel()

    async def _open(self, channel: grpc.aio.Channel, call: grpc.aio.StreamStreamCall) -> None:
        """Opens the session.

        A connection comes soon or not at all; a server that has one and is busy is given longer.
        """
        episode, prompt = self._mailbox.take_opening()
        opening = replace(
            self._opening,
            episode=episode,
            prompt=prompt,
            shared_frames="" if self._shared is None else self._shared.name,
        )
        asking = asyncio.create_task(self._ask(call, opening))
        closed = asyncio.create_task(self._closing.wait())
        ends = {asking, closed}
        once = {"return_when": asyncio.FIRST_COMPLETED}
        try:
            done, _ = await asyncio.wait(ends, timeout=self._connect_s, **once)
            if not done and channel.get_state() is not grpc.ChannelConnectivity.READY:
                waited_s = self._connect_s
                if not self._opened_before:
                    self._connect_s = min(2 * waited_s, self._config.open_timeout_s)
                raise Lost(f"no connection within {waited_s} s")
            if not done:
                await asyncio.wait(ends, timeout=self._open_patience.deadline_s, **once)
            if closed.done():
                raise Lost("closed")
            if not asking.done():
                waited_s = self._open_patience.deadline_s
                self._open_patience.missed()
                raise Lost(f"no opened within {waited_s} s of connecting")
            reply = asking.result()
        finally:
            for task in ends:
                task.cancel()
            await asyncio.gather(*ends, return_exceptions=True)
        if isinstance(reply, OnsetError):
            self._end_with(reply)
        if not isinstance(reply, Opened):
            raise OnsetError(
                ErrorCode.NOT_OPEN, "message", type(reply).__name__, "opened first", fatal=True
            )
        check_opened(reply, opening)
        if self._shared is not None:
            self._shared.forget_name()  # who shall have it open has
            if not (reply.shared_frames and self._shared.reserve()):
                self._drop_shared()
        self._stats.reopens += self._opened_before
        self._opened_before = True
        self._open_patience = Patience(self._config.connect_timeout_s)
        self._on_opened(reply)

    async def _ask(self, call: grpc.aio.StreamStreamCall, opening: Open) -> ServerMessage:
        await self._send(call, encode_client(opening, opening.robot))
        return await self._receive(call)

    async def _exchange(self, call: grpc.aio.StreamStreamCall) -> None:
        """Sends and receives until one side ends the session."""
        self._ledger.begin(_now_s())
        self._leaving, self._writing_since, self._told = False, None, ""
        if not self._closing.is_set():
            self._states.enter(LinkState.STREAMING, "opened")
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
        with contextlib.suppress(Lost, OnsetError):
            while not self._closing.is_set():
                await self._wake.wait()
                self._wake.clear()
                # A server that leaves would refuse it; the next one is given it instead.
                while not (self._leaving or self._closing.is_set()):
                    message = self._mailbox.take(resets_only=self._full)
                    if message is None:
                        break
                    await self._send_message(call, message)
            await self._send(call, encode_client(Close(), self._robot))
            await guard(call, call.done_writing())

    async def _send_message(self, call: grpc.aio.StreamStreamCall, message: Reset | Letter) -> None:
        if isinstance(message, Reset):
            await self._send(call, encode_client(message, self._robot))
            return
        now_ns = time.monotonic_ns()
        if message.expired(now_ns):
            self._stats.expired += 1
            self._mailbox.keep_prompt(message)
            return
        try:
            wire = encode_client(
                message.outgoing(now_ns),
                self._robot,
                checked=True,
                helpers=self._helpers,
                shared=self._shared,
            )
        except OnsetError as error:
            self._stats.errors += 1
            self._stats.unsendable += 1
            self._mailbox.keep_prompt(message)
            self._on_event(error)
            return
        if self._shared is not None:
            self._stats.bytes_shared += self._shared.size
        self._ledger.sending(message, _now_s())
        await self._send(call, wire)

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
            finally:
                self._ledger.heard(_now_s())
            if self._states.state is LinkState.STALE:
                self._states.enter(LinkState.STREAMING, "heard from the server")
            was_full = self._full
            self._take_in(message)
            if was_full and not self._full:
                self._wake.set()

    def _take_in(self, message: ServerMessage) -> None:
        if isinstance(message, ActionSlice):
            self._take_slice(message)
        elif isinstance(message, Notice):
            self._stats.notices += 1
            if message.kind is NoticeKind.SUPERSEDED:
                self._ledger.superseded(message.observation_id)
            elif message.kind is NoticeKind.DRAIN:
                self._leaving = True
                self._states.enter(LinkState.DRAINING, message.message)
            self._on_event(message)
        elif isinstance(message, OnsetError):
            if message.fatal:
                self._end_with(message)
            self._stats.errors += 1
            letter = self._ledger.refused(message.observation_id)
            if letter is not None and self._leaving and message.code is ErrorCode.UNAVAILABLE:
                self._put_back(letter)
            self._on_event(message)
        else:
            self._on_opened(message)

    def _take_slice(self, piece: ActionSlice) -> None:
        self._stats.slices += 1
        if not self._ledger.asked(piece.observation_id):
            self._stats.strays += 1
            return
        took_s = self._ledger.answered(piece, _now_s())
        if took_s is not None:
            self._patience.answered(took_s)
        self._backoff.reset()
        self._mailbox.deliver(piece)

    async def _watch(self) -> None:
        """Ends a session whose server is silent, or that does not end when it is closed."""
        config = self._config
        look_s = min(config.stale_after_s, config.reply_deadline_s) / _LOOKS
        while not self._closing.is_set():
            began_s = _now_s()
            await self._closes_within(look_s)
            now_s = _now_s()
            # Time in which this very thread could not run is no silence of the server.
            if (pause_s := now_s - began_s - look_s) > look_s:
                self._ledger.excuse(pause_s)
            self._check_silence(now_s)
        await asyncio.sleep(_CLOSE_GRACE_S)

    def _check_silence(self, now_s: float) -> None:
        deadline_s = self._patience.deadline_s
        silence_s = self._ledger.silence_s(now_s)
        blocked = self._writing_since is not None and now_s - self._writing_since > deadline_s
        if blocked or silence_s > deadline_s:
            self._stats.reply_timeouts += 1
            self._patience.missed()
            what = "nothing could be sent" if blocked else "no reply"
            raise Lost(f"{what} within {deadline_s:.3g} s")
        if self._leaving and not len(self._ledger):
            raise Lost("the server is leaving")
        stale_s = max(self._config.stale_after_s, deadline_s / 2)
        if silence_s > stale_s and self._states.state is LinkState.STREAMING:
            self._states.enter(LinkState.STALE, f"no reply within {stale_s:.3g} s")

    @property
    def _full(self) -> bool:
        return self._ledger.awaited >= self._config.max_awaited

    @property
    def _robot(self) -> RobotSpec:
        return self._opening.robot

    async def _send(self, call: grpc.aio.StreamStreamCall, wire: pb.ClientMessage) -> None:
        self._writing_since = _now_s()
        await guard(call, call.write(wire))
        self._writing_since = None
        self._stats.bytes_up += wire.ByteSize()

    async def _receive(self, call: grpc.aio.StreamStreamCall) -> ServerMessage:
        message = await guard(call, call.read())
        if message is None:  # what gRPC makes of bytes that are no protobuf
            raise OnsetError(ErrorCode.BAD_VALUE, "message", "undecodable bytes", "ServerMessage")
        if not isinstance(message, pb.ServerMessage):  # gRPC's mark for the end of a stream
            raise Lost("the server ended the stream")
        self._stats.bytes_down += message.ByteSize()
        return decode_server(message, self._robot)

    def _end_with(self, error: OnsetError) -> NoReturn:
        """Ends the session for an error of the server; some errors pass with time."""
        if error.code in (ErrorCode.UNAVAILABLE, ErrorCode.OVERLOADED):
            raise Lost(str(error))
        error.fatal = True
        raise error


def _now_s() -> float:
    return asyncio.get_running_loop().time()
