"""Measures what a robot notices of its policy: how long actions take to come."""

from __future__ import annotations

import time
from dataclasses import dataclass

from controller.link import EpisodicLink, PolicyLink, WaitingLink
from controller.types import ActionSlice, CacheFigures, Observation, Timing


@dataclass(frozen=True)
class Reply:
    """One answered observation.

    Attributes:
        step: Step of the observation.
        first_ns: Capture to the first actions, robot's clock [ns].
        whole_ns: Capture to the last actions [ns].
        server: The server's own durations, until the last slice.
        cache: How much the server computed anew; None where it does not say.
    """

    step: int
    first_ns: int
    whole_ns: int
    server: Timing
    cache: CacheFigures | None = None

    @property
    def inference_ns(self) -> int:
        """Vision, prefix and expert [ns]."""
        return self.server.encode_ns + self.server.expert_ns


class MeteredLink:
    """A link that passes everything on and keeps the times."""

    def __init__(self, link: PolicyLink) -> None:
        self._link = link
        self._sent: dict[int, Observation] = {}
        self._first: dict[int, int] = {}
        self.replies: list[Reply] = []

    def submit(self, observation: Observation) -> None:
        self._link.submit(observation)
        self._sent[observation.id] = observation

    def poll(self, now_ns: int) -> list[ActionSlice]:
        pieces = self._link.poll(now_ns)
        for piece in pieces:
            observation = self._sent.get(piece.observation_id)
            if observation is None:
                continue
            elapsed = now_ns - observation.capture_ns
            first = self._first.setdefault(observation.id, elapsed)
            if piece.final:
                reply = Reply(observation.step, first, elapsed, piece.timing, piece.cache)
                self.replies.append(reply)
                # What is older was superseded, and will not be answered any more.
                self._sent = {i: o for i, o in self._sent.items() if i > observation.id}
                self._first = {i: t for i, t in self._first.items() if i > observation.id}
        return pieces

    def reset(self, episode: str, prompt: str) -> None:
        """Announces a new episode where the link wants to hear of it; clears the times."""
        self._sent, self._first, self.replies = {}, {}, []
        if isinstance(self._link, EpisodicLink):
            self._link.reset(episode, prompt)

    def wait(self, timeout_s: float) -> None:
        """Waits for slices, or a timeout [s]."""
        if isinstance(self._link, WaitingLink):
            self._link.wait(timeout_s)
        else:
            time.sleep(timeout_s)
