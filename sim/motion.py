"""How an episode moved: steps at a switch of chunks and within them, jerk, holding, forecasts."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from controller.loop_types import TickCode, TickResult
from controller.types import Float

ARM = 5  # joints in rad; the gripper comes behind them


@dataclass(frozen=True)
class Motion:
    """Figures of one episode.

    Attributes:
        switches: Greatest joint's change of the set-point, in steps that follow another chunk's.
            Shape (n,), [rad].
        within: The same in steps that follow their own chunk's. Shape (m,), [rad].
        jerk: Root mean square of the set-points' third difference, over joints and steps
            [rad/s^3].
        hold: Share of steps without an action.
        forecast_errors: Measured minus forecast state, one row a forecast. Shape (f, S).
    """

    switches: NDArray[np.float32]
    within: NDArray[np.float32]
    jerk: float
    hold: float
    forecast_errors: NDArray[np.float32]


@dataclass
class MotionMeter:
    """Collects an episode from its ticks. ``see`` is to be called with every tick's result.

    Attributes:
        period_s: Policy period [s].
    """

    period_s: float
    _points: list[Float] = field(default_factory=list)
    _sources: list[int] = field(default_factory=list)
    _held: list[bool] = field(default_factory=list)
    _errors: list[Float] = field(default_factory=list)

    def see(self, result: TickResult) -> None:
        """Notes one tick; the last one of a step is the step's set-point."""
        if result.boundary:
            self._points.append(result.set_point)
            self._sources.append(result.observation_id)
            self._held.append(result.code is TickCode.STARVED)
            if result.forecast_error is not None:
                self._errors.append(result.forecast_error)
        else:
            self._points[-1] = result.set_point
            self._sources[-1] = result.observation_id
            self._held[-1] = result.code is TickCode.STARVED

    def motion(self) -> Motion:
        """The figures so far.

        A chunk's first step after a hold counts as a switch too: the arm stood where it was.
        """
        points = np.array(self._points, dtype=np.float32)[:, :ARM]
        sources = np.array(self._sources)
        moved = np.abs(np.diff(points, axis=0)).max(axis=1, initial=0)
        here, before = sources[1:], sources[:-1]
        third = np.diff(points, n=3, axis=0) / self.period_s**3
        errors = np.array(self._errors, dtype=np.float32)
        return Motion(
            moved[(here >= 0) & (here != before)],
            moved[(here >= 0) & (here == before)],
            float(np.sqrt((third**2).mean())) if len(third) else 0.0,
            float(np.mean(self._held)),
            errors if len(errors) else np.zeros((0, 0), np.float32),
        )
