"""Schedules: which flow time each action index has before and after every expert step.

A schedule is a table. Row j holds the times before step j, the last row is 0 everywhere, and
``ready_at[i]`` is the number of steps after which index i is finished.

    constant, H = 4, 4 steps           ready_at
    step 0   1.00 1.00 1.00 1.00
    step 1    .75  .75  .75  .75
    step 2    .50  .50  .50  .50       4 4 4 4
    step 3    .25  .25  .25  .25
    done      .00  .00  .00  .00
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from controller.errors import ErrorCode, OnsetError


@dataclass(frozen=True)
class Schedule:
    """A table of flow times.

    Attributes:
        name: The schedule's name.
        tau: Shape (steps + 1, horizon), from at most 1 down to 0, never rising.
        ready_at: Steps after which each index is finished; 0 for committed ones. Shape (horizon,).
    """

    name: str
    tau: NDArray[np.float32]
    ready_at: NDArray[np.int64]

    @property
    def steps(self) -> int:
        return self.tau.shape[0] - 1

    @property
    def horizon(self) -> int:
        return self.tau.shape[1]


def constant(horizon: int, delay: int, steps: int) -> Schedule:
    """All free indices share one flow time, ``(steps - j) / steps``.

    Args:
        horizon: H, length of the chunk.
        delay: d, committed actions at its beginning: clean from the start.
        steps: Expert steps.

    Raises:
        OnsetError: A value is out of range.
    """
    _check(horizon, delay, steps)
    tau = np.linspace(1.0, 0.0, steps + 1, dtype=np.float32)[:, None].repeat(horizon, axis=1)
    tau[:, :delay] = 0.0
    ready_at = np.where(np.arange(horizon) < delay, 0, steps).astype(np.int64)
    return Schedule("constant", tau, ready_at)


def _check(horizon: int, delay: int, steps: int) -> None:
    if horizon < 1:
        raise OnsetError(ErrorCode.BAD_VALUE, "schedule.horizon", horizon, "at least 1")
    if not 0 <= delay < horizon:
        raise OnsetError(ErrorCode.BAD_VALUE, "schedule.delay", delay, f"0..{horizon - 1}")
    if steps < 1:
        raise OnsetError(ErrorCode.BAD_VALUE, "schedule.steps", steps, "at least 1")
