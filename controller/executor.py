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
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from controller.errors import ErrorCode, OnsetError
from controller.limits import Limiter, MotionLimits
from controller.plan import Plan
from controller.preview import PreviewTracker, sample_weights
from controller.types import Float, RobotSpec
from controller.watchdog import Change, LadderConfig, Mode, Reason, Watchdog

Array = NDArray[np.float64]

_PHASES = 256  # times within a step for which weights are kept

# Of each tick of a step: the reference, shape (n, A); drive, reference and its rate.
Moves = tuple[Array, list[list[list[float]]]]
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
        clamped: Bit i: dimension i was held back by its limits, or its action is outside of them.
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
        self._knots: Array | None = None  # where this step began, ends, and those after it end
        self._last_knot: Array | None = None  # where the step before was to end
        self._blend: tuple[int, Array] | None = None  # since when, and from where
        self._target = self._limiter.position
        self._weights: dict[int, Array] = {}  # of the knots, by the time since the step began
        self._grid: tuple[int, Array] | None = None  # those of all ticks of a step, and its phase
        self._phase = -1  # of the tick before within its period
        self._moves: Moves | None = None  # what the ticks of this step come to, for these knots
        self._taken = (-1, -1)  # step and version of the plan that ``_desired`` is from
        self._desired: Float | None = None
        self._refused, self._cut = False, 0

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
        if (index, plan.version) != self._taken:
            self._taken = (index, plan.version)
            self._desired = plan.action(index)
            values = [] if self._desired is None else self._desired.tolist()
            self._refused, self._cut = not all(map(isfinite, values)), self._outside(values)
        desired, refused = self._desired, self._refused
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
                self._knots, self._moves = self._take(now_ns, plan, before), None
            self._follow(now_ns, self._knots)
        elif goal is not None and stop and self.watchdog.mode is Mode.HOLDING:
            self._limiter.towards(*goal)
            self._target = goal[0]
        else:
            self._knots, self._blend = None, None
            self._limiter.brake()
            self._target = self._limiter.position
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
            command=self._limiter.position,  # the limiter makes new arrays, it changes none
            velocity=self._limiter.velocity,
            acceleration=self._limiter.acceleration,
            clamped=self._limiter.limited | self._cut if driven else 0,
            refused=refused,
            change=change,
        )

    def _take(self, now_ns: int, plan: Plan, before: Mode) -> Array:
        """Where this step began and ends, and where those after it end. Shape (n, A)."""
        stopped = self._knots is None
        start = self._limiter.position.copy() if self._last_knot is None else self._last_knot
        if stopped and before is Mode.HOLDING and self._config.ladder.resume_ns:
            self._blend = (now_ns, self._limiter.position.copy())
        # Plain numbers: within a tick, which finds its caches cold, array operations take longer.
        row = self._index - plan.first_step
        stand = slice(row, row + self._reach) if row >= 0 else slice(0)
        knots = [start.tolist()]
        for action, answers in zip(
            plan.actions[stand].tolist(), plan.observation_ids[stand].tolist(), strict=True
        ):
            if answers < 0 or not all(map(isfinite, action)):
                break
            knots.append([min(max(v, a), b) for v, (a, b) in zip(action, self._range, strict=True)])
        knots += [knots[-1]] * (self._reach + 1 - len(knots))  # the last one is held
        return np.array(knots)

    def _outside(self, action: list[float]) -> int:
        """Bit i: dimension i of an action is outside its limits, as the wire rounds them."""
        wired = enumerate(zip(action, self._wire_range, strict=False))
        return sum(1 << i for i, (v, (lower, upper)) in wired if v < lower or v > upper)

    def _follow(self, now_ns: int, knots: Array) -> None:
        """One period along the reference; blended in after holding."""
        elapsed_ns = now_ns - self._begin_ns - self._index * self._spec.period_ns
        t = self._config.control_period_ns * 1e-9
        phase = elapsed_ns % self._config.control_period_ns
        steady, self._phase = phase == self._phase, phase
        if self._blend is None and steady:
            if self._moves is None:
                self._moves = self._step_moves(phase, knots)
            targets, moves = self._moves
            k = elapsed_ns // self._config.control_period_ns
            self._target = targets[k]
            self._limiter.follow(self._feedback, *moves[k])
            return
        weights = self._weights.get(elapsed_ns)
        if weights is None:
            weights = self._weights_at(elapsed_ns)
        if self._blend is None:
            drive, target, rate = weights[:3] @ knots
        else:
            ahead = self._blended(now_ns, self._blend, weights[3:] @ knots)
            drive = self._tracker.weights @ ahead
            target, rate = ahead[0], (ahead[1] - ahead[0]) / t
        self._target = target
        self._limiter.follow(self._feedback, drive.tolist(), target.tolist(), rate.tolist())

    def _step_moves(self, phase: int, knots: Array) -> Moves:
        """What the ticks of a step come to, at once: an array operation a tick takes longer."""
        if self._grid is None or self._grid[0] != phase:
            times = range(phase, self._spec.period_ns, self._config.control_period_ns)
            self._grid = phase, np.concatenate([self._weights_at(at)[:3] for at in times])
        moves = (self._grid[1] @ knots).reshape(-1, 3, knots.shape[1])
        return moves[:, 1], moves.tolist()

    def _weights_at(self, elapsed_ns: int) -> Array:
        """What knots weigh at a time within the step. Shape (3 + ticks, n).

        For the tracker's drive, the reference at the next tick, its rate, and all of its samples.
        """
        tracker, period_ns = self._tracker, self._spec.period_ns
        samples = sample_weights(elapsed_ns / period_ns, tracker.ticks, self._tick, self._reach + 1)
        rate = (samples[1] - samples[0]) / (self._config.control_period_ns * 1e-9)
        weights = np.vstack([tracker.weights @ samples, samples[0], rate, samples])
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
        joints, command = measured.tolist(), self._limiter.position.tolist()
        bound, off = self._config.ladder.tracking, False
        for i, at, lowest, highest in self._checked:
            joint = joints[at]
            if not isfinite(joint):
                return Reason.ROBOT
            if not lowest <= joint <= highest:
                return Reason.LIMIT
            off = off or (bound is not None and abs(joint - command[i]) > bound)
        if not off:
            self._off_since_ns = None
            return None
        if self._off_since_ns is None:
            self._off_since_ns = now_ns
        lasted = now_ns - self._off_since_ns >= self._config.ladder.tracking_ns
        return Reason.TRACKING if lasted else None
