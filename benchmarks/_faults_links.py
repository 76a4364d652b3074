"""Links that a fault matrix puts between a policy and its robot."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum
from random import Random
from typing import Literal

import numpy as np

from controller.link import EpisodicLink, PolicyLink, WaitingLink
from controller.types import ActionSlice, Float, Observation


class Corruption(StrEnum):
    """What becomes of actions."""

    NAN = "nan"
    RANGE = "range"


class SwitchLink:
    """Another link's place: what is behind it may be exchanged at any time.

    Attributes:
        link: What is behind it now.
        on_observation: Told of each observation that was taken.
        on_slice: Told of each slice as it arrives.
    """

    def __init__(
        self,
        link: PolicyLink,
        on_observation: Callable[[Observation], None],
        on_slice: Callable[[ActionSlice], None],
    ) -> None:
        self.link, self.on_observation, self.on_slice = link, on_observation, on_slice

    def submit(self, observation: Observation) -> None:
        self.link.submit(observation)
        self.on_observation(observation)

    def poll(self, now_ns: int) -> list[ActionSlice]:
        pieces = self.link.poll(now_ns)
        for piece in pieces:
            self.on_slice(piece)
        return pieces

    def reset(self, episode: str, prompt: str) -> None:
        if isinstance(self.link, EpisodicLink):
            self.link.reset(episode, prompt)


class CorruptLink:
    """Spoils the actions of every slice, each time in another way.

    ``nan`` puts NaN or infinity into one or all dimensions of some or all rows; ``range`` puts
    values up to the greatest of float32 there.
    """

    def __init__(self, link: PolicyLink, how: Corruption, seed: int = 0) -> None:
        self._link, self._how = link, how
        self._random = Random(f"{how} {seed}")

    def submit(self, observation: Observation) -> None:
        self._link.submit(observation)

    def poll(self, now_ns: int) -> list[ActionSlice]:
        return [
            replace(piece, actions=self._spoil(piece.actions)) for piece in self._link.poll(now_ns)
        ]

    def _spoil(self, actions: Float) -> Float:
        draw, spoilt = self._random, actions.copy()
        first = 0 if self._how is Corruption.NAN else draw.randrange(len(actions))
        width = actions.shape[1]
        chosen = range(width) if draw.random() < 0.5 else [draw.randrange(width)]
        for i in chosen:
            if self._how is Corruption.NAN:
                spoilt[first:, i] = draw.choice([np.nan, np.inf, -np.inf])
            else:
                spoilt[first:, i] = draw.choice([-1, 1]) * 10 ** draw.uniform(0.5, 38)
        return spoilt


class WindowLink:
    """A link that fails from one instant to another, in virtual time.

    ``cut`` loses everything, ``frozen`` lets it come when it is over, ``delayed`` holds it back
    for ``delay_ns``.
    """

    def __init__(
        self,
        link: PolicyLink,
        how: Literal["cut", "frozen", "delayed"],
        begin_ns: int,
        end_ns: int,
        delay_ns: int = 0,
    ) -> None:
        self._link, self._how = link, how
        self._begin_ns, self._end_ns, self._delay_ns = begin_ns, end_ns, delay_ns
        self._kept: list[tuple[int, ActionSlice]] = []

    def submit(self, observation: Observation) -> None:
        if not (self._how == "cut" and self._inside(observation.capture_ns)):
            self._link.submit(observation)

    def poll(self, now_ns: int) -> list[ActionSlice]:
        pieces = self._link.poll(now_ns)
        if self._inside(now_ns):
            if self._how != "cut":
                due_ns = self._end_ns if self._how == "frozen" else now_ns + self._delay_ns
                self._kept += [(due_ns, piece) for piece in pieces]
            pieces = []
        due = [piece for due_ns, piece in self._kept if due_ns <= now_ns]
        self._kept = [kept for kept in self._kept if kept[0] > now_ns]
        return due + pieces

    def reopened(self, now_ns: int) -> int:
        """How often the session was opened again, as a link counts it."""
        return int(self._how == "cut" and now_ns >= self._end_ns)

    def _inside(self, now_ns: int) -> bool:
        return self._begin_ns <= now_ns < self._end_ns


class WaitingSwitchLink(SwitchLink):
    """The same around a link that can be waited on, whatever stands between."""

    def __init__(
        self,
        link: WaitingLink,
        on_observation: Callable[[Observation], None],
        on_slice: Callable[[ActionSlice], None],
    ) -> None:
        super().__init__(link, on_observation, on_slice)
        self._far = link

    def wait(self, timeout_s: float) -> None:
        before = time.monotonic()
        self._far.wait(timeout_s)
        if time.monotonic() - before < 1e-4:  # slices that a wrapper holds back are no reason
            time.sleep(min(timeout_s, 1e-3))
