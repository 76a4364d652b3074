"""The fastest stop of one axis with bounded acceleration and jerk, in closed form.

To rest from velocity v and acceleration a. Seen in the direction of w, the velocity that is left
once the acceleration has been taken to 0 at full jerk, it has three parts::

    acceleration
       a  .
           .                                      jerk  -J    0     +J
     0 -----.-------------------.----> time       for    t1   t2    t3
             .                .
    -peak     ................                    peak <= A

All in the axis's unit and s.
"""

from __future__ import annotations

from math import sqrt
from typing import NamedTuple


class Stop(NamedTuple):
    """The three parts of a stop.

    Attributes:
        sign: 1 where it decelerates a positive w, else -1.
        peak: Greatest deceleration, along ``sign``.
        to_peak: t1 [s].
        at_peak: t2 [s].
        to_rest: t3 [s].
    """

    sign: float
    peak: float
    to_peak: float
    at_peak: float
    to_rest: float

    @property
    def duration(self) -> float:
        """Time to rest [s]."""
        return self.to_peak + self.at_peak + self.to_rest


def plan(velocity: float, acceleration: float, limit: float, jerk: float) -> Stop:
    """Plans the fastest stop.

    Args:
        velocity: v.
        acceleration: a, within ``limit``.
        limit: Greatest acceleration, A.
        jerk: Greatest jerk, J.
    """
    w = velocity + acceleration * abs(acceleration) / (2 * jerk)
    sign = -1.0 if w < 0 else 1.0
    v, a = sign * velocity, sign * acceleration
    # What the three parts take from v adds up to v; without the second, this is the peak.
    square = jerk * v + a * a / 2
    peak = sqrt(square) if square > 0 else 0.0
    at_peak = 0.0
    if peak > limit:
        peak = limit
        at_peak = max((v + (a * a / 2 - limit * limit) / jerk) / limit, 0.0)
    return Stop(sign, peak, max(a + peak, 0.0) / jerk, at_peak, peak / jerk)


def reach(velocity: float, acceleration: float, limit: float, jerk: float) -> tuple[float, float]:
    """Returns how far the stop goes below and above where it begins: (<= 0, >= 0)."""
    sign, peak, t1, t2, _ = plan(velocity, acceleration, limit, jerk)
    v, a = sign * velocity, sign * acceleration
    v1 = v + (a - jerk * t1 / 2) * t1
    end = (v + (a / 2 - jerk * t1 / 6) * t1) * t1
    end += (v1 - peak * t2 / 2) * t2 + peak**3 / (6 * jerk**2)
    back = 0.0
    if v < 0:  # it moves against w, and turns round still in the first part
        turn = max((a - sqrt(max(a * a + 2 * jerk * v, 0.0))) / jerk, 0.0)
        back = (v + (a / 2 - jerk * turn / 6) * turn) * turn
    low, high = min(back, end, 0.0), max(end, 0.0)
    return (low, high) if sign > 0 else (-high, -low)


def advance(
    position: float, velocity: float, acceleration: float, limit: float, jerk: float, time_s: float
) -> tuple[float, float, float]:
    """Returns position, velocity and acceleration ``time_s`` into the stop [s]."""
    stop = plan(velocity, acceleration, limit, jerk)
    p, v, a, left = position, velocity, acceleration, time_s
    parts = ((stop.to_peak, -stop.sign), (stop.at_peak, 0.0), (stop.to_rest, stop.sign))
    for length, direction in parts:
        t, j = min(left, length), direction * jerk
        p += (v + (a / 2 + j * t / 6) * t) * t
        v += (a + j * t / 2) * t
        a += j * t
        left -= t
    return (p, 0.0, 0.0) if left > 0 else (p, v, a)
