"""From an observation and a strategy to what a chunk is generated from: one contract for all.

``controller.strategy`` says what each strategy does; here it becomes tensors::

    observation k, committed a_k .. a_{k+d-1}, planned a_{k+d} .., forecast s_c   (robot's units)
        -> Condition: start c - k, state s_c, clean prefix, guide                 (normalised)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from controller.bounds import check_range
from controller.errors import ErrorCode, OnsetError
from controller.forecast import Forecaster
from controller.strategy import Strategy
from controller.types import Float, Observation
from vla.guidance import Guide, rtc_weights


class Scales(Protocol):
    """How a policy normalises a robot's actions."""

    @property
    def chunk_shape(self) -> tuple[int, int]:
        """H, and the width of the model's actions."""
        ...

    def chunk(self, chunk: Tensor, state: Tensor) -> Tensor:
        """Absolute actions of the first n indices (B, n, A), at states (B, S), as the model's."""
        ...


@dataclass(frozen=True)
class Condition:
    """What a chunk is generated from, besides images and instruction.

    Attributes:
        start: Steps from the observation to the chunk's first index.
        state: State there, which relative actions are relative to. Shape (S,), robot's units.
        prefix: Normalised actions of the first indices, clean. Shape (1, p, A), or None.
        unused: First free indices, whose steps are over when the chunk takes over.
        guide: What the chunk is drawn towards, or None.
    """

    start: int
    state: Float
    prefix: Tensor | None = None
    unused: int = 0
    guide: Guide | None = None

    @property
    def prefix_length(self) -> int:
        """Actions of the prefix [count]."""
        return 0 if self.prefix is None else self.prefix.shape[1]


class ChunkMemory:
    """What a robot was last told and may not have yet; a cache of its session.

    Where a chunk takes longer than the next observation, several are under way. The robot counts on
    its old chunk; the server knows better what it will be doing::

        observation k-4   |------ d = 8 ------|a a a a a a ..
        observation k               |------ d = 8 ------|b b b ..
        robot counts on             o o o o o o o o           where chunk a has not come yet
        memory                      o o o o a a a a

    Without it, or where a reply was lost, chunk b only begins from a state that is farther off.
    """

    def __init__(self, forecaster: Forecaster | None) -> None:
        """Args:
        forecaster: Tells the state ahead along what the memory knows; None where the robot's
            own forecasts are to be taken as they are.
        """
        self._forecaster = forecaster
        self._observation_id = -1
        self._actions: dict[int, Float] = {}

    def note(self, observation_id: int, steps: NDArray[np.int64], actions: Float) -> None:
        """Notes actions that are on their way, shape (n, A), for steps of shape (n,)."""
        if observation_id != self._observation_id:
            # A newer chunk takes over where it begins.
            first = int(steps.min())
            self._actions = {at: a for at, a in self._actions.items() if at < first}
            self._observation_id = observation_id
        self._actions.update(zip(steps.tolist(), actions, strict=True))

    def amend(self, observation: Observation, start: int) -> Observation:
        """The observation with what the robot will really do until step + delay.

        Args:
            observation: As it came.
            start: Where its chunk begins, for which the forecast holds [steps].
        """
        self._actions = {at: a for at, a in self._actions.items() if at >= observation.step}
        known, set_point = len(observation.committed), observation.set_point
        if set_point is None or not self._actions:
            return observation
        rows: list[Float] = []
        row: Float = set_point
        for i in range(observation.delay):
            if i < known:  # past the end of what the robot counts on it holds
                row = observation.committed[i]
            row = self._actions.get(observation.step + i, row)
            rows.append(row)
        if not rows or (known == len(rows) and np.array_equal(rows, observation.committed)):
            return observation
        committed, forecast = np.array(rows, dtype=np.float32), observation.forecast
        if start and self._forecaster is not None:
            now = (observation.state, set_point)
            forecast = self._forecaster.forecast(*now, committed[:start])
        behind = observation.step + observation.delay
        planned = [self._actions.get(behind + i, a) for i, a in enumerate(observation.planned)]
        return replace(
            observation,
            committed=committed,
            planned=np.array(planned, np.float32) if planned else observation.planned,
            forecast=forecast,
        )


def make_condition(
    strategy: Strategy,
    observation: Observation,
    scales: Scales,
    max_delay: int,
) -> Condition:
    """The condition of one observation under a strategy.

    Committed actions were planned from older states: here they are taken relative to the state at
    the chunk's beginning, as training takes them.

    Args:
        strategy: The session's.
        observation: With its committed and planned actions, delay and forecast, amended by what the
            session's memory knows.
        scales: The policy's.
        max_delay: Greatest delay that the policy was trained for [steps].

    Raises:
        OnsetError: BAD_VALUE: the delay is past what the policy was trained for, or the forecast
            is missing.
    """
    if not strategy.delayed:
        return Condition(0, observation.state)
    if strategy.committed or strategy.late:
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
    if strategy.committed and len(observation.committed):
        prefix = _normalised(observation.committed, state, scales)
    if strategy.guided:
        guide = _guide(strategy, observation, scales)
    return Condition(start, state, prefix, guide=guide)


def _guide(strategy: Strategy, observation: Observation, scales: Scales) -> Guide | None:
    """The old chunk where it stands; None where it has ended."""
    old = np.concatenate([observation.committed, observation.planned])
    horizon, dims = scales.chunk_shape
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


def _normalised(actions: Float, state: Float, scales: Scales) -> Tensor:
    rows, at = (torch.from_numpy(np.array(a, dtype=np.float32))[None] for a in (actions, state))
    return scales.chunk(rows, at)
