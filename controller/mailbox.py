"""What the control loop's thread and the network's thread exchange, under one short lock.

Outwards there is one place for an observation: a newer one takes it, so that a slow network sees
the present and no queue. One whose session was lost may go back to that place while it is empty.
Inwards slices are kept in order of arrival.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, replace

from controller.messages import Reset
from controller.types import ActionSlice, Observation

# More than any chunk has slices; past it the loop has stopped polling, and old slices are useless.
MAX_INCOMING = 4096


@dataclass(frozen=True)
class Letter:
    """An observation on its way out.

    Attributes:
        observation: As it was handed over.
        put_ns: When that was [ns], the machine's monotonic clock.
        era: Counts the resets before it.
        resent: Whether it was sent before, in a session that was lost.
    """

    observation: Observation
    put_ns: int
    era: int
    resent: bool = False

    def expired(self, now_ns: int) -> bool:
        """Whether its deadline has passed. A deadline of 0 never does."""
        deadline_ns = self.observation.deadline_ns
        return deadline_ns > 0 and now_ns - self.put_ns >= deadline_ns

    def outgoing(self, now_ns: int) -> Observation:
        """The observation with what is left of its deadline, which the server counts anew."""
        deadline_ns = self.observation.deadline_ns
        if deadline_ns == 0:
            return self.observation
        left_ns = max(1, deadline_ns - max(0, now_ns - self.put_ns))
        return replace(self.observation, deadline_ns=left_ns)


class Mailbox:
    """Latest-wins outwards, first-in-first-out inwards."""

    def __init__(self, episode: str, prompt: str) -> None:
        self._lock = threading.Lock()
        self._episode = episode
        self._prompt = prompt
        self._unsaid: str | None = None  # a prompt whose observation was never sent
        self._reset: Reset | None = None
        self._letter: Letter | None = None
        self._era = 0
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
        put_ns = time.monotonic_ns()
        with self._lock:
            old = self._letter
            if old is not None and old.observation.prompt is not None:
                self._unsaid = old.observation.prompt
            if observation.prompt is not None:
                self._prompt = observation.prompt
            elif self._unsaid is not None:
                observation = replace(observation, prompt=self._unsaid)
            self._unsaid = None
            self._letter = Letter(observation, put_ns, self._era)
            return old is not None

    def put_back(self, letter: Letter) -> bool:
        """Places an observation again; says whether it could.

        It can once, in the episode that it belongs to, and while there is no newer one.
        """
        with self._lock:
            if letter.resent or letter.era != self._era or self._letter is not None:
                return False
            self._letter = replace(letter, resent=True)
            return True

    def keep_prompt(self, letter: Letter) -> None:
        """Saves the prompt of an observation that will not be sent for the next one."""
        prompt = letter.observation.prompt
        with self._lock:
            if prompt is None or letter.era != self._era:
                return
            newer = self._letter
            if newer is None:
                self._unsaid = prompt
            elif newer.observation.prompt is None:
                said = replace(newer.observation, prompt=prompt)
                self._letter = replace(newer, observation=said)

    def put_reset(self, episode: str, prompt: str) -> bool:
        """Begins a new episode; what was not sent or not polled is dropped.

        Returns:
            Whether there was an unsent observation.
        """
        with self._lock:
            self._episode, self._prompt, self._unsaid = episode, prompt, None
            self._reset = Reset(episode, prompt)
            self._era += 1
            old, self._letter = self._letter, None
            self._clear()
            return old is not None

    def take_opening(self) -> tuple[str, str]:
        """Returns the episode and prompt that an Open carries; a waiting reset is part of it."""
        with self._lock:
            self._reset = self._unsaid = None
            return self._episode, self._prompt

    def take(self, resets_only: bool = False) -> Reset | Letter | None:
        """Takes what is to be sent next: a reset goes before the observations after it."""
        with self._lock:
            if self._reset is not None:
                message, self._reset = self._reset, None
                return message
            if resets_only:
                return None
            letter, self._letter = self._letter, None
            return letter

    def deliver(self, piece: ActionSlice) -> None:
        """Puts a slice in."""
        with self._lock:
            self._incoming.append(piece)
            self._end_waits()

    def end(self) -> bool:
        """Nothing more will come: ends every wait; says whether an observation was left unsent."""
        with self._lock:
            self._ended = True
            self._end_waits()
            old, self._letter = self._letter, None
            return old is not None

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
