"""The side that moves: a plan in, one limited set-point per control period out.

::

    plan --> action of this step --> ladder --> preview --> limiter --> checks --> set-point
             (finite?)               (mode)     (25 Hz      (ruckig:
                                                to 200)     v, a, j, position)

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
from controller.preview import PreviewTracker, sample
from controller.types import Float, RobotSpec
from controller.watchdog import Change, LadderConfig, Mode, Reason, Watchdog

Array = NDArray[np.float64]

_FAR = 4.0  # a jerk this much beyond the limit is left to the limiter


@dataclass(frozen=True)
class ExecutorConfig:
    """Settings of an executor.

    Attributes:
        control_period_ns: Time between ticks [ns]; divides the policy period.
        ladder: Thresholds of the modes.
        bandwidth: How fast the motion answers to what the plan did not tell beforehand, and so how
            much of the actions' scatter it lets through [rad/s].
    """

    control_period_ns: int
    ladder: LadderConfig = field(default_factory=LadderConfig)
    bandwidth: float = 30.0


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
        self._tracker = PreviewTracker(config.control_period_ns, config.bandwidth)
        self._tick = config.control_period_ns / spec.period_ns  # [steps]
        # Steps of the plan that the preview reaches into, the one under way among them.
        self._reach = 2 + int(self._tracker.ticks * self._tick)
        self.watchdog = Watchdog(config.ladder)
        self._state_index = [
            spec.state_names.index(n) if n in spec.state_names else -1 for n in spec.action_names
        ]
        checked = [d.unit != "1" for d in spec.action]
        self._checked = np.array([i >= 0 for i in self._state_index]) & np.array(checked)
        margin = config.ladder.outside * (limits.upper - limits.lower)
        self._lowest, self._highest = limits.lower - margin, limits.upper + margin
        self._is_reset = False

    def reset(self, now_ns: int, position: NDArray[np.floating]) -> None:
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

    def clear(self, now_ns: int, position: NDArray[np.floating]) -> Change | None:
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
        self._knots: Array | None = None  # where this step began, ends, and those after it end
        self._last_knot: Array | None = None  # where the step before was to end
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
            follows = self._knots is not None and index == self._index + 1
            self._last_knot = self._knots[1] if follows and self._knots is not None else None
            self._index = index
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
            if boundary or plan.version != self._version or self._knots is None:
                self._knots = self._take(now_ns, plan, before)
            self._follow(now_ns, self._knots)
        elif goal is not None and stop and self.watchdog.mode is Mode.HOLDING:
            self._limiter.towards(*goal)
            self._target = goal[0]
        else:
            self._knots, self._blend = None, None
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

    def _take(self, now_ns: int, plan: Plan, before: Mode) -> Array:
        """Where this step began and ends, and where those after it end. Shape (n, A)."""
        stopped = self._knots is None
        start = self._limiter.position.copy() if self._last_knot is None else self._last_knot
        if stopped and before is Mode.HOLDING and self._config.ladder.resume_ns:
            self._blend = (now_ns, self._limiter.position.copy())
        knots = [start]
        for step in range(self._index, self._index + self._reach):
            action = plan.action(step)
            if action is None or not np.isfinite(action).all():
                break
            knots.append(self._within(action))
        return np.stack(knots)

    def _within(self, action: Float) -> Array:
        return np.clip(action.astype(np.float64), self._limits.lower, self._limits.upper)

    def _follow(self, now_ns: int, knots: Array) -> None:
        """One period along the reference; blended in after holding."""
        limits, limiter, tracker = self._limits, self._limiter, self._tracker
        elapsed_ns = now_ns - self._begin_ns - self._index * self._spec.period_ns
        ahead = sample(knots, elapsed_ns / self._spec.period_ns, tracker.ticks, self._tick)
        if self._blend is not None:
            ahead = self._blended(now_ns, self._blend, ahead)
        self._target = ahead[0]
        jerk = tracker.jerk((limiter.position, limiter.velocity, limiter.acceleration), ahead)
        t = self._config.control_period_ns * 1e-9
        # Within the limits of jerk and acceleration this is what the limiter will do exactly; far
        # beyond them linear control would overshoot, and the limiter's own way is taken.
        far = np.abs(jerk) > _FAR * limits.jerk
        least = np.maximum(-limits.jerk, (-limits.acceleration - limiter.acceleration) / t)
        most = np.minimum(limits.jerk, (limits.acceleration - limiter.acceleration) / t)
        jerk = np.minimum(np.maximum(jerk, least), most)
        speed = limiter.velocity + t * (limiter.acceleration + t / 2 * jerk)
        place = limiter.position + t * (
            limiter.velocity + t * (limiter.acceleration / 2 + t / 6 * jerk)
        )
        rate = (ahead[1] - ahead[0]) / t
        limiter.towards(np.where(far, ahead[0], place), np.where(far, rate, speed))

    def _blended(self, now_ns: int, blend: tuple[int, Array], ahead: Array) -> Array:
        """From where the arm was held to the reference, in a smooth step."""
        since_ns, held = blend
        period_ns, length_ns = self._config.control_period_ns, self._config.ladder.resume_ns
        after_ns = now_ns - since_ns + period_ns * np.arange(1, len(ahead) + 1)
        if after_ns[0] >= length_ns:
            self._blend = None
            return ahead
        u = np.minimum(after_ns / length_ns, 1.0)[:, None]
        return held + u * u * (3 - 2 * u) * (ahead - held)

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
