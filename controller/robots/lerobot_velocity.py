"""Joint rates for robots that report positions only."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class VelocityFilter:
    """Differences of successive positions through a first-order low pass.

    ``v += (1 - exp(-dt/T)) * (dx/dt - v)``: it follows a constant rate without error, lags a
    changing one by about T, and divides the noise that encoder ticks make of a difference (0.15
    rad/s for one tick in 10 ms) by about 2T/dt. The first position gives 0.
    """

    def __init__(self, time_constant_ns: int) -> None:
        """Args:
        time_constant_ns: T [ns]; 0 leaves plain differences.
        """
        self._time_constant_ns = time_constant_ns
        self._time_ns = 0
        self._position: Array | None = None
        self._velocity: Array = np.zeros(0)

    def reset(self) -> None:
        """Forgets everything."""
        self._position = None

    def update(self, now_ns: int, position: Array) -> Array:
        """Takes a position and returns the rates.

        Args:
            now_ns: When it was measured [ns].
            position: Shape (n,), [unit].

        Returns:
            Shape (n,), [unit/s].
        """
        if self._position is None:
            self._velocity = np.zeros_like(position)
        elif now_ns > self._time_ns:
            dt_ns = now_ns - self._time_ns
            share = 1.0
            if self._time_constant_ns > 0:
                share = 1 - math.exp(-dt_ns / self._time_constant_ns)
            rate = (position - self._position) / (dt_ns * 1e-9)
            self._velocity = self._velocity + share * (rate - self._velocity)
        else:
            return self._velocity
        self._time_ns, self._position = now_ns, position.copy()
        return self._velocity
