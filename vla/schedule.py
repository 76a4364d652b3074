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

from dataclasses import dataclass, replace

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
        average: Whether a step takes the average velocity over its jump (a MeanFlow head), not
            the velocity at its beginning.
    """

    name: str
    tau: NDArray[np.float32]
    ready_at: NDArray[np.int64]
    average: bool = False

    @property
    def steps(self) -> int:
        return self.tau.shape[0] - 1

    @property
    def horizon(self) -> int:
        return self.tau.shape[1]

    def steps_for(self, executed: int | None) -> int:
        """Steps after which the first ``executed`` free indices are finished; all when None.

        Raises:
            OnsetError: BAD_VALUE: there are not so many free indices.
        """
        free = self.ready_at[self.ready_at > 0]
        if executed is None:
            return int(free.max())
        if not 1 <= executed <= len(free):
            raise OnsetError(ErrorCode.BAD_VALUE, "schedule.executed", executed, f"1..{len(free)}")
        return int(free[:executed].max())


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


def horizon_aware(
    horizon: int,
    delay: int,
    steps: int,
    alpha: float = 0.6,
    u0: float | None = None,
    unused: int = 0,
) -> Schedule:
    """Near-term indices are finished first: FASTER's schedule (arXiv 2603.19199).

    Index i is finished when the global time ``(steps - j) / steps`` has fallen to its hit time
    ``u_i = (1 - ((i - d) / (H - 1 - d))^alpha) u0``; until then its own time runs from 1 to 0.
    ``ready_at[i] = ceil(steps (1 - u_i))``, an integer known before sampling begins.

        H = 6, d = 1, 4 steps, alpha 0.6                ready_at
        step 0    0   1.00  1.00  1.00  1.00  1.00
        step 1    0    .00   .57   .66   .72   .75
        step 2    0    .00   .13   .33   .43   .50      0 1 3 3 4 4
        step 3    0    .00   .00   .00   .15   .25
        done      0    .00   .00   .00   .00   .00

    Args:
        horizon: H, length of the chunk.
        delay: d, committed actions at its beginning: clean from the start.
        steps: Expert steps.
        alpha: A smaller one gives the middle of the chunk more steps.
        u0: Hit time of the first free index; ``(steps - 1) / steps`` by default, so that it is
            finished after one step. 0 is the constant schedule.
        unused: Indices behind the committed ones that nobody waits for: they are finished with the
            first index behind them, which counts as the first free one above.

    Raises:
        OnsetError: A value is out of range.
    """
    _check(horizon, delay, steps)
    if not 0 <= unused < horizon - delay:
        allowed = f"0..{horizon - delay - 1}"
        raise OnsetError(ErrorCode.BAD_VALUE, "schedule.unused", unused, allowed)
    first = (steps - 1) / steps if u0 is None else u0
    check_alpha(alpha)
    if not 0 <= first < 1:
        raise OnsetError(ErrorCode.BAD_VALUE, "schedule.u0", first, "0 or more, less than 1")
    behind = np.arange(horizon) - delay - unused
    place = np.clip(behind / max(horizon - 1 - delay - unused, 1), 0, 1)
    hit = (1 - place**alpha) * first
    # Rounded before the ceiling: 10 * (1 - 0.9) is a little more than 1 in floating point.
    ready_at = np.ceil(np.round(steps * (1 - hit), 9)).astype(np.int64)
    rho = (steps - np.arange(steps + 1))[:, None] / steps
    tau = np.maximum(0.0, (rho - hit) / (1 - hit))
    # The table of integers decides; what rounding leaves of a time there is no noise to keep.
    tau[np.arange(steps + 1)[:, None] >= ready_at] = 0.0
    tau[:, :delay], ready_at[:delay] = 0.0, 0
    return Schedule("has", tau.astype(np.float32), ready_at)


def one_step(horizon: int, delay: int) -> Schedule:
    """Everything is finished after one expert step: MeanFlow's jump from noise to actions.

        H = 4, d = 1                 ready_at
        step 0    0  1.0  1.0  1.0
        done      0   .0   .0   .0   0 1 1 1

    Args:
        horizon: H, length of the chunk.
        delay: d, committed actions at its beginning.

    Raises:
        OnsetError: A value is out of range.
    """
    return replace(constant(horizon, delay, 1), name="one_step", average=True)


SCHEDULES = ("constant", "has", "one_step", "has_meanflow")
AVERAGE = ("one_step", "has_meanflow")  # they need a MeanFlow head


def make_schedule(name: str, horizon: int, delay: int, steps: int, unused: int = 0) -> Schedule:
    """Builds a schedule by name, with its defaults.

    Args:
        name: One of ``SCHEDULES``.
        horizon: H, length of the chunk.
        delay: d, committed actions at its beginning.
        steps: Expert steps; ``one_step`` has one whatever is given.
        unused: As of ``horizon_aware``; to the others all free indices are the same.

    Raises:
        OnsetError: Unknown name, or a value is out of range.
    """
    if name == "constant":
        return constant(horizon, delay, steps)
    if name == "has":
        return horizon_aware(horizon, delay, steps, unused=unused)
    if name == "one_step":
        return one_step(horizon, delay)
    if name == "has_meanflow":
        aware = horizon_aware(horizon, delay, steps, unused=unused)
        return replace(aware, name=name, average=True)
    raise OnsetError(ErrorCode.BAD_VALUE, "schedule", name, list(SCHEDULES))


def check_alpha(alpha: float) -> None:
    """Checks the exponent of the horizon-aware schedule.

    Raises:
        OnsetError: It is not greater than 0.
    """
    if not (np.isfinite(alpha) and alpha > 0):
        raise OnsetError(ErrorCode.BAD_VALUE, "schedule.alpha", alpha, "greater than 0")


def _check(horizon: int, delay: int, steps: int) -> None:
    if horizon < 1:
        raise OnsetError(ErrorCode.BAD_VALUE, "schedule.horizon", horizon, "at least 1")
    if not 0 <= delay < horizon:
        raise OnsetError(ErrorCode.BAD_VALUE, "schedule.delay", delay, f"0..{horizon - 1}")
    if steps < 1:
        raise OnsetError(ErrorCode.BAD_VALUE, "schedule.steps", steps, "at least 1")
