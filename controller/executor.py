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
from math import isfinite, sumprod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from controller.axis import State
from controller.errors import ErrorCode, OnsetError
from controller.limits import Limiter, MotionLimits
from controller.plan import Ahead
from controller.preview import PreviewTracker, between, sample_weights
from controller.types import Float, RobotSpec
from controller.watchdog import Change, LadderConfig, Mode, Reason, Watchdog

Array = NDArray[np.float64]

_PHASES = 256  # times within a step for which weights are kept
# Bandwidth that limits leave room for [share of jerk / acceleration, the least over dimensions].
# Linear control that is faster is cut all the time, and swings: measured, from 1.3 on.
_ROOM = 0.7


@dataclass(frozen=True)
class ExecutorConfig:
    """Settings of an executor.

    Attributes:
        control_period_ns: Time between ticks [ns]; divides the policy period.
        ladder: Thresholds of the modes.
        bandwidth: How fast the motion answers to what the plan did not tell beforehand, and so how
            much of the actions' scatter it lets through [rad/s]. Less under slow limits, which
            would make faster control swing, and at a low control rate.
    """

    control_period_ns: int
    ladder: LadderConfig = field(default_factory=LadderConfig)
    bandwidth: float = 45.0


class Execution(NamedTuple):
    """What one tick decided.

    Attributes:
        step: The present step.
        boundary: Whether it began with this tick.
        mode: What the arm is doing.
        reason: Why.
        observation_id: The observation whose action drives the arm; -1 where none does.
        desired: The policy's action for this step as it came, or None. Length A.
        target: Where the reference wanted to be at the end of this period. Length A.
        states: The set-point to write, units as in the spec, its velocity and acceleration, per
            second and per second squared; by dimension. Length A.
        clamped: Bit i: dimension i was held back by its limits, or its action is outside of them.
        refused: Whether the policy's action was not finite.
        change: The change of mode, if there was one.
    """

    step: int
    boundary: bool
    mode: Mode
    reason: Reason
    observation_id: int
    desired: list[float] | None
    target: list[float]
    states: list[State]
    clamped: int
    refused: bool
    change: Change | None

    @property
    def command(self) -> Array:
        """The set-point to write. Shape (A,)."""
        return np.array([p for p, _, _ in self.states])


