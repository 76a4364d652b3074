"""From an observation and a strategy to what a chunk is generated from: one contract for all.

``controller.strategy`` says what each strategy does; here it becomes tensors::

    observation k, committed a_k .. a_{k+d-1}, planned a_{k+d} .., forecast s_c   (robot's units)
        -> Condition: start c - k, state s_c, clean prefix, guide                 (normalised)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from controller.bounds import check_range
from controller.errors import ErrorCode, OnsetError
from controller.strategy import Strategy
from controller.types import Float, Observation
from vla.guidance import Guide, rtc_weights
from vla.transforms import Normaliser


@dataclass(frozen=True)
class Condition:
    """What a chunk is generated from, besides images and instruction.

    Attributes:
        start: Steps from the observation to the chunk's first index.
        state: State there, which relative actions are relative to. Shape (S,), robot's units.
        prefix: Normalised actions of the first indices, clean. Shape (1, p, A), or None.
        guide: What the chunk is drawn towards, or None.
    """

    start: int
    state: Float
    prefix: Tensor | None = None
    guide: Guide | None = None

    @property
    def prefix_length(self) -> int:
        """P."""
        return 0 if self.prefix is None else self.prefix.shape[1]


def make_condition(
    strategy: Strategy, observation: Observation, scales: Normaliser, max_delay: int
) -> Condition:
    """The condition of one observation under a strategy.

    Committed actions were planned from older states: here they are taken relative to the state at
    the chunk's beginning, as training takes them.

    Args:
        strategy: The session's.
        observation: With its committed and planned actions, delay and forecast.
        scales: The policy's.
        max_delay: Greatest delay that the policy was trained for [steps].

    Raises:
        OnsetError: BAD_VALUE: the delay is past what the policy was trained for, or the forecast
            is missing.
    """
    if not strategy.delayed:
        return Condition(0, observation.state)
    if strategy.committed or strategy.late:  # guidance needs no training
        check_range("observation.delay", observation.delay, 0, max_delay)
    start = strategy.start(observation.delay)
    state = observation.state
    if start:
        if observation.forecast is None:
            raise OnsetError(
                ErrorCode.BAD_VALUE,
                "observation.forecast",
                "none",
                f"the state expected at step + {start}: {strategy.name} begins there",
            )
        state = observation.forecast
    prefix = guide = None
    if strategy.committed and len(observation.committed) > start:
        prefix = _normalised(observation.committed[start:], state, scales)
    if strategy.guided:
        guide = _guide(strategy, observation, scales)
    return Condition(start, state, prefix, guide)


def _guide(strategy: Strategy, observation: Observation, scales: Normaliser) -> Guide | None:
    """The old chunk where it stands; None where it has ended."""
    old = np.concatenate([observation.committed, observation.planned])
    horizon, dims = scales.chunk_mean.shape
    # Its last s indices are left free: the paper's H - s is what the old chunk still has, and all
    # of a chunk's actions may stand ahead only where nothing of it was executed.
    count = min(len(old), horizon - 1)
    if count <= observation.delay:
        return None
    target = torch.zeros(1, horizon, dims)
    target[:, :count] = _normalised(old[:count], observation.state, scales)
    weights = rtc_weights(horizon, observation.delay, horizon - count)
    rule = "vjp" if strategy.guided == "vjp" else "identity"
    return Guide(target, weights, rule)


def _normalised(actions: Float, state: Float, scales: Normaliser) -> Tensor:
    rows, at = (torch.from_numpy(np.array(a, dtype=np.float32))[None] for a in (actions, state))
    return scales.chunk(rows, at)
