"""The model's thread: it alone touches the engine, and answers one request after the other."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from controller.errors import ErrorCode, OnsetError
from controller.messages import Notice, NoticeKind
from controller.strategy import STRATEGIES, Strategy
from controller.types import ActionSlice, CacheFigures, Observation, RobotSpec, Timing
from vla.cache.asked import Whose
from vla.chunking import ChunkMemory
from vla.finished import Finished
from vla.serve.scheduler import Request, Scheduler

_log = logging.getLogger(__name__)

# How long the model waits for its first actions to be on their way. They are after a few tenths of
# this; in a busy event loop they are not, and the model's time is worth more.
HAND_OVER_S = 0.001


class Inference(Protocol):
    """What the runner needs of an engine."""

    def stream(
        self,
        observation: Observation,
        prompt: str,
        strategy: Strategy,
        memory: ChunkMemory | None = None,
    ) -> Iterator[Finished]:
        """Runs one inference; yields actions as they ripen.

        Args:
            observation: What the robot sees.
            prompt: The instruction.
            strategy: What the chunk is conditioned on. Committed actions that it continues are not
                yielded.
            memory: Of the session.
        """
        ...


@runtime_checkable
class Caching(Protocol):
    """An engine that keeps image tokens of each session."""

    def using(self, whose: Whose) -> Inference:
        """The engine with one session's cache."""
        ...

    def settle(self, cancelled: Callable[[], bool] | None = None) -> None:
        """Slack time: readies caches for what comes next, until it is told to stop."""
        ...

    def forget(self, session: Hashable) -> None:
        """Drops what is kept of a session that has ended."""
        ...


@dataclass(frozen=True)
class Reply:
    """Something to tell a robot about its request.

    Attributes:
        request: What is answered.
        message: A slice, a notice or an error.
        handed: Is put something in once it has been passed on; None where nobody waits for it.
    """

    request: Request
    message: ActionSlice | Notice | OnsetError
    handed: queue.SimpleQueue[None] | None = None


