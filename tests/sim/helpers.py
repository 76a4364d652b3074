"""Observations and streams for links in virtual time."""

from __future__ import annotations

import numpy as np

from controller.types import Observation
from sim.delay import DelayedLink, Whole

MS = 1_000_000


def observation(number: int, capture_ns: int) -> Observation:
    return Observation(
        id=number,
        step=number,
        capture_ns=capture_ns,
        state=np.zeros(12, np.float32),
        frames={},
        committed=np.empty((0, 6), np.float32),
        planned=np.empty((0, 6), np.float32),
        delay=0,
        deadline_ns=0,
    )


def pieces(*ready_at: int):
    """A stream of one action a piece, finished after so many expert steps."""

    def stream(observation: Observation) -> list[Whole]:
        return [
            Whole(
                start_step=observation.step,
                steps=np.array([observation.step + i]),
                actions=np.full((1, 6), i, np.float32),
                expert_steps=steps,
                final=i == len(ready_at) - 1,
            )
            for i, steps in enumerate(ready_at)
        ]

    return stream


def arrivals(link: DelayedLink, until_ns: int, tick_ns: int = MS) -> list[tuple[int, int, int]]:
    """When what arrives [ms]: time, observation, first step."""
    return [
        (now // MS, piece.observation_id, int(piece.steps[0]))
        for now in range(0, until_ns, tick_ns)
        for piece in link.poll(now)
    ]
