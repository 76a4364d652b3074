"""One robot's stream, from Open to its end. Lives in the event loop.

Frames are decoded off it, several at a time. Small ones are decoded here, which takes less time
than to tell another thread of them and to hear of it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import grpc
import grpc.aio

from controller.codec import decode_client, encode_server
from controller.errors import ErrorCode, OnsetError
from controller.messages import (
    Close,
    Description,
    Notice,
    NoticeKind,
    Open,
    Opened,
    Reset,
    ServerMessage,
)
from controller.types import ActionSlice, Observation
from controller.wakeful import Wakeful
from onset.v1 import policy_pb2 as pb
from vla.serve.decoding import decode, is_small
from vla.serve.metrics import Metrics
from vla.serve.outbox import Outbox
from vla.serve.runner import Reply, Runner
from vla.serve.scheduler import Request
from vla.serve.served import Served
from vla.serve.session import Session, check_strategy

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Malformed:
    """Bytes that are no ClientMessage.

    Attributes:
        size: How many [bytes].
    """

    size: int


@dataclass
class Shared:
    """What the streams of one server share.

    Attributes:
        description: What is served.
        served: The policy.
        runner: The model's thread.
        metrics: Counts.
        decoders: Threads that decode frames.
        max_sessions: How many robots at a time.
        shared_frames: Whether robots on this machine may send frames through shared memory.
        wakeful: Keeps processors awake while a session is open; None where they may sleep.
        draining: Whether the server is about to leave.
        streams: Open streams by key.
    """

    description: Description
    served: Served
    runner: Runner
    metrics: Metrics
    decoders: ThreadPoolExecutor
    max_sessions: int
    shared_frames: bool = True
    wakeful: Wakeful | None = None
    draining: bool = False
    streams: dict[int, SessionStream] = field(default_factory=dict)

    def sessions_changed(self) -> None:
        """A session has been opened or has ended."""
        if self.wakeful is not None:
            self.wakeful.keep(any(stream.is_open for stream in self.streams.values()))


class SessionStream:
    """Reads one robot's messages, queues its observations, writes its replies."""

    def __init__(self, shared: Shared, key: int) -> None:
        """Args:
        shared: What the streams share.
        key: Names this stream towards the runner.
        """
        self._shared = shared
        self._key = key
        self._session: Session | None = None
        self._outbox = Outbox()
        self._context: grpc.aio.ServicerContext | None = None
        self._writer: asyncio.Task[None] | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._ended = asyncio.Event()

    async def run(
        self,
        requests: AsyncIterator[pb.ClientMessage | Malformed],
        context: grpc.aio.ServicerContext,
    ) -> None:
        """Serves until the robot or the server ends the session; what is to be said is said."""
        self._context = context
        reader = asyncio.create_task(self._read(requests))
        ended = asyncio.create_task(self._ended.wait())
        try:
            await asyncio.wait((reader, ended), return_when=asyncio.FIRST_COMPLETED)
            self._leave()
            if self._writer is not None:
                await self._writer
            if reader.done():
                reader.result()
        finally:
            self._leave()
            begun = (reader, ended, self._writer)
            tasks: list[asyncio.Task] = [task for task in begun if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _leave(self) -> None:
        self._shared.streams.pop(self._key, None)
        if self._session is not None:
            self._shared.runner.forget(self._key)
            _log.info(
                "session %d of %s ends after %d observations",
                self._key,
                self._session.robot_id,
                self._session.observations,
            )
            self._session = None
            self._shared.sessions_changed()
        self._idle.set()

    async def _read(self, requests: AsyncIterator[pb.ClientMessage | Malformed]) -> None:
        async for wire in requests:
            received_ns = time.monotonic_ns()
            try:
                if not await self._handle(wire, received_ns):
                    return
            except OnsetError as error:
                error.fatal = error.fatal or self._session is None
                self._refuse(error)
                if error.fatal:
                    return
            await self._outbox.room()
        # The robot has no more to ask, but may still wait for answers.
        await self._idle.wait()

    async def _handle(self, wire: pb.ClientMessage | Malformed, received_ns: int) -> bool:
        """Acts on one message; says whether more may follow.

        Raises:
            OnsetError: The message is refused.
        """
        session = self._session
        if isinstance(wire, Malformed):
            code = ErrorCode.NOT_OPEN if session is None else ErrorCode.BAD_VALUE
            raise OnsetError(
                code, "message", f"{wire.size} undecodable bytes", "an encoded ClientMessage"
            )
        if session is None and wire.WhichOneof("message") is None:
            raise OnsetError(ErrorCode.NOT_OPEN, "message", "an empty message", "open")
        message = decode_client(wire, None if session is None else session.robot)
        if isinstance(message, Open):
            self._open(message)
        elif session is None or isinstance(message, Close):
            return False
        elif isinstance(message, Reset):
            self._reset(session, message)
        else:
            await self._observe(session, message, wire.observation, received_ns)
        return True

    def _open(self, opening: Open) -> None:
        shared, description = self._shared, self._shared.description
        if shared.draining:
            raise OnsetError(ErrorCode.UNAVAILABLE, "open", "a server about to leave", "another")
        others = sum(stream.is_open for stream in shared.streams.values())
        if others >= shared.max_sessions:
            raise OnsetError(
                ErrorCode.OVERLOADED, "open", f"{others} sessions", f"{shared.max_sessions}"
            )
        shared.served.check_robot(opening.robot)
        shared.served.check_prompt("open.prompt", opening.prompt)
        check_strategy(opening.strategy, description.strategies)
        self._session = session = Session.opened(opening, shared.shared_frames)
        shared.metrics.sessions += 1
        shared.sessions_changed()
        _log.info("session %d opened by %s", self._key, opening.robot_id)
        robot = opening.robot
        self._put(
            Opened(
                strategy=opening.strategy,
                prompt=opening.prompt,
                state_names=robot.state_names,
                action_names=robot.action_names,
                camera_names=tuple(c.name for c in robot.cameras),
                model=description.model,
                model_hash=description.model_hash,
                horizon=description.horizon,
                period_ns=robot.period_ns,
                expert_steps=description.expert_steps,
                min_delay=description.min_delay,
                max_delay=description.max_delay,
                shared_frames=session.shared is not None,
            )
        )

    @property
    def is_open(self) -> bool:
        """Whether its Open has been accepted and it has not ended."""
        return self._session is not None

    def _reset(self, session: Session, message: Reset) -> None:
        self._shared.served.check_prompt("reset.prompt", message.prompt)
        self._shared.runner.drop(self._key)
        for observation_id in sorted(session.reset(message)):
            self._supersede(observation_id, "a new episode has begun")
        self._idle.set()

    async def _observe(
        self, session: Session, observation: Observation, wire: pb.Observation, received_ns: int
    ) -> None:
        if self._shared.draining:
            raise OnsetError(
                ErrorCode.UNAVAILABLE,
                "observation",
                "a server about to leave",
                "another",
                observation_id=observation.id,
            )
        session.check(observation, self._shared.description)
        if observation.prompt is not None:
            self._check_prompt_of(observation.id, observation.prompt)
            # In force even if the frames turn out to be damaged: the robot says it only once.
            session.prompt = observation.prompt
        session.outstanding.add(observation.id)
        self._idle.clear()
        try:
            robot, decoders = session.robot, self._shared.decoders
            if is_small(wire, robot):
                frames, decode_ns = decode(wire, robot, shared=session.shared)
            else:
                frames, decode_ns = await asyncio.get_running_loop().run_in_executor(
                    decoders, decode, wire, robot, decoders, session.shared
                )
        except OnsetError:
            self._answered(session, observation.id)
            raise
        session.accept(observation)
        self._shared.metrics.observations += 1
        request = Request.of(
            self._key,
            replace(observation, frames=frames),
            session.prompt,
            received_ns,
            decode_ns,
            session.strategy,
            session.memory,
            session.episode,
        )
        old = self._shared.runner.submit(request)
        if old is not None:
            self._answered(session, old.observation.id)
            self._supersede(old.observation.id, f"by observation {observation.id}")

    def _check_prompt_of(self, observation_id: int, prompt: str) -> None:
        try:
            self._shared.served.check_prompt("observation.prompt", prompt)
        except OnsetError as error:
            error.observation_id = observation_id
            raise

    def deliver(self, reply: Reply) -> None:
        """Passes on what the model says of a request; what a reset made void is dropped."""
        session, message = self._session, reply.message
        observation_id = reply.request.observation.id
        if session is None or observation_id not in session.outstanding:
            return
        if isinstance(message, Notice):
            if session.may_tell_overload(time.monotonic_ns()):
                self._shared.metrics.overloads += 1
                self._put(message)
        elif isinstance(message, OnsetError):
            self._refuse(message)
            self._answered(session, observation_id)
        else:
            self._put(message, reply.request.received_ns)
            if message.final:
                self._answered(session, observation_id)

    def _answered(self, session: Session, observation_id: int) -> None:
        session.outstanding.discard(observation_id)
        if not session.outstanding:
            self._idle.set()

    def _supersede(self, observation_id: int, by: str) -> None:
        self._shared.metrics.superseded += 1
        self._put(Notice(NoticeKind.SUPERSEDED, f"replaced: {by}", observation_id))

    def _refuse(self, error: OnsetError) -> None:
        self._shared.metrics.errors += 1
        _log.info("session %d: %s", self._key, error)
        self._put(error)

    def announce_drain(self) -> None:
        """Tells the robot to open elsewhere."""
        if self.is_open:
            self._put(Notice(NoticeKind.DRAIN, "the server is about to leave"))

    async def idle(self) -> None:
        """Waits until every observation received is answered."""
        await self._idle.wait()

    def end(self, error: OnsetError | None = None) -> None:
        """Ends the stream, after the last message and the error given."""
        if error is not None:
            self._refuse(error)
        self._ended.set()

    def _put(self, message: ServerMessage, received_ns: int = 0) -> None:
        """Sends a message when those before it are sent; at once when there are none."""
        self._outbox.put(message, received_ns)
        if self._context is not None and (self._writer is None or self._writer.done()):
            # Begun here and not in the event loop's next turn, before which the model's thread
            # would take the interpreter and keep the first actions waiting.
            self._writer = asyncio.Task(
                self._write(self._context), loop=asyncio.get_running_loop(), eager_start=True
            )
            self._writer.add_done_callback(self._written)

    def _written(self, writer: asyncio.Task[None]) -> None:
        if writer.cancelled() or writer.exception() is not None:
            self._ended.set()  # nobody is left to write to

    async def _write(self, context: grpc.aio.ServicerContext) -> None:
        """Writes until the outbox is empty."""
        while (item := self._outbox.take()) is not None:
            await context.write(self._encode(*item))

    def _encode(self, message: ServerMessage, received_ns: int) -> pb.ServerMessage:
        session = self._session
        robot = self._shared.description.robot if session is None else session.robot
        try:
            encoded = encode_server(message, robot)
        except OnsetError as error:  # the server's own fault: say so in the message's place
            _log.error("session %d: %s", self._key, error)
            self._shared.metrics.errors += 1
            own = OnsetError(
                ErrorCode.INTERNAL,
                error.field,
                error.given,
                error.allowed,
                observation_id=error.observation_id,
            )
            return encode_server(own, None)
        if isinstance(message, ActionSlice):
            total_ns = time.monotonic_ns() - received_ns
            encoded.slice.timing.total_ns = total_ns
            self._shared.metrics.slice_sent(message.timing, total_ns, message.final)
        return encoded
