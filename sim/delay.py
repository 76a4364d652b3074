"""Models of the time from an observation to its actions, in virtual time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from controller.types import ActionSlice, Observation
from sim.collect import Infer


class Latency(Protocol):
    """Draws the time between an observation and the arrival of its actions."""

    def draw_ns(self, rng: np.random.Generator) -> int: ...


@dataclass(frozen=True)
class Fixed:
    """Always the same latency [ns]."""

    latency_ns: int

    def draw_ns(self, rng: np.random.Generator) -> int:
        return self.latency_ns


class DelayedLink:
    """A policy in process whose answers arrive later, in virtual time.

    The policy runs when the observation is taken; its chunk is held back until its time.
    """

    def __init__(self, infer: Infer, latency: Latency, seed: int) -> None:
        self._infer, self._latency = infer, latency
        self._rng = np.random.default_rng(seed)
        self._under_way: list[tuple[int, ActionSlice]] = []

    def submit(self, observation: Observation) -> None:
        actions = self._infer(observation)
        piece = ActionSlice(
            observation_id=observation.id,
            start_step=observation.step,
            steps=observation.step + np.arange(len(actions)),
            actions=np.asarray(actions, dtype=np.float32),
            final=True,
        )
        arrival = observation.capture_ns + self._latency.draw_ns(self._rng)
        self._under_way.append((arrival, piece))

    def poll(self, now_ns: int) -> list[ActionSlice]:
        due = sorted((p for p in self._under_way if p[0] <= now_ns), key=lambda pair: pair[0])
        self._under_way = [p for p in self._under_way if p[0] > now_ns]
        return [piece for _, piece in due]
