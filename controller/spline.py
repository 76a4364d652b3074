"""Policy-rate actions to a smooth reference: a cubic per step, continuous in its velocity.

The action of step k is to be reached at the end of step k, with the slope that the actions around
it have there::

    a_{k+1} .......................................o
    a_k     ......................o                |   slope at a_k: between those of the two
                            x     |                |   sides; 0 where they point in different
                       x          |                |   directions or nothing follows
    a_{k-1} .....o                |                |
                 |--- step k -----|--- step k+1 ---|

The slopes are those of monotone cubics (Fritsch and Carlson, SIAM J. Numer. Anal. 17, 1980), with
the harmonic mean: between two actions the reference never leaves their interval once it runs
along them. A cubic begins at the present reference, position and velocity, so that another plan or
an amended step bends it and never breaks it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def slope(before: Array, after: Array) -> Array:
    """The slope at an action, from the slopes on its two sides. Each of shape (A,)."""
    product = before * after
    total = before + after
    total[total == 0] = 1.0  # then the product is not positive
    return np.where(product > 0, 2 * product / total, 0.0)


@dataclass(frozen=True)
class Cubic:
    """From a position and velocity to another, in a given time.

    Attributes:
        start_ns: When it begins [ns].
        duration_ns: How long it takes [ns], > 0.
        p0: Position at its beginning. Shape (A,).
        v0: Velocity there, per second. Shape (A,).
        p1: Position at its end. Shape (A,).
        v1: Velocity there, per second. Shape (A,).
    """

    start_ns: int
    duration_ns: int
    p0: Array
    v0: Array
    p1: Array
    v1: Array

    def at(self, now_ns: int) -> tuple[Array, Array]:
        """Position and velocity at an instant, at most the end. Each of shape (A,)."""
        seconds = self.duration_ns * 1e-9
        u = min(max((now_ns - self.start_ns) / self.duration_ns, 0.0), 1.0)
        m0, m1, rise = self.v0 * seconds, self.v1 * seconds, self.p1 - self.p0
        # p0 + m0 u + (3 rise - 2 m0 - m1) u^2 + (m0 + m1 - 2 rise) u^3
        square, cube = 3 * rise - 2 * m0 - m1, m0 + m1 - 2 * rise
        position = self.p0 + u * (m0 + u * (square + u * cube))
        velocity = (m0 + u * (2 * square + u * 3 * cube)) / seconds
        return position, velocity
