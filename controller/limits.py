"""Position, velocity, acceleration and jerk limits, one control period at a time.

The limiter holds a state (position, velocity, acceleration) of its own, the last set-point, and
takes it nearer to a moving target by one period per call. What it emits is always one of five
candidates, per dimension the first that is allowed:

1. *The target itself*, by one cubic from the state to the target's position and velocity. A
   reference within the limits is followed like this, without error and without chatter.
2. *A soft approach*: the distance to the reference decays over some periods. It takes up the
   small jumps of acceleration that a piecewise cubic has at its knots.
3. *The fastest approach*, by ruckig, seen from the moving target: in its frame the target stands
   still, so that it is met and not chased.
4. *The fastest approach to the target as if it stood still*, by ruckig.
5. *The fastest stop*.

Allowed is a state that keeps velocity, acceleration and jerk, and from which the fastest stop
stays within the limits of position and velocity. Ruckig's free version does not know limits of
position; but a stop can always be gone on with, so candidate 5 of an allowed state is allowed,
and by induction no sequence of targets leads past a limit.

What to expect at 200 Hz under 5 rad/s, 40 rad/s^2, 2000 rad/s^3: sines that use up to 95 % of
the acceleration are followed exactly once they are caught. A piecewise cubic (Hermite, 25 Hz) has
steps of acceleration at its knots; up to a third of jerk times period they are followed exactly,
larger ones are rounded off within some 10 periods, with errors of 1 mrad and less where the
reference uses a third of the limits. A reference that is beyond the limits is followed badly:
make it slower before, not here. Give float64; the rounding of float32 looks like jerk.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from controller import stop
from controller.approach import Approach
from controller.errors import ErrorCode, OnsetError

Array = NDArray[np.float64]
State = tuple[Array, Array, Array]

# A position this far outside the limits is taken as the nearest allowed [share of the range].
RESET_TOLERANCE = 0.02
# Rounding that is let pass [share of the limit].
ROUNDING = 1e-10
# How near is on target [share of the range, of the velocity limit].
ON_TARGET = 1e-9
# The soft approach takes the first of these times whose jerk is within the limits [s]. The first
# is about a policy's period: shorter ones answer each knot of a piecewise cubic with full jerk.
SOFT_S = (0.05, 0.1, 0.2)
# But not less than this many periods; a loop of less than 5 would not be stable.
SOFT_PERIODS = 6


class LimitCode(StrEnum):
    """What a period came to.

    ON_TARGET: every dimension is where it should be. MOVING: one or more are not, yet. CLIPPED:
    a target was outside the limits of position or velocity; it was cut. ERROR: a target was not
    finite or not of the right shape, or ruckig found no way; the arm brakes where it must.
    """

    ON_TARGET = "on_target"
    MOVING = "moving"
    CLIPPED = "clipped"
    ERROR = "error"


@dataclass(frozen=True)
class MotionLimits:
    """Limits of each action dimension, in its unit and s.

    Attributes:
        names: Action dimensions, in order. Length A.
        lower: Least position. Shape (A,).
        upper: Greatest position. Shape (A,).
        velocity: Greatest speed either way [unit/s]. Shape (A,).
        acceleration: Greatest acceleration either way [unit/s^2]. Shape (A,).
        jerk: Greatest jerk either way [unit/s^3]. Shape (A,).

    Raises:
        OnsetError: BAD_NAMES, BAD_SHAPE or BAD_VALUE; the message names the joint and the limit.
    """

    names: tuple[str, ...]
    lower: Array
    upper: Array
    velocity: Array
    acceleration: Array
    jerk: Array

    def __post_init__(self) -> None:
        count = len(self.names)
        if not count or len(set(self.names)) != count or not all(self.names):
            raise OnsetError(
                ErrorCode.BAD_NAMES, "limits.names", list(self.names), "one or more distinct names"
            )
        for field in ("lower", "upper", "velocity", "acceleration", "jerk"):
            values = np.array(getattr(self, field), dtype=np.float64)
            if values.shape != (count,):
                raise OnsetError(
                    ErrorCode.BAD_SHAPE, f"limits.{field}", f"shape {values.shape}", f"({count},)"
                )
            above = -np.inf if field in ("lower", "upper") else 0.0
            wrong = ~(np.isfinite(values) & (values > above))
            if wrong.any():
                i = int(np.argmax(wrong))
                allowed = "a finite value" if above else "above 0, finite"
                raise OnsetError(
                    ErrorCode.BAD_VALUE, f"limits[{self.names[i]}].{field}", values[i], allowed
                )
            values.flags.writeable = False
            object.__setattr__(self, field, values)
        wrong = ~(self.lower < self.upper)
        if wrong.any():
            i = int(np.argmax(wrong))
            raise OnsetError(
                ErrorCode.BAD_VALUE,
                f"limits[{self.names[i]}].position",
                f"[{self.lower[i]}, {self.upper[i]}]",
                "lower < upper",
            )


class Limiter:
    """Takes set-points to targets within the limits, one period per call.

    Attributes:
        limits: The limits.
        position: Set-point after the last call. Shape (A,).
        velocity: Its velocity [unit/s]. Shape (A,).
        acceleration: Its acceleration [unit/s^2]. Shape (A,).
        limited: Bit i: dimension i was not on its target after the last ``towards``.
    """

    def __init__(self, limits: MotionLimits, period_ns: int) -> None:
        """Makes a limiter at rest in the middle of its limits; ``reset`` says where it is.

        Args:
            limits: The limits.
            period_ns: Control period [ns].

        Raises:
            OnsetError: BAD_VALUE when the period is not positive.
        """
        if period_ns <= 0:
            raise OnsetError(
                ErrorCode.BAD_VALUE, "period_ns", period_ns, "a positive duration [ns]"
            )
        self.limits = limits
        self._t = period_ns / 1e9
        self._span = limits.upper - limits.lower
        # The rounding of numbers as large as the position's, not only of its range.
        self._slack = 1e-13 * np.maximum(np.abs(limits.lower), np.abs(limits.upper))
        self._slack += 1e-12 * self._span
        self._approach = Approach(limits.velocity, limits.acceleration, limits.jerk, self._t)
        self._horizons = [max(h, SOFT_PERIODS * self._t) for h in SOFT_S]
        self._bits = [1 << i for i in range(len(limits.names))]
        self._rest_at((limits.lower + limits.upper) / 2)

    def reset(self, position: NDArray[np.floating]) -> None:
        """Begins at rest.

        Args:
            position: Where. Shape (A,). A little outside the limits is taken as the nearest
                allowed: encoders and calibrations are not exact.

        Raises:
            OnsetError: BAD_SHAPE, NON_FINITE, or BAD_VALUE where a joint is outside its limits.
        """
        at, low, high = np.array(position, dtype=np.float64), self.limits.lower, self.limits.upper
        names = self.limits.names
        if at.shape != low.shape:
            raise OnsetError(ErrorCode.BAD_SHAPE, "position", f"shape {at.shape}", f"{low.shape}")
        if not np.isfinite(at).all():
            i = int(np.argmin(np.isfinite(at)))
            raise OnsetError(ErrorCode.NON_FINITE, f"position[{names[i]}]", at[i], "finite values")
        outside = np.maximum(low - at, at - high) / self._span
        if (outside > RESET_TOLERANCE).any():
            i = int(np.argmax(outside))
            raise OnsetError(
                ErrorCode.BAD_VALUE,
                f"position[{names[i]}]",
                f"{at[i]:.6g}",
                f"{low[i]:.6g}..{high[i]:.6g}; move it by hand to within its limits",
            )
        self._rest_at(np.clip(at, low, high))

    def _rest_at(self, position: Array) -> None:
        self.position = position
        self.velocity, self.acceleration = np.zeros_like(position), np.zeros_like(position)
        self.limited = 0
        self._last: tuple[Array, Array] | None = None  # target of the call before

    @property
    def at_rest(self) -> bool:
        """Whether nothing moves."""
        return not (self.velocity.any() or self.acceleration.any())

    def towards(
        self, position: NDArray[np.floating], velocity: NDArray[np.floating] | None = None
    ) -> LimitCode:
        """Goes on by one period, nearer to a target.

        Args:
            position: Where the target will be at the end of this period. Shape (A,).
            velocity: How fast it will be moving then. Shape (A,). None for a target that stands
                still, which is gone to in the least time.
        """
        p = np.asarray(position, dtype=np.float64)
        v = np.zeros_like(p) if velocity is None else np.asarray(velocity, dtype=np.float64)
        if not (
            p.shape == v.shape == self.position.shape
            and np.isfinite(p).all()
            and np.isfinite(v).all()
        ):
            self.brake()
            self.limited = sum(self._bits)
            return LimitCode.ERROR
        limits = self.limits
        goal = np.minimum(np.maximum(p, limits.lower), limits.upper)
        speed = np.minimum(np.maximum(v, -limits.velocity), limits.velocity)
        outside = goal != p
        # Cut, it stands at the limit, whatever it does behind it.
        speed = np.where(outside, 0.0, speed)
        error = self._move(goal, speed, moving=velocity is not None)
        off = (np.abs(self.position - p) > ON_TARGET * self._span) | (
            np.abs(self.velocity - v) > ON_TARGET * limits.velocity
        )
        self.limited = sum(b for b, o in zip(self._bits, off.tolist(), strict=True) if o)
        if error:
            return LimitCode.ERROR
        if (outside | (speed != v)).any():
            return LimitCode.CLIPPED
        return LimitCode.MOVING if self.limited else LimitCode.ON_TARGET

    def brake(self) -> LimitCode:
        """Goes on by one period of the fastest stop: ON_TARGET once at rest."""
        self._last, self.limited = None, 0
        self._set(self._stopped())
        return LimitCode.ON_TARGET if self.at_rest else LimitCode.MOVING

    def _stopped(self) -> State:
        limits = self.limits
        return stop.advance(
            self.position, self.velocity, self.acceleration,
            limits.acceleration, limits.jerk, self._t,
        )  # fmt: skip

    def _set(self, state: State) -> None:
        p, self.velocity, self.acceleration = state
        self.position = np.minimum(np.maximum(p, self.limits.lower), self.limits.upper)

    def _move(self, goal: Array, speed: Array, *, moving: bool) -> bool:
        """Takes each dimension's first allowed candidate; returns whether ruckig found no way."""
        before, self._last = self._last, (goal, speed) if moving else None
        now: State = (self.position, self.velocity, self.acceleration)
        still = np.zeros_like(goal)
        if moving:
            best, done = self._exact(goal, speed)
            if done.all():
                self._set(best)
                return False
            follow, bend = self._motion_of(before, goal, speed)
            soft, allowed = self._soft(goal, speed, follow, bend)
            best, done = _choose(best, done, soft, allowed)
            approaches = ((speed, follow), (still, still))
        else:
            best, done = now, (self.position == goal) & (self.velocity == 0)
            done &= self.acceleration == 0
            approaches = ((still, still),)
        failed = False
        for rate, gain in approaches:
            if done.all():
                break
            fastest = self._approach.step(now, goal, rate, gain)
            failed = fastest is None
            if fastest is not None:
                best, done = _choose(best, done, fastest, self._allowed(fastest))
        if not done.all():
            best, _ = _choose(best, done, self._stopped(), ~done)
        self._set(best)
        return failed

    def _motion_of(
        self, before: tuple[Array, Array] | None, goal: Array, speed: Array
    ) -> tuple[Array, Array]:
        """Acceleration and jerk of the reference; 0 where it jumps or is beyond the limits."""
        if before is None:
            return np.zeros_like(goal), np.zeros_like(goal)
        start, end = _cubic(*before, goal, speed, self._t)
        sane = np.maximum(np.abs(start), np.abs(end)) <= self.limits.acceleration
        sane &= np.abs(end - start) <= self.limits.jerk * self._t
        return np.where(sane, end, 0.0), np.where(sane, (end - start) / self._t, 0.0)

    def _exact(self, goal: Array, speed: Array) -> tuple[State, NDArray[np.bool_]]:
        """The target by one cubic, and where that is allowed.

        The cubic's acceleration may step where it begins. Three times this step plus what it adds
        by its jerk must be within jerk times period: then the differences of acceleration, the
        second of velocity and the third of position all keep the jerk, whatever was before and
        comes after. For they are its averages with the B-splines of degree 0 to 2, and these are
        at most 1/2 at a knot where that of a whole period is 1/6 (degree 2).
        """
        t, limits = self._t, self.limits
        start, end = _cubic(self.position, self.velocity, goal, speed, t)
        state = (goal, speed, end)
        ok = 3 * np.abs(start - self.acceleration) + np.abs(end - start) <= limits.jerk * t
        ok &= np.abs(start) <= limits.acceleration
        if ok.any():
            ok &= self._allowed(state)
        return state, ok

    def _soft(
        self, goal: Array, speed: Array, follow: Array, bend: Array
    ) -> tuple[State, NDArray[np.bool_]]:
        """The reference's jerk plus the first of the least-jerk way to it, and where allowed.

        Args:
            goal: The reference's position at the end of the period.
            speed: Its velocity then.
            follow: Its acceleration then.
            bend: Its jerk.
        """
        t, limits = self._t, self.limits
        p, v, a = self.position, self.velocity, self.acceleration
        # Distances from where the reference is now.
        e0 = p - goal + (speed - (follow / 2 - bend * (t / 6)) * t) * t
        e1 = v - speed + (follow - bend * (t / 2)) * t
        e2 = a - follow + bend * t
        jerk, ok = np.zeros_like(p), np.zeros(p.shape, dtype=np.bool_)
        for h in self._horizons:
            j = bend - (60 * e0 / h + 36 * e1) / (h * h) - 9 * e2 / h
            fits = (np.abs(j) <= limits.jerk) & (np.abs(a + j * t) <= limits.acceleration)
            jerk, ok = np.where(ok, jerk, j), ok | fits
            if ok.all():
                break
        jerk = np.where(ok, jerk, 0.0)
        state = (
            p + (v + (a / 2 + jerk * (t / 6)) * t) * t,
            v + (a + jerk * (t / 2)) * t,
            a + jerk * t,
        )
        return state, ok & self._allowed(state) if ok.any() else ok

    def _allowed(self, state: State) -> NDArray[np.bool_]:
        """Where a state keeps the limits, and so does the fastest stop from it. Shape (A,)."""
        p, v, a = state
        limits = self.limits
        most, jerk = limits.acceleration, limits.jerk
        kick = np.abs(a) * a / (2 * jerk)
        ok = np.abs(a) <= most * (1 + ROUNDING)
        ok &= np.abs(a - self.acceleration) <= jerk * (self._t * (1 + ROUNDING))
        ok &= np.maximum(np.abs(v), np.abs(v + kick)) <= limits.velocity * (1 + ROUNDING)
        # Between the periods' ends it may have been faster; on average it was not.
        ok &= np.abs(p - self.position) <= limits.velocity * (self._t * (1 + ROUNDING))
        # The stop is never faster than this, and takes no longer: mostly it is far from a limit.
        fastest = np.abs(v) + np.abs(kick)
        far = fastest * (np.abs(a) / jerk + fastest / most + most / jerk)
        low, high = limits.lower - self._slack, limits.upper + self._slack
        if ((p - far >= low) & (p + far <= high)).all():
            return ok
        below, above = stop.reach(v, a, most, jerk)
        return ok & (p + below >= low) & (p + above <= high)


def _cubic(p0: Array, v0: Array, p1: Array, v1: Array, t: float) -> tuple[Array, Array]:
    """Accelerations at both ends of the cubic from (p0, v0) to (p1, v1)."""
    mean = (p1 - p0) / t
    return (6 * mean - 4 * v0 - 2 * v1) / t, (2 * v0 + 4 * v1 - 6 * mean) / t


def _choose(
    best: State, done: NDArray[np.bool_], other: State, allowed: NDArray[np.bool_]
) -> tuple[State, NDArray[np.bool_]]:
    """Puts another candidate where none is chosen yet and it is allowed."""
    p, v, a = (np.where(done, x, y) for x, y in zip(best, other, strict=True))
    return (p, v, a), done | allowed
