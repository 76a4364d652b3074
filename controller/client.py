"""The robot's end of the wire: a link whose calls never wait for the network."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from random import Random
from types import TracebackType
from typing import Self

import grpc

from controller.bounds import MAX_PROMPT_CHARS, check_text
from controller.client_session import SessionRunner
from controller.client_types import Event, LinkConfig, LinkStats
from controller.codec import check_observation, decode_description, encode_client
from controller.errors import ErrorCode, OnsetError
from controller.link_state import LinkState, LinkStatus, StateKeeper
from controller.mailbox import Mailbox
from controller.messages import Description, Open, Opened
from controller.short_slices import shorten_slices
from controller.transport import CLIENT_OPTIONS
from controller.types import ActionSlice, Observation, RobotSpec
from onset.v1 import policy_pb2 as pb
from onset.v1 import policy_pb2_grpc

_log = logging.getLogger(__name__)
_EVENTS_KEPT = 64
_STOP_S = 1.0


def describe(address: str, timeout_s: float = 5.0) -> Description:
    """Asks a server what it serves. Waits for the network.

    Args:
        address: ``host:port``.
        timeout_s: Longest wait, also for a server that is just starting [s].

    Raises:
        OnsetError: UNAVAILABLE when there is no answer; otherwise the reply is not allowed.
    """
    with grpc.insecure_channel(address, options=CLIENT_OPTIONS) as channel:
        stub = policy_pb2_grpc.PolicyServiceStub(channel)
        try:
            reply = stub.Describe(pb.DescribeRequest(), timeout=timeout_s, wait_for_ready=True)
        except grpc.RpcError as error:
            reason = error.code().name.lower() if isinstance(error, grpc.Call) else error
            raise OnsetError(
                ErrorCode.UNAVAILABLE,
                "address",
                f"{address}: {reason}",
                f"a policy server that answers within {timeout_s} s",
            ) from error
    return decode_description(reply)


class GrpcLink:
    """A ``PolicyLink`` and ``EpisodicLink`` over gRPC; a context manager.

    A thread of its own runs the stream. A lost stream is opened again with the same robot and
    episode; the server may be another one. Observations that were on their way are lost with it,
    and counted; the newest is sent again while its deadline lasts.
    """

    def __init__(
        self,
        address: str,
        robot: RobotSpec,
        *,
        robot_id: str,
        prompt: str,
        episode: str = "0",
        strategy: str = "naive",
        config: LinkConfig | None = None,
        on_event: Callable[[Event], None] | None = None,
        on_state: Callable[[LinkStatus], None] | None = None,
        random: Random | None = None,
    ) -> None:
        """Makes a link that is not open yet.

        Args:
            address: ``host:port``.
            robot: What the session is opened with.
            robot_id: Names one robot of a fleet.
            prompt: The instruction of the first episode.
            episode: Names the first episode.
            strategy: How chunks are made and joined.
            config: Deadlines and waits.
            on_event: Is told of notices, errors and lost sessions, on the network's thread; it
                must return soon and not raise. Without it they are logged.
            on_state: Is told of each change of state, on the network's thread, likewise.
            random: Draws the waits between attempts; by default one that no one else shares.

        Raises:
            OnsetError: A name, prompt or size is not allowed.
        """
        opening = Open(robot_id, robot, prompt, episode, strategy)
        encode_client(opening, robot)
        self._address = address
        self._opening = opening
        self._config = config or LinkConfig()
        self._callback = on_event
        self._mailbox = Mailbox(episode, prompt)
        self._stats = LinkStats()
        self._states = StateKeeper(self._on_status)
        self._on_state = on_state
        self._random = random or Random()
        self._events: deque[Event] = deque(maxlen=_EVENTS_KEPT)
        self._opened: Opened | None = None
        self._error: OnsetError | None = None
        self._settled = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._runner: SessionRunner | None = None
        self._task: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._run, name="onset-link", daemon=True)

    def __enter__(self) -> Self:
        """Opens the session and waits for Opened.

        Raises:
            OnsetError: The server refuses, or there is none within ``open_timeout_s``.
        """
        self._thread.start()
        if not self._settled.wait(self._config.open_timeout_s):
            self.close()
            reason = str(self._events[-1]) if self._events else "no answer"
            raise OnsetError(
                ErrorCode.UNAVAILABLE,
                "address",
                f"{self._address}: {reason}",
                f"a policy server that opens within {self._config.open_timeout_s} s",
                fatal=True,
            )
        if self._error is not None:
            self.close()
        self.raise_for_error()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _run(self) -> None:
        shorten_slices()  # before gRPC begins its threads
        asyncio.run(self._main())

    async def _main(self) -> None:
        self._runner = SessionRunner(
            self._address,
            self._opening,
            self._mailbox,
            self._config,
            self._stats,
            self._states,
            self._random,
            self._on_opened,
            self._on_event,
        )
        self._task = asyncio.create_task(self._runner.run())
        self._loop = asyncio.get_running_loop()
        # In force until it ends in good order, so that no end of this thread goes unnoticed.
        error: OnsetError | None = OnsetError(
            ErrorCode.INTERNAL, "link", "the network's thread ended", "a running link", fatal=True
        )
        try:
            await self._task
            error = None
        except asyncio.CancelledError:
            error = None
        except OnsetError as fatal:
            error = fatal
        finally:
            self._error = error
            self._stats.withdrawn += self._mailbox.end()
            self._states.enter(LinkState.CLOSED, "closed" if error is None else str(error))
            self._settled.set()

    def _on_status(self, status: LinkStatus) -> None:
        _log.info("link to %s: %s (%s)", self._address, status.state, status.reason)
        if self._on_state is not None:
            self._on_state(status)

    def _on_opened(self, opened: Opened) -> None:
        self._opened = opened
        self._settled.set()

    def _on_event(self, event: Event) -> None:
        self._events.append(event)
        if self._callback is None:
            _log.warning("%s", event)
        else:
            self._callback(event)

    def close(self) -> None:
        """Says Close, waits for the end of the stream up to a second, and stops the thread."""
        if not self._thread.is_alive():
            self._states.enter(LinkState.CLOSED, "closed")
            return
        self._call(self._stop)
        self._thread.join()

    def _stop(self) -> None:
        if self._runner is not None and self._task is not None:
            self._runner.close()
            asyncio.get_running_loop().call_later(_STOP_S, self._task.cancel)

    def _call(self, function: Callable[[], None]) -> None:
        """Runs a function on the network's thread, where that still runs."""
        if self._loop is not None and not self._loop.is_closed():
            try:
                self._loop.call_soon_threadsafe(function)
            except RuntimeError:  # it was closed in between: nothing is left to be told
                _log.debug("the link ended before it could be told")

    def _demand_open(self) -> SessionRunner:
        self.raise_for_error()
        if self._runner is None or not self._thread.is_alive():
            raise OnsetError(ErrorCode.NOT_OPEN, "link", "not open", "use inside a with block")
        return self._runner

    def submit(self, observation: Observation) -> None:
        """Hands over an observation; an unsent older one is replaced.

        It is dropped when its ``deadline_ns`` has passed since this call before it could be sent.

        Raises:
            OnsetError: The observation is not allowed; or, fatal, the session has ended.
        """
        runner = self._demand_open()
        check_observation(observation, self._opening.robot)
        self._stats.submitted += 1
        self._stats.replaced += self._mailbox.put(observation)
        self._call(runner.wake)

    def poll(self, now_ns: int) -> list[ActionSlice]:
        """Returns the slices that have arrived since the last call, in order of arrival.

        Raises:
            OnsetError: The session has ended with a fatal error and no slices are left.
        """
        pieces = self._mailbox.drain()
        if not pieces:
            self.raise_for_error()
        return pieces

    def wait(self, timeout_s: float) -> None:
        """Waits until slices have arrived, the session has ended, or a timeout.

        For programs without a clock of their own; a control loop polls and never waits.

        Args:
            timeout_s: Longest wait [s].
        """
        self._mailbox.wait(timeout_s)

    def reset(self, episode: str, prompt: str) -> None:
        """Begins a new episode; what was not sent or not polled is dropped.

        Raises:
            OnsetError: A text is not allowed; or, fatal, the session has ended.
        """
        runner = self._demand_open()
        check_text("reset.episode", episode)
        check_text("reset.prompt", prompt, MAX_PROMPT_CHARS)
        self._stats.withdrawn += self._mailbox.put_reset(episode, prompt)
        self._call(runner.wake)

    def raise_for_error(self) -> None:
        """Raises what ended the session.

        Raises:
            OnsetError: The fatal error.
        """
        if self._error is not None:
            error = self._error
            # A new one each time: a raised exception gathers traces.
            raise OnsetError(
                error.code,
                error.field,
                error.given,
                error.allowed,
                fatal=True,
                observation_id=error.observation_id,
            )

    @property
    def opened(self) -> Opened:
        """What was agreed when the session was last opened.

        Raises:
            OnsetError: NOT_OPEN before that.
        """
        if self._opened is None:
            raise OnsetError(ErrorCode.NOT_OPEN, "link", "not open", "use inside a with block")
        return self._opened

    @property
    def state(self) -> LinkState:
        """What the link is doing. Never waits; from any thread."""
        return self._states.state

    @property
    def status(self) -> LinkStatus:
        """What the link is doing, since when, and why. Never waits; from any thread."""
        return self._states.status

    @property
    def stats(self) -> LinkStats:
        """A snapshot of the counts."""
        return replace(self._stats)

    @property
    def events(self) -> list[Event]:
        """The newest notices, errors and lost sessions, oldest first."""
        return list(self._events)