class Runner:
    """Owns the engine and the queue before it.

    ``submit`` and ``drop`` may be called from any thread; both only exchange under a short lock.
    """

    def __init__(
        self,
        make_engine: Callable[[], Inference],
        warm_up: tuple[Observation, str],
        post: Callable[[Reply], None],
        on_end: Callable[[], None],
        threads: int = 1,
    ) -> None:
        """Makes a runner that is not started.

        Args:
            make_engine: Called on the model's thread.
            warm_up: An observation and an instruction to run before anything else.
            post: Takes each reply, on the model's thread; must not block.
            on_end: Called on the model's thread when it ends, for whatever reason.
            threads: Threads that torch may use for one operation.
        """
        self._make_engine = make_engine
        self._warm_up = warm_up
        self._post = post
        self._on_end = on_end
        self._threads = threads
        self._scheduler = Scheduler()
        self._lock = threading.Lock()
        # Rung once for every request put in, and to stop. A Condition would wake the thread too,
        # but does so in Python, which is slow where every microsecond is the robot's.
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._ended: queue.SimpleQueue[int] = queue.SimpleQueue()  # sessions
        self._stopping = False
        self._ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._main, name="onset-model", daemon=True)

    def start(self) -> Future[None]:
        """Starts the thread; the result comes once the warm-up has run.

        The future raises what the engine or the warm-up raised.
        """
        self._thread.start()
        return self._ready

    def submit(self, request: Request) -> Request | None:
        """Queues a request; returns the one of the same session that it replaces."""
        with self._lock:
            old = self._scheduler.put(request)
        self._bell.put(None)
        return old

    def drop(self, session: int) -> Request | None:
        """Takes back what a session has in the queue; what has begun goes on."""
        with self._lock:
            return self._scheduler.drop(session)

    def forget(self, session: int) -> None:
        """Drops a session that has ended, and what the engine keeps of it."""
        self.drop(session)
        self._ended.put(session)

    def stop(self) -> None:
        """Asks the thread to end after the request that it is at."""
        self._stopping = True
        self._bell.put(None)

    def join(self, timeout_s: float) -> bool:
        """Waits for the thread's end; says whether it came."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _main(self) -> None:
        try:
            # A thread does not inherit the number set in another one: without this line an
            # operation may take every core, and ten times as long for it.
            torch.set_num_threads(self._threads)
            engine = self._prepare()
            while engine is not None and (request := self._next()) is not None:
                self._answer(engine, request)
                if isinstance(engine, Caching):
                    self._settle(engine)
        finally:
            if not self._ready.done():
                self._ready.set_exception(
                    OnsetError(
                        ErrorCode.INTERNAL, "model", "its thread ended", "a policy that runs"
                    )
                )
            self._on_end()

    def _prepare(self) -> Inference | None:
        try:
            engine = self._make_engine()
            for _ in engine.stream(*self._warm_up, STRATEGIES["naive"]):
                pass
        except (OnsetError, RuntimeError) as error:
            self._ready.set_exception(error)
            return None
        self._ready.set_result(None)
        return engine

    def _next(self) -> Request | None:
        """The request that is due first; None once the thread is to end."""
        while True:
            self._bell.get()
            if self._stopping:
                return None
            with self._lock:
                request = self._scheduler.take()
            if request is not None:  # else it was replaced or dropped
                return request

    def _settle(self, engine: Caching) -> None:
        """Uses the time until the next request; that does not wait for more than a layer."""
        while not self._ended.empty():
            engine.forget(self._ended.get())
        try:
            engine.settle(lambda: not self._bell.empty())
        except RuntimeError as error:  # torch's own; the caches are as they were
            _log.error("slack time: %s", error)

    def _answer(self, engine: Inference, request: Request) -> None:
        began_ns = time.monotonic_ns()
        observation = request.observation
        if request.overdue(began_ns):
            waited_ms = (began_ns - request.received_ns) * 1e-6
            text = f"the model began {waited_ms:.0f} ms after receipt, past the deadline"
            self._post(Reply(request, Notice(NoticeKind.OVERLOAD, text, observation.id)))
        try:
            if isinstance(engine, Caching):
                engine = engine.using(Whose(request.session, request.episode))
            first = True
            for finished in engine.stream(
                observation, request.prompt, request.strategy, request.memory
            ):
                piece = _slice(request, finished, began_ns)
                if first and not finished.final:
                    self._hand_over(request, piece)
                else:
                    self._post(Reply(request, piece))
                first = False
        except OnsetError as error:
            error.fatal, error.observation_id = False, observation.id
            self._fail(request, error)
        except RuntimeError as error:  # torch's own
            self._fail(
                request,
                OnsetError(
                    ErrorCode.INTERNAL,
                    "model",
                    error,
                    "an inference that ends",
                    observation_id=observation.id,
                ),
            )

    def _hand_over(self, request: Request, piece: ActionSlice) -> None:
        """Posts the first actions, and lets them go before it takes interpreter and core again."""
        handed: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._post(Reply(request, piece, handed))
        with suppress(queue.Empty):
            handed.get(timeout=HAND_OVER_S)

    def _fail(self, request: Request, error: OnsetError) -> None:
        _log.error("observation %d: %s", request.observation.id, error)
        self._post(Reply(request, error))


def _slice(request: Request, finished: Finished, began_ns: int) -> ActionSlice:
    rows = finished.image_rows
    return ActionSlice(
        observation_id=request.observation.id,
        start_step=finished.start_step,
        steps=finished.steps,
        actions=finished.actions,
        final=finished.final,
        timing=Timing(
            queue_ns=began_ns - request.received_ns,
            decode_ns=request.decode_ns,
            encode_ns=finished.encode_ns,
            expert_ns=finished.expert_ns,
            expert_steps=finished.expert_steps,
        ),
        cache=finished.cache or CacheFigures(rows, rows, dense_reason="cache off"),
    )


def blank_observation(robot: RobotSpec) -> Observation:
    """An observation of the right shapes, all zero, to warm a model up with."""
    return Observation(
        id=0,
        step=0,
        capture_ns=0,
        state=np.zeros(len(robot.state), np.float32),
        frames={c.name: np.zeros(c.frames_shape, np.uint8) for c in robot.cameras},
        committed=np.zeros((0, len(robot.action)), np.float32),
        planned=np.zeros((0, len(robot.action)), np.float32),
        delay=0,
        deadline_ns=0,
    )
