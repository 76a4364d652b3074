"""One axis of the limiter: what is allowed, and the two ways to a moving target that need no plan.

Plain floats: for the handful of axes of an arm they are several times faster than arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from controller import stop

State = tuple[float, float, float]  # position, velocity, acceleration

# Rounding that is let pass [share of the limit].
ROUNDING = 1e-10
# Jerk that the soft approach may ask for; it is cut to the limit [share of the limit].
EXCESS = 2.0


class Reference(NamedTuple):
    """A moving target at the end of the period, in the axis's unit and s."""

    position: float
    velocity: float
    acceleration: float = 0.0
    jerk: float = 0.0


class Axis:
    """Limits of one axis and what they leave open within a period."""

    def __init__(
        self,
        lower: float,
        upper: float,
        velocity: float,
        acceleration: float,
        jerk: float,
        period_s: float,
        horizons_s: Sequence[float],
    ) -> None:
        """Makes an axis.

        Args:
            lower: Least position.
            upper: Greatest position.
            velocity: Greatest speed either way.
            acceleration: Greatest acceleration either way.
            jerk: Greatest jerk either way.
            period_s: Control period [s].
            horizons_s: Times that the soft approach may take, shortest first [s].
        """
        self.lower, self.upper = lower, upper
        self.velocity, self.acceleration, self.jerk = velocity, acceleration, jerk
        self._t, self._horizons = period_s, tuple(horizons_s)
        more = 1 + ROUNDING
        self._most_v, self._most_a = velocity * more, acceleration * more
        self._most_step, self._most_way = jerk * period_s * more, velocity * period_s * more
        # Of numbers as large as the position, not only as its range.
        slack = 1e-13 * max(abs(lower), abs(upper)) + 1e-12 * (upper - lower)
        self._low, self._high = lower - slack, upper + slack

    def allows(self, now: State, then: State) -> bool:
        """Whether a period from ``now`` to ``then`` keeps the limits, and the stop after it too."""
        p, v, a = then
        size = abs(a)
        most, jerk = self.acceleration, self.jerk
        kick = size * a / (2 * jerk)  # of velocity, by the time that the acceleration is 0
        if size > self._most_a or abs(a - now[2]) > self._most_step:
            return False
        if abs(v) > self._most_v or abs(v + kick) > self._most_v:
            return False
        # Between the periods' ends it may have been faster; on average it was not.
        if abs(p - now[0]) > self._most_way:
            return False
        # The stop is never faster than this, and takes no longer: mostly it is far from a limit.
        fastest = abs(v) + abs(kick)
        far = fastest * ((size + most) / jerk + fastest / most)
        if self._low <= p - far and p + far <= self._high:
            return True
        below, above = stop.reach(v, a, most, jerk)
        return self._low <= p + below and p + above <= self._high

    def clipped(self, state: State) -> State:
        """A state whose position is, by rounding, outside the limits."""
        return min(max(state[0], self.lower), self.upper), state[1], state[2]

    def ends_outside(self, then: State) -> bool:
        """Whether the fastest stop from a state ends outside the limits of position."""
        below, above = stop.reach(then[1], then[2], self.acceleration, self.jerk)
        return then[0] + below < self._low or then[0] + above > self._high

    def stopped(self, now: State) -> State:
        """One period of the fastest stop."""
        return stop.advance(*now, self.acceleration, self.jerk, self._t)

    def reference(
        self, before: tuple[float, float] | None, position: float, velocity: float
    ) -> Reference:
        """The target with what its last period says of its acceleration and jerk.

        Both are 0 where it jumps, moves beyond the limits, or was not known before.

        Args:
            before: Position and velocity of the target one period earlier, where known.
            position: Its position now.
            velocity: Its velocity now.
        """
        if before is None:
            return Reference(position, velocity)
        start, end = cubic(*before, position, velocity, self._t)
        jerk = (end - start) / self._t
        if max(abs(start), abs(end)) > self.acceleration or abs(jerk) > self.jerk:
            return Reference(position, velocity)
        return Reference(position, velocity, end, jerk)

    def exact(self, now: State, position: float, velocity: float) -> State | None:
        """To the target by one cubic; None where that is not allowed.

        The cubic's acceleration may step where it begins. Three times this step plus what it adds
        by its jerk must be within jerk times period: then the differences of acceleration, the
        second of velocity and the third of position all keep the jerk, whatever was before and
        comes after. For they are averages of jerk under B-splines of degree 0 to 2, whose value at
        a knot is at most three times the share of the period that follows it.
        """
        start, end = cubic(now[0], now[1], position, velocity, self._t)
        if 3 * abs(start - now[2]) + abs(end - start) > self._most_step:
            return None
        then = (position, velocity, end)
        return then if abs(start) <= self._most_a and self.allows(now, then) else None

    def soft(self, now: State, goal: Reference) -> State | None:
        """The reference's jerk plus the first of the least-jerk way to it; None if not allowed."""
        t, jerk = self._t, goal.jerk
        p, v, a = now
        # Distances from where the reference is now.
        e0 = p - goal.position
        e0 += (goal.velocity - (goal.acceleration / 2 - jerk * t / 6) * t) * t
        e1 = v - goal.velocity + (goal.acceleration - jerk * t / 2) * t
        e2 = a - goal.acceleration + jerk * t
        for h in self._horizons:
            j = jerk - (60 * e0 / h + 36 * e1) / (h * h) - 9 * e2 / h
            if abs(j) <= EXCESS * self.jerk and abs(a + j * t) <= self.acceleration:
                j = min(max(j, -self.jerk), self.jerk)
                then = (p + (v + (a / 2 + j * t / 6) * t) * t, v + (a + j * t / 2) * t, a + j * t)
                return then if self.allows(now, then) else None
        return None


def cubic(p0: float, v0: float, p1: float, v1: float, t: float) -> tuple[float, float]:
    """Accelerations at both ends of the cubic from (p0, v0) to (p1, v1) in ``t`` [s]."""
    mean = (p1 - p0) / t
    return (6 * mean - 4 * v0 - 2 * v1) / t, (2 * v0 + 4 * v1 - 6 * mean) / t