class _Weights(NamedTuple):
    """What the knots weigh at a tick, in what is made of them.

    Attributes:
        drive: In the jerk that the reference asks for. Length n.
        next: The reference at the next tick: the knot before it, and the share of the way on.
        after: And at the one after.
        samples: In the reference at every tick that the preview reaches. Shape (ticks, n).
    """

    drive: list[float]
    next: tuple[int, float]
    after: tuple[int, float]
    samples: Array


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
        room = _ROOM * float((limits.jerk / limits.acceleration).min())
        fastest = 0.5e9 / config.control_period_ns  # what the control rate leaves room for
        bandwidth = min(config.bandwidth, room, fastest)
        self._tracker = PreviewTracker(config.control_period_ns, bandwidth)
        self._tick = config.control_period_ns / spec.period_ns  # [steps]
        # Steps of the plan that the preview reaches into, the one under way among them.
        self._reach = 2 + int(self._tracker.ticks * self._tick)
        self.watchdog = Watchdog(config.ladder)
        self._state_index = [
            spec.state_names.index(n) if n in spec.state_names else -1 for n in spec.action_names
        ]
        margin = config.ladder.outside * (limits.upper - limits.lower)
        self._checked = [
            (i, at, float(limits.lower[i] - margin[i]), float(limits.upper[i] + margin[i]))
            for i, (at, d) in enumerate(zip(self._state_index, spec.action, strict=True))
            if at >= 0 and d.unit != "1"
        ]
        ends = limits.lower, limits.upper
        self._range = list(zip(*(v.tolist() for v in ends), strict=True))
        # As the wire rounds them.
        wired = (v.astype(np.float32).tolist() for v in ends)
        self._wire_range = list(zip(*wired, strict=True))
        k = self._tracker.feedback.tolist()
        self._feedback = (k[0], k[1], k[2])
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

        In any other mode nothing happens: a command must not jump to the measurement.

        Raises:
            OnsetError: UNAVAILABLE while the arm still stops; or a joint is well outside its
                limits.
        """
        if self.watchdog.mode is not Mode.FAULT:
            return None
        if self._limiter.finite and not self._limiter.at_rest:
            raise OnsetError(
                ErrorCode.UNAVAILABLE, "executor.clear", "a moving arm", "an arm that has stopped"
            )
        index = self._index
        self.reset(self._begin_ns, position)
        self._index = index  # this step goes on, it does not begin again
        return self.watchdog.reset(now_ns)

    def begin(self, now_ns: int) -> None:
        """Begins an episode: step 0 is now. The arm goes on from where it is."""
        self._begin_ns = now_ns
        self._index, self._version = -1, -1
        # Of each dimension: where this step began, ends, and those after it end.
        self._knots: list[list[float]] | None = None
        self._last_knot: list[float] | None = None  # where the step before was to end
        self._blend: tuple[int, Array] | None = None  # since when, and from where
        self._target = self._stands
        self._weights: dict[int, _Weights] = {}  # of the knots, by the time since the step began
        self._taken = (-1, -1)  # step and version of the plan that ``_ahead`` is from
        self._ahead: list[list[float]] = []  # the actions of this step and those after it
        self._refused, self._cut = False, 0

    @property
    def position(self) -> Array:
        """The command that stands. Shape (A,), units as in the spec."""
        return self._limiter.position

    @property
    def _stands(self) -> list[float]:
        return [p for p, _, _ in self._limiter.states]

    @property
    def at_rest(self) -> bool:
        """Whether the command stands still."""
        return self._limiter.at_rest

    def tick(
        self,
        now_ns: int,
        plan: Ahead,
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
            last = [knots[1] for knots in self._knots] if follows and self._knots else None
            self._last_knot = last
            self._index = index
        if (index, plan.version) != self._taken:
            self._taken = (index, plan.version)
            self._ahead = plan.rows(index, self._reach)
            values = self._ahead[0] if self._ahead else []
            self._refused, self._cut = not all(map(isfinite, values)), self._outside(values)
        desired, refused = self._ahead[0] if self._ahead else None, self._refused
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
                self._knots = self._take(now_ns, before)
            self._follow(now_ns, self._knots)
        elif goal is not None and stop and self.watchdog.mode is Mode.HOLDING:
            self._limiter.towards(*goal)
            self._target = goal[0].tolist()
        else:
            self._knots, self._blend = None, None
            self._limiter.brake()
            self._target = self._stands
        self._version = plan.version
        if not self._limiter.finite:
            change = self.watchdog.fault(now_ns, Reason.NOT_FINITE) or change
        return Execution(
            step=index,
            boundary=boundary,
            mode=self.watchdog.mode,
            reason=self.watchdog.reason,
            observation_id=plan.observation_id(index) if driven else -1,
            desired=desired,
            target=self._target,
            states=self._limiter.states,  # the limiter makes new lists, it changes none
            clamped=self._limiter.limited | self._cut if driven else 0,
            refused=refused,
            change=change,
        )

    # In plain numbers: within a tick, which finds its caches cold, array operations take longer.

    def _take(self, now_ns: int, before: Mode) -> list[list[float]]:
        """Of each dimension, where this step began and ends, and where those after it end."""
        stopped = self._knots is None
        start = self._stands if self._last_knot is None else self._last_knot
        if stopped and before is Mode.HOLDING and self._config.ladder.resume_ns:
            self._blend = (now_ns, self._limiter.position)
        rows = [start]
        for action in self._ahead:
            if not all(map(isfinite, action)):
                break
            rows.append([min(max(v, a), b) for v, (a, b) in zip(action, self._range, strict=True)])
        rows += [rows[-1]] * (self._reach + 1 - len(rows))  # the last one is held
        return list(map(list, zip(*rows, strict=True)))

    def _outside(self, action: list[float]) -> int:
        """Bit i: dimension i of an action is outside its limits, as the wire rounds them."""
        wired = enumerate(zip(action, self._wire_range, strict=False))
        return sum(1 << i for i, (v, (lower, upper)) in wired if v < lower or v > upper)

    def _follow(self, now_ns: int, knots: list[list[float]]) -> None:
        """One period along the reference; blended in after holding."""
        elapsed_ns = now_ns - self._begin_ns - self._index * self._spec.period_ns
        weights = self._weights.get(elapsed_ns)
        if weights is None:
            weights = self._weights_at(elapsed_ns)
        t = self._config.control_period_ns * 1e-9
        if self._blend is None:
            (low, share), (low_1, share_1) = weights.next, weights.after
            drive = [sumprod(weights.drive, k) for k in knots]
            target = [k[low] + share * (k[low + 1] - k[low]) for k in knots]
            after = [k[low_1] + share_1 * (k[low_1 + 1] - k[low_1]) for k in knots]
            rate = [(b - a) / t for a, b in zip(target, after, strict=True)]
        else:
            ahead = self._blended(now_ns, self._blend, weights.samples @ np.array(knots).T)
            drive = (self._tracker.weights @ ahead).tolist()
            target, rate = ahead[0].tolist(), ((ahead[1] - ahead[0]) / t).tolist()
        self._target = target
        self._limiter.follow(self._feedback, drive, target, rate)

    def _weights_at(self, elapsed_ns: int) -> _Weights:
        """What knots weigh at a time within the step."""
        tracker, elapsed, count = self._tracker, elapsed_ns / self._spec.period_ns, self._reach + 1
        samples = sample_weights(elapsed, tracker.ticks, self._tick, count)
        drive = (tracker.weights @ samples).tolist()
        low, share = between(elapsed + self._tick * np.arange(1, 3), count)
        first, second = zip(low.tolist(), share.tolist(), strict=True)
        weights = _Weights(drive, first, second, samples)
        if len(self._weights) < _PHASES:  # more there are only where ticks keep no grid
            self._weights[elapsed_ns] = weights
        return weights

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
        joints, states = measured.tolist(), self._limiter.states
        bound, off = self._config.ladder.tracking, False
        for i, at, lowest, highest in self._checked:
            joint = joints[at]
            if not isfinite(joint):
                return Reason.ROBOT
            if not lowest <= joint <= highest:
                return Reason.LIMIT
            off = off or (bound is not None and abs(joint - states[i][0]) > bound)
        if not off:
            self._off_since_ns = None
            return None
        if self._off_since_ns is None:
            self._off_since_ns = now_ns
        lasted = now_ns - self._off_since_ns >= self._config.ladder.tracking_ns
        return Reason.TRACKING if lasted else None
