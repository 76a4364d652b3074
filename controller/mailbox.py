"""What the control loop's thread and the network's thread exchange, under one short lock.

Outwards there is one place for an observation: a newer one takes it, so that a slow network sees
the present and no queue. Inwards slices are kept in order of arrival.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import replace

from controller.messages import Reset
from controller.types import ActionSlice, Observation

# More than any chunk has slices; past it the loop has stopped polling, and old slices are useless.
MAX_INCOMING = 4096


class Mailbox:
    """Latest-wins outwards, first-in-first-out inwards."""

    def __init__(self, episode: str, prompt: str) -> None:
        self._lock = threading.Lock()
        self._episode = episode
        self._prompt = prompt
        self._reset: Reset | None = None
        self._observation: Observation | None = None
        self._incoming: deque[ActionSlice] = deque(maxlen=MAX_INCOMING)
        # Held while there is nothing to be polled. It wakes a waiting thread sooner than a
        # Condition or an Event does.
        self._empty = threading.Lock()
        self._empty.acquire()
        self._ended = False

    def put(self, observation: Observation) -> bool:
        """Places an observation; says whether it replaced an unsent one.

        A prompt that the replaced one carried moves to the new one.
        """
        with self._lock:
            old, self._observation = self._observation, observation
            if observation.prompt is not None:
                self._prompt = observation.prompt
            elif old is not None and old.prompt is not None:
                self._observation = replace(observation, prompt=old.prompt)
            return old is not None

    def put_reset(self, episode: str, prompt: str) -> None:
        """Begins a new episode; what was not sent or not polled is dropped."""
        with self._lock:
            self._episode, self._prompt = episode, prompt
            self._reset = Reset(episode, prompt)
            self._observation = None
            self._clear()

    def take_opening(self) -> tuple[str, str]:
        """Returns the episode and prompt that an Open carries; a waiting reset is part of it."""
        with self._lock:
            self._reset = None
            return self._episode, self._prompt

    def take(self) -> Reset | Observation | None:
        """Takes what is to be sent next: a reset goes before the observations after it."""
        with self._lock:
            if self._reset is not None:
                message, self._reset = self._reset, None
            else:
                message, self._observation = self._observation, None
            return message

    def deliver(self, piece: ActionSlice) -> None:
        """Puts a slice in."""
        with self._lock:
            self._incoming.append(piece)
            self._end_waits()

    def end(self) -> None:
        """Nothing more will come: ends every wait."""
        with self._lock:
            self._ended = True
            self._end_waits()

    def _end_waits(self) -> None:
        if self._empty.locked():
            self._empty.release()

    def wait(self, timeout_s: float) -> None:
        """Waits until a slice is in it, the end, or a timeout [s]. For one thread at a time."""
        if self._empty.acquire(timeout=timeout_s):
            with self._lock:
                self._end_waits()

    def drain(self) -> list[ActionSlice]:
        """Takes all slices out, in order of arrival."""
        with self._lock:
            pieces = list(self._incoming)
            self._clear()
            return pieces

    def _clear(self) -> None:
        self._incoming.clear()
        if not self._ended:
            self._empty.acquire(blocking=False)
