"""The fastest stop of an axis with bounded acceleration and jerk, in closed form.

To rest from velocity v and acceleration a. Seen in the direction of w, the velocity that is left
once the acceleration has been taken to 0 at full jerk, it has three parts::

    acceleration
       a  .
           .                                      jerk  -J    0     +J
     0 -----.-------------------.----> time       for    t1   t2    t3
             .                .
    -peak     ................                    peak <= A

All arrays have the shape (A,), one entry per axis, in the axis's unit and s.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Stop(NamedTuple):
    """The three parts of each axis's stop.

    Attributes:
        sign: 1 where the stop decelerates a positive w, else -1.
        peak: Greatest deceleration, along ``sign``.
        to_peak: t1 [s].
        at_peak: t2 [s].
        to_rest: t3 [s].
    """

    sign: Array
    peak: Array
    to_peak: Array
    at_peak: Array
    to_rest: Array

    @property
    def duration(self) -> Array:
        """Time to rest [s]."""
        return self.to_peak + self.at_peak + self.to_rest


def coast(velocity: Array, acceleration: Array, jerk: Array) -> Array:
    """Returns w, the velocity once the acceleration has been taken to 0 at full jerk."""
    return velocity + acceleration * np.abs(acceleration) / (2 * jerk)


def plan(velocity: Array, acceleration: Array, limit: Array, jerk: Array) -> Stop:
    """Plans the fastest stop.

    Args:
        velocity: v.
        acceleration: a, within ``limit``.
        limit: Greatest acceleration.
        jerk: Greatest jerk.
    """
    sign = np.where(coast(velocity, acceleration, jerk) < 0, -1.0, 1.0)
    v, a = sign * velocity, sign * acceleration
    # What the two jerk parts and the part between take from v adds up to v.
    free = np.sqrt(np.maximum(jerk * v + a * a / 2, 0.0))
    peak = np.minimum(free, limit)
    at_peak = np.where(free > limit, (v + (a * a / 2 - limit * limit) / jerk) / limit, 0.0)
    return Stop(sign, peak, np.maximum(a + peak, 0.0) / jerk, np.maximum(at_peak, 0.0), peak / jerk)


def reach(velocity: Array, acceleration: Array, limit: Array, jerk: Array) -> tuple[Array, Array]:
    """Returns how far the stop goes below and above where it begins: (<= 0, >= 0)."""
    stop = plan(velocity, acceleration, limit, jerk)
    v, a = stop.sign * velocity, stop.sign * acceleration
    t1, t2 = stop.to_peak, stop.at_peak
    v1 = v + (a - jerk * t1 / 2) * t1
    end = (v + (a / 2 - jerk * t1 / 6) * t1) * t1
    end += (v1 - stop.peak * t2 / 2) * t2 + stop.peak**3 / (6 * jerk**2)
    # An axis that moves against w turns round where its velocity is 0, still in the first part.
    turn = (a - np.sqrt(np.maximum(a * a + 2 * jerk * v, 0.0))) / jerk
    turn = np.where(v < 0, np.maximum(turn, 0.0), 0.0)
    back = (v + (a / 2 - jerk * turn / 6) * turn) * turn
    least, most = np.minimum(np.minimum(back, end), 0.0), np.maximum(end, 0.0)
    forward = stop.sign > 0
    return np.where(forward, least, -most), np.where(forward, most, -least)


def advance(
    position: Array, velocity: Array, acceleration: Array, limit: Array, jerk: Array, time_s: float
) -> tuple[Array, Array, Array]:
    """Returns position, velocity and acceleration ``time_s`` into the stop [s]."""
    stop = plan(velocity, acceleration, limit, jerk)
    p, v, a = position, velocity, acceleration
    left = np.full_like(p, time_s)
    parts = ((stop.to_peak, -stop.sign), (stop.at_peak, 0.0), (stop.to_rest, stop.sign))
    for length, direction in parts:
        t = np.minimum(left, length)
        j = direction * jerk
        p = p + (v + (a / 2 + j * t / 6) * t) * t
        v = v + (a + j * t / 2) * t
        a = a + j * t
        left = left - t
    rest = left > 0
    return p, np.where(rest, 0.0, v), np.where(rest, 0.0, a)
