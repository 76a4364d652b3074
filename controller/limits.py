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

What to expect at 200 Hz under 5 rad/s, 40 rad/s^2, 2000 rad/s^3: sines that use up to 80 % of
the limits are followed exactly, once they are caught; above that it may take long to catch them.
A piecewise cubic (Hermite, 25 Hz) has steps of acceleration at its knots; up to a third of jerk
times period they are followed exactly, larger ones are rounded off within some 10 periods, with
errors below 1 mrad where the reference uses a third of the limits and below 3 mrad at 60 %.

Under slow limits (2 rad/s, 10 rad/s^2, 100 rad/s^3) keep to a third of them: sines at 30 % are
caught and followed, at 60 % a quarter of them is never caught. For an approach meets the target
where its velocity says it will be, which suits a glide and not a swing; a reference that is not
caught, or is beyond the limits, is followed badly, with swings of up to 5 times its own (within
the limits). Shape such a reference before, not here.
Give float64; the rounding of float32 looks like jerk.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from controller.approach import Approach
from controller.axis import Axis, Reference, State
from controller.errors import ErrorCode, OnsetError

Array = NDArray[np.float64]

FIELDS = ("lower", "upper", "velocity", "acceleration", "jerk")

# A position this far outside the limits is taken as the nearest allowed [share of the range].
RESET_TOLERANCE = 0.02
# How near is on target [share of the range, of the velocity limit].
ON_TARGET = 1e-9
# Linear control that asks for this much jerk is not followed [share of the limit].
FAR = 4.0
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
        for field in FIELDS:
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
        states: Set-point after the last call, its velocity and acceleration, by dimension.
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
        self._period_s = period_s = period_ns / 1e9
        horizons = [max(h, SOFT_PERIODS * period_s) for h in SOFT_S]
        rows = np.stack([getattr(limits, name) for name in FIELDS], axis=1).tolist()
        self._axes = [Axis(*row, period_s=period_s, horizons_s=horizons) for row in rows]
        self._approach = Approach(self._axes, period_s)
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
        outside = np.maximum(low - at, at - high) / (high - low)
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
        self._set([(p, 0.0, 0.0) for p in position.tolist()])
        self._halting = [False] * len(self._axes)  # stops at a limit of position, in ``follow``
        self.limited = 0
        # The targets of the call before: positions and velocities.
        self._last: tuple[list[float], list[float]] | None = None

    def _set(self, states: list[State]) -> None:
        self.states = [
            state if axis.lower <= state[0] <= axis.upper else axis.clipped(state)
            for state, axis in zip(states, self._axes, strict=True)
        ]

    @property
    def position(self) -> Array:
        """The set-point. Shape (A,)."""
        return np.array([p for p, _, _ in self.states])

    @property
    def velocity(self) -> Array:
        """Its velocity [unit/s]. Shape (A,)."""
        return np.array([v for _, v, _ in self.states])

    @property
    def acceleration(self) -> Array:
        """Its acceleration [unit/s^2]. Shape (A,)."""
        return np.array([a for _, _, a in self.states])

    @property
    def finite(self) -> bool:
        """Whether the state is; it always should be."""
        return all(isfinite(p + v + a) for p, v, a in self.states)

    @property
    def at_rest(self) -> bool:
        """Whether nothing moves."""
        return all(v == 0 and a == 0 for _, v, a in self.states)

    def towards(
        self, position: NDArray[np.floating], velocity: NDArray[np.floating] | None = None
    ) -> LimitCode:
        """Goes on by one period, nearer to a target.

        Args:
            position: Where the target will be at the end of this period. Shape (A,).
            velocity: How fast it will be moving then. Shape (A,). None for a target that stands
                still, which is gone to in the least time.
        """
        goal = np.asarray(position, dtype=np.float64)
        speed = np.zeros_like(goal) if velocity is None else np.asarray(velocity, np.float64)
        shape = self.limits.lower.shape
        if goal.shape != shape or speed.shape != shape:
            return self._refuse()
        asked = list(zip(goal.tolist(), speed.tolist(), strict=True))
        if not all(isfinite(p) and isfinite(v) for p, v in asked):
            return self._refuse()
        cut = []
        for (p, v), axis in zip(asked, self._axes, strict=True):
            at = min(max(p, axis.lower), axis.upper)
            # Cut, it stands at the limit, whatever it does behind it.
            cut.append((at, min(max(v, -axis.velocity), axis.velocity) if at == p else 0.0))
        states, failed = self._move(cut, moving=velocity is not None)
        self._set(states)
        self.limited = 0
        for i, ((p, v), (at, rate, _), axis) in enumerate(
            zip(asked, self.states, self._axes, strict=True)
        ):
            near = ON_TARGET * (axis.upper - axis.lower), ON_TARGET * axis.velocity
            if abs(at - p) > near[0] or abs(rate - v) > near[1]:
                self.limited |= 1 << i
        if failed:
            return LimitCode.ERROR
        if cut != asked:
            return LimitCode.CLIPPED
        return LimitCode.MOVING if self.limited else LimitCode.ON_TARGET

    def follow(
        self,
        feedback: tuple[float, float, float],
        drive: list[float],
        position: list[float],
        velocity: list[float],
    ) -> LimitCode:
        """Goes on by one period under linear control, where the limits leave room for it.

        The jerk is ``drive`` less ``feedback`` times the state, cut to the limits of jerk and
        acceleration. A dimension that asks for much more jerk than there is, or may not do what it
        asks for, goes nearer to its target as in ``towards``: linear control that is cut all the
        time swings. One that would pass a limit of position stops there before it goes on: the
        stop is so much harder than the control that, left half way, it would bounce for ever.

        Args:
            feedback: Weights of position, velocity and acceleration.
            drive: What the target asks for. Length A.
            position: Where the target will be at the end of this period. Length A.
            velocity: How fast it will be moving then. Length A.
        """
        if not isfinite(sum(drive) + sum(position) + sum(velocity)):
            return self._refuse()
        t, (k0, k1, k2) = self._period_s, feedback
        then: list[State | None] = []
        self.limited = 0
        for i, ((p, v, a), axis) in enumerate(zip(self.states, self._axes, strict=True)):
            if self._halting[i] and (v != 0 or a != 0):
                self.limited |= 1 << i
                then.append(axis.stopped((p, v, a)))
                continue
            self._halting[i] = False
            asked = drive[i] - k0 * p - k1 * v - k2 * a
            most, least = (axis.acceleration - a) / t, (-axis.acceleration - a) / t
            most = most if most < axis.jerk else axis.jerk
            least = least if least > -axis.jerk else -axis.jerk
            j = asked
            if not least <= asked <= most:
                j = min(max(asked, least), most)
                self.limited |= 1 << i
                if abs(asked) > FAR * axis.jerk:
                    then.append(None)
                    continue
            state = p + (v + (a / 2 + j * t / 6) * t) * t, v + (a + j * t / 2) * t, a + j * t
            if axis.allows((p, v, a), state):
                then.append(state)
            elif axis.ends_outside(state):
                self._halting[i] = True
                self.limited |= 1 << i
                then.append(axis.stopped((p, v, a)))
            else:
                then.append(None)
        failed = False
        if None in then:
            self.limited |= sum(1 << i for i, state in enumerate(then) if state is None)
            goal = self._within(position, velocity)
            states, failed = self._move(goal, moving=True, chosen=then)
        else:
            states, self._last = (
                [state for state in then if state is not None],
                (position, velocity),
            )
        self._set(states)
        if failed:
            return LimitCode.ERROR
        return LimitCode.MOVING if self.limited else LimitCode.ON_TARGET

    def _within(self, position: list[float], velocity: list[float]) -> list[tuple[float, float]]:
        """Targets, cut to the limits of position and velocity."""
        return [
            (min(max(at, axis.lower), axis.upper), min(max(v, -axis.velocity), axis.velocity))
            for at, v, axis in zip(position, velocity, self._axes, strict=True)
        ]

    def brake(self) -> LimitCode:
        """Goes on by one period of the fastest stop: ON_TARGET once at rest."""
        self._last, self.limited = None, 0
        self._halting = [False] * len(self._axes)
        self._set([axis.stopped(now) for axis, now in zip(self._axes, self.states, strict=True)])
        return LimitCode.ON_TARGET if self.at_rest else LimitCode.MOVING

    def _refuse(self) -> LimitCode:
        self.brake()
        self.limited = (1 << len(self._axes)) - 1
        return LimitCode.ERROR

    def _move(
        self,
        goal: list[tuple[float, float]],
        *,
        moving: bool,
        chosen: list[State | None] | None = None,
    ) -> tuple[list[State], bool]:
        """Returns each dimension's first allowed candidate, and whether ruckig found no way.

        Args:
            goal: Position and velocity of each dimension's target.
            moving: Whether it moves.
            chosen: What has been found already, by dimension.
        """
        now, axes = self.states, self._axes
        then: list[State | None] = chosen or [None] * len(axes)
        before = self._within(*self._last) if self._last else [None] * len(axes)
        self._last = ([p for p, _ in goal], [v for _, v in goal]) if moving else None
        still = [Reference(p, 0.0) for p, _ in goal]
        goals = still.copy()
        for i, axis in enumerate(axes):
            if then[i] is not None:
                continue
            if not moving:
                then[i] = now[i] if now[i] == (goal[i][0], 0.0, 0.0) else None
                continue
            then[i] = axis.exact(now[i], *goal[i])
            if then[i] is None:
                goals[i] = axis.reference(before[i], *goal[i])
                then[i] = axis.soft(now[i], goals[i])
        failed = False
        for asked in (goals, still) if moving else (still,):
            if None not in then:
                break
            fastest = self._approach.step(now, asked)
            failed = fastest is None
            for i, state in enumerate(fastest or ()):
                if then[i] is None and axes[i].allows(now[i], state):
                    then[i] = state
        return [
            axis.stopped(state) if found is None else found
            for axis, state, found in zip(axes, now, then, strict=True)
        ], failed
