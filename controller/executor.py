"""The side that moves: a plan in, one limited set-point per control period out.

::

    plan --> action of this step --> cubic --> ladder --> limiter --> checks --> set-point
             (finite?)               (25 Hz    (mode)     (ruckig:
                                     to 200)              v, a, j, position)

``tick`` reads no clock, waits for nobody and knows neither robot nor network, so it is the same in
a process of its own and in virtual time. One tick is one control period of motion, also where
ticks were missed: then the set-point is late and no jump.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from controller.errors import ErrorCode, OnsetError
from controller.limits import Limiter, MotionLimits
from controller.plan import Plan
from controller.spline import Cubic, slope
from controller.types import Float, RobotSpec
from controller.watchdog import Change, LadderConfig, Mode, Reason, Watchdog

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ExecutorConfig:
    """Settings of an executor.

    Attributes:
        control_period_ns: Time between ticks [ns]; divides the policy period.
        ladder: Thresholds of the modes.
    """

    control_period_ns: int
    ladder: LadderConfig = field(default_factory=LadderConfig)


@dataclass(frozen=True)
class Execution:
    """What one tick decided.

    Attributes:
        step: The present step.
        boundary: Whether it began with this tick.
        mode: What the arm is doing.
        reason: Why.
        observation_id: The observation whose action drives the arm; -1 where none does.
        desired: The policy's action for this step as it came, or None. Shape (A,).
        target: Where the reference wanted to be at the end of this period. Shape (A,).
        command: The set-point to write. Shape (A,), units as in the spec.
        velocity: Of the command, per second. Shape (A,).
        acceleration: Of the command, per second squared. Shape (A,).
        clamped: Bit i: dimension i was held back by its limits.
        refused: Whether the policy's action was not finite.
        change: The change of mode, if there was one.
    """

    step: int
    boundary: bool
    mode: Mode
    reason: Reason
    observation_id: int
    desired: Float | None
    target: Array
    command: Array
    velocity: Array
    acceleration: Array
    clamped: int
    refused: bool
    change: Change | None


class Executor:
    """Moves along a plan within the limits; stops and holds when there is none."""

    def __init__(self, spec: RobotSpec, limits: MotionLimits, config: ExecutorConfig) -> None:
        """Makes an executor that does not know yet where the arm is: ``reset`` tells it.

        Raises:
            OnsetError: BAD_NAMES when the limits are of other dimensions than the actions;
                BAD_VALUE when the control period does not divide the policy period.
        """
        if limits.names != spec.action_names:
            raise OnsetError(ErrorCode.BAD_NAMES, "limits", limits.names, spec.action_names)
        if spec.period_ns % config.control_period_ns:
            raise OnsetError(
                ErrorCode.BAD_VALUE,
                "executor.control_period_ns",
                config.control_period_ns,
                f"a divisor of the policy period {spec.period_ns}",
            )
        self._spec, self._limits, self._config = spec, limits, config
        self._limiter = Limiter(limits, config.control_period_ns)
        self.watchdog = Watchdog(config.ladder)
        self._state_index = [
            spec.state_names.index(n) if n in spec.state_names else -1 for n in spec.action_names
        ]
        checked = [d.unit != "1" for d in spec.action]
        self._checked = np.array([i >= 0 for i in self._state_index]) & np.array(checked)
        margin = config.ladder.outside * (limits.upper - limits.lower)
        self._lowest, self._highest = limits.lower - margin, limits.upper + margin
        self._is_reset = False

    def reset(self, now_ns: int, position: Array) -> None:
        """The arm stands at ``position``; step 0 begins now.

        Args:
            now_ns: The present [ns], robot's clock.
            position: Measured, in the units of the actions. Shape (A,).

        Raises:
            OnsetError: A joint is well outside its limits.
        """
        self._limiter.reset(np.asarray(position, dtype=np.float64))
        self._off_since_ns: int | None = None
        self._is_reset = True
        self.begin(now_ns)

    def clear(self, now_ns: int, position: Array) -> Change | None:
        """Leaves FAULT: the arm holds where it is measured, until fresh actions come.

        Raises:
            OnsetError: A joint is well outside its limits.
        """
        begin_ns = self._begin_ns
        self.reset(begin_ns, position)
        return self.watchdog.reset(now_ns)

    def begin(self, now_ns: int) -> None:
        """Begins an episode: step 0 is now. The arm goes on from where it is."""
        self._begin_ns = now_ns
        self._index, self._version = -1, -1
        self._knot: Array | None = None  # where this step is to end
        self._last_knot: Array | None = None  # and the one before
        self._cubic: Cubic | None = None
        self._blend: tuple[int, Array] | None = None  # since when, and from where
        self._target = self._limiter.position.copy()

    @property
    def position(self) -> Array:
        """The command that stands. Shape (A,), units as in the spec."""
        return self._limiter.position

    @property
    def at_rest(self) -> bool:
        """Whether the command stands still."""
        return self._limiter.at_rest

    def tick(
        self,
        now_ns: int,
        plan: Plan,
        measured: Float | None = None,
        *,
        stop: bool = False,
        estop: bool = False,
        goal: tuple[Array, Array] | None = None,
    ) -> Execution:
        """Runs one control period.

        Args:
            now_ns: When this tick was due [ns], robot's clock.
            plan: The actions that stand.
            measured: The measured state, where it is known. Shape (S,).
            stop: Stop within the limits and hold, whatever the plan says.
            estop: Latch a fault.
            goal: Once stopped, go on to this position with this velocity, to be had at the end of
                this period: the way to a park pose. Each of shape (A,).

        Raises:
            OnsetError: NOT_OPEN before ``reset``.
        """
        if not self._is_reset:
            raise OnsetError(ErrorCode.NOT_OPEN, "executor", "not reset", "reset first")
        index = (now_ns - self._begin_ns) // self._spec.period_ns
        boundary = index != self._index
        if boundary:
            self._last_knot = self._knot if index == self._index + 1 else None
            self._knot, self._index = None, index
        desired = plan.action(index)
        refused = desired is not None and not np.isfinite(desired).all()
        before = self.watchdog.mode
        broken = Reason.ESTOP if estop else self._broken(now_ns, measured)
        if broken is not None:
            change = self.watchdog.fault(now_ns, broken)
        else:
            change = self.watchdog.tick(
                now_ns,
                action=desired is not None and not refused,
                age_ns=now_ns - plan.renewed_ns,
                at_rest=self._limiter.at_rest,
                refused=refused,
                stop=stop,
            )
        driven = self.watchdog.mode in (Mode.RUNNING, Mode.COASTING)
        if driven:
            if boundary or plan.version != self._version or self._cubic is None:
                self._bend(now_ns, plan, before)
            if self._cubic is not None:
                self._follow(now_ns, self._cubic)
        elif goal is not None and stop and self.watchdog.mode is Mode.HOLDING:
            self._limiter.towards(*goal)
            self._target = goal[0]
        else:
            self._cubic, self._blend = None, None
            self._limiter.brake()
            self._target = self._limiter.position.copy()
        self._version = plan.version
        if not np.isfinite(self._limiter.position).all():
            change = self.watchdog.fault(now_ns, Reason.NOT_FINITE) or change
        return Execution(
            step=index,
            boundary=boundary,
            mode=self.watchdog.mode,
            reason=self.watchdog.reason,
            observation_id=plan.observation_id(index) if driven else -1,
            desired=desired,
            target=self._target,
            command=self._limiter.position.copy(),
            velocity=self._limiter.velocity.copy(),
            acceleration=self._limiter.acceleration.copy(),
            clamped=self._limiter.limited if driven else 0,
            refused=refused,
            change=change,
        )

    def _bend(self, now_ns: int, plan: Plan, before: Mode) -> None:
        """Makes the cubic from the present reference to the action at the end of this step."""
        period_ns, index = self._spec.period_ns, self._index
        end_ns = self._begin_ns + (index + 1) * period_ns
        if self._cubic is None:
            # After a stop the reference begins where the command is.
            position, velocity = self._limiter.position.copy(), self._limiter.velocity.copy()
            if before is Mode.HOLDING and self._config.ladder.resume_ns:
                self._blend = (now_ns, position)
        else:
            position, velocity = self._cubic.at(now_ns)
        self._knot = self._within(plan.actions[index - plan.first_step])
        after = plan.action(index + 1)
        ending = np.zeros_like(position)
        if after is not None and np.isfinite(after).all():
            seconds = period_ns * 1e-9
            start = position if self._last_knot is None else self._last_knot
            ahead = (self._within(after) - self._knot) / seconds
            ending = slope((self._knot - start) / seconds, ahead)
        self._cubic = Cubic(now_ns, end_ns - now_ns, position, velocity, self._knot, ending)

    def _within(self, action: Float) -> Array:
        return np.clip(action.astype(np.float64), self._limits.lower, self._limits.upper)

    def _follow(self, now_ns: int, cubic: Cubic) -> None:
        """One period along the reference; blended in after holding."""
        position, velocity = cubic.at(now_ns + self._config.control_period_ns)
        if self._blend is not None:
            position, velocity = self._blended(now_ns, self._blend, position, velocity)
        self._target = np.clip(position, self._limits.lower, self._limits.upper)
        self._limiter.towards(self._target, velocity)

    def _blended(
        self, now_ns: int, blend: tuple[int, Array], position: Array, velocity: Array
    ) -> tuple[Array, Array]:
        """From where the arm was held to the reference, in a smooth step."""
        since_ns, held = blend
        length_ns = self._config.ladder.resume_ns
        u = (now_ns + self._config.control_period_ns - since_ns) / length_ns
        if u >= 1:
            self._blend = None
            return position, velocity
        share, rate = u * u * (3 - 2 * u), 6 * u * (1 - u) / (length_ns * 1e-9)
        away = position - held
        return held + share * away, share * velocity + rate * away

    def _broken(self, now_ns: int, measured: Float | None) -> Reason | None:
        """What the measured joints say against going on."""
        if measured is None:
            return None
        joints = measured[self._state_index]
        checked = self._checked
        if not np.isfinite(joints[checked]).all():
            return Reason.ROBOT
        if ((joints < self._lowest) | (joints > self._highest))[checked].any():
            return Reason.LIMIT
        bound = self._config.ladder.tracking
        if bound is None or (np.abs(joints - self._limiter.position)[checked] <= bound).all():
            self._off_since_ns = None
            return None
        if self._off_since_ns is None:
            self._off_since_ns = now_ns
        lasted = now_ns - self._off_since_ns >= self._config.ladder.tracking_ns
        return Reason.TRACKING if lasted else None
