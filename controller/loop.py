"""The real-time path, the same in virtual and in wall-clock time.

One tick, at a step boundary and in between::

    boundary?  poll link -> merge slices
               read robot -> observe when due: commit, submit
               |
    always     poll link -> merge slices
               |
    boundary?  take the action of this step (none: hold)
    amended?   from the present set-point to the new action, by the end of this step
               |
    always     interpolate -> write

Polling comes before an observation commits actions, so that these are the newest there are, and
again after submitting, so that a link that answers at once is used at once. An answer that comes
within the step is used within it::

    set-point
        new   .............................o    o  a slice amends the step at its second tick
                                     x     |    x  set-points written, here 4 per step
                               x           |
        old   ...........x.................|
                    x                      |
              o----------------------------|--> time
              |     |    |     |     |
            ticks        slice
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np

from controller.bounds import check_vector
from controller.codec import check_observation
from controller.errors import ErrorCode, OnsetError
from controller.forecast import Forecaster, make_forecaster
from controller.interpolate import set_point
from controller.latency import DelayEstimator
from controller.link import EpisodicLink, PolicyLink
from controller.loop_types import Counters, LoopConfig, TickCode, TickResult
from controller.observer import Observer
from controller.robot import Robot
from controller.speedup import limit_step, speed_up_slice, velocity_limits
from controller.timeline import MergeResult, Timeline
from controller.types import ActionKind, ActionSlice, Command, Float, Reading, RobotSpec


@dataclass(frozen=True)
class _Step:
    """The present step: from ``start`` to ``target``, since ``since_ns`` after it began."""

    index: int
    start: Float
    target: Float
    code: TickCode
    clamped: bool
    since_ns: int = 0


class ControlLoop:
    """Drives a robot from a policy. ``tick`` reads no clock and never blocks."""

    def __init__(
        self,
        robot: Robot,
        link: PolicyLink,
        config: LoopConfig,
        prompt: str,
        *,
        estimator: DelayEstimator | None = None,
        forecaster: Forecaster | None = None,
    ) -> None:
        """Makes a loop; the first tick begins the first episode.

        Args:
            robot: The robot.
            link: The path to the policy.
            config: Settings.
            prompt: The instruction of the first episode.
            estimator: Measures the delay; by default one that ``config`` describes.
            forecaster: Tells the state ahead; by default the strategy's, where it has one.

        Raises:
            OnsetError: BAD_VALUE when the control period does not divide the policy period, or an
                action dimension is not absolute; BAD_NAMES when an action dimension has no state
                dimension of its name, from which the first set-point could be taken.
        """
        spec = robot.spec
        _check_spec(spec, config)
        self._robot, self._link, self._config, self._spec = robot, link, config, spec
        estimator = estimator or DelayEstimator(
            spec.period_ns,
            max_delay=config.max_delay,
            min_delay=config.min_delay,
            margin_ns=config.margin_ns,
        )
        if forecaster is None and config.way.late:
            forecaster = make_forecaster(config.way.forecaster, spec)
        self._observer = Observer(spec, config, estimator, forecaster)
        self._timeline = Timeline(config.horizon_limit, config.way.new_share)
        self._lower, self._upper = spec.action_lower, spec.action_upper
        self._limits = velocity_limits(spec)
        self._state_index = [spec.state_names.index(name) for name in spec.action_names]
        self._start_ns: int | None = None
        self._begin(prompt)

    def _begin(self, prompt: str) -> None:
        self._observer.reset(prompt)
        self._timeline.reset(self._observer.next_id)
        self._step: _Step | None = None
        self._set_point: Float | None = None
        self._counters = Counters()

    def _start_clock(self, now_ns: int) -> int:
        self._start_ns = self._due_ns = self._last_ns = now_ns
        return now_ns

    def reset(self, now_ns: int, prompt: str, episode: str) -> None:
        """Begins a new episode at step 0; an ``EpisodicLink`` is told.

        The measured delay is kept: it belongs to the link and the policy. The first set-point is
        the measured state at the first tick.

        Raises:
            OnsetError: The prompt or episode is not allowed, or the link has ended.
        """
        self._begin(prompt)
        self._start_clock(now_ns)
        if isinstance(self._link, EpisodicLink):
            self._link.reset(episode, prompt)

    def set_prompt(self, prompt: str) -> None:
        """Changes the instruction from the next observation on.

        Raises:
            OnsetError: The prompt is empty or too long.
        """
        self._observer.set_prompt(prompt)

    @property
    def timeline(self) -> Timeline:
        """The actions ahead; to be looked at, not changed."""
        return self._timeline

    @property
    def estimator(self) -> DelayEstimator:
        """The measured delay."""
        return self._observer.estimator

    @property
    def counters(self) -> Counters:
        """A snapshot of the episode's counts."""
        return replace(self._counters)

    def tick(self, now_ns: int) -> TickResult:
        """Runs one control period and writes one set-point.

        An error of the link becomes part of the result: the robot plays out the actions it has,
        then holds.

        Args:
            now_ns: The present [ns], robot's clock; never before the tick before.

        Raises:
            OnsetError: BAD_VALUE when time went back; BAD_SHAPE or NON_FINITE when the first
                measured state of an episode, and so the first set-point, is unusable.
        """
        start_ns = self._start_clock(now_ns) if self._start_ns is None else self._start_ns
        missed = self._keep_time(now_ns)
        period_ns = self._spec.period_ns
        index = (now_ns - start_ns) // period_ns
        step = self._step if self._step is not None and self._step.index == index else None
        boundary, observed, skipped = step is None, False, 0
        error: OnsetError | None = None
        forecast_error: Float | None = None
        if boundary:
            skipped = index - self._timeline.next_step
            _, early_error = self._receive(now_ns, index)
            reading = self._robot.read()
            forecast_error = self._observer.forecast_error(index, reading.state)
            observed, error = self._observe(index, reading)
            error = early_error or error
        amended, receive_error = self._receive(now_ns, index)
        elapsed_ns = now_ns - start_ns - index * period_ns
        if step is None:
            step = self._begin_step(index, skipped)
        elif amended:
            step = self._amend_step(step, elapsed_ns)
        self._step = step
        error = receive_error or error
        self._set_point = set_point(
            step.start,
            step.target,
            elapsed_ns - step.since_ns,
            self._config.control_period_ns,
            period_ns - step.since_ns,
        )
        self._robot.write(Command(now_ns, self._set_point))
        self._counters.errors += error is not None
        return TickResult(
            code=step.code,
            step=index,
            set_point=self._set_point,
            boundary=boundary,
            observed=observed,
            clamped=step.clamped,
            skipped=skipped,
            missed=missed,
            delay_over_limit=self._observer.over_limit,
            observation_id=self._timeline.under_way_id,
            forecast_error=forecast_error,
            error=error,
        )

    def _keep_time(self, now_ns: int) -> int:
        """Returns the number of ticks that should have come before this one and did not."""
        if now_ns < self._last_ns:
            raise OnsetError(ErrorCode.BAD_VALUE, "now_ns", now_ns, f"{self._last_ns} or later")
        self._last_ns = now_ns
        period = self._config.control_period_ns
        missed = max((now_ns - self._due_ns) // period, 0)
        self._due_ns += (missed + 1) * period
        self._counters.ticks += 1
        self._counters.missed_deadlines += missed
        return missed

    def _observe(self, index: int, reading: Reading) -> tuple[bool, OnsetError | None]:
        """Says whether an observation was sent, or why it could not be."""
        if self._set_point is None:
            self._set_point = self._initial_set_point(reading)
        try:
            observation = self._observer.observe(index, reading, self._set_point, self._timeline)
            if observation is None:
                return False, None
            check_observation(observation, self._spec)
            self._link.submit(observation)
        except OnsetError as error:
            return False, error
        self._observer.sent(observation)
        self._counters.observations += 1
        self._counters.over_limit += self._observer.over_limit
        return True, None

    def _initial_set_point(self, reading: Reading) -> Float:
        state = check_vector("reading.state", reading.state, self._spec.state_names)
        return np.clip(state[self._state_index], self._lower, self._upper)

    def _receive(self, now_ns: int, index: int) -> tuple[bool, OnsetError | None]:
        """Merges what has arrived; says whether it amends this step, and what the link raised."""
        try:
            pieces = self._link.poll(now_ns)
        except OnsetError as error:
            return False, error
        counters = self._counters
        amended_before = counters.amended
        for piece in pieces:
            counters.slices += 1
            if piece.actions.shape != (len(piece.steps), len(self._spec.action)):
                counters.malformed += 1
                continue
            self._observer.answered(piece, now_ns)
            aligned = self._observer.align(self._speed_up(piece), index)
            if aligned is None:
                counters.superseded += len(piece.steps)
                continue
            merged = self._timeline.merge(aligned, index)
            for count in fields(MergeResult):
                total = getattr(counters, count.name) + getattr(merged, count.name)
                setattr(counters, count.name, total)
        return counters.amended > amended_before, None

    def _speed_up(self, piece: ActionSlice) -> ActionSlice:
        continued = self._observer.continued(piece.observation_id)
        return speed_up_slice(piece, self._config.speedup, continued)

    def _begin_step(self, index: int, skipped: int) -> _Step:
        """Takes the action of a step; without a usable one the last set-point is held."""
        start = np.asarray(self._set_point, dtype=np.float32)
        held = _Step(index, start, start, TickCode.STARVED, clamped=False)
        step = self._towards(self._timeline.execute(index), held)
        self._counters.steps += 1
        self._counters.skipped += skipped
        self._counters.starved += step.code is TickCode.STARVED
        return step

    def _amend_step(self, step: _Step, elapsed_ns: int) -> _Step:
        """Goes from the present set-point to the action that now stands at the step under way."""
        start = np.asarray(self._set_point, dtype=np.float32)
        rest = replace(step, start=start, since_ns=elapsed_ns)
        return self._towards(self._timeline.action(step.index), rest)

    def _towards(self, action: Float | None, step: _Step) -> _Step:
        """The step with the action as its target; its own target where there is no usable one."""
        if action is None:
            return step
        if not np.isfinite(action).all():
            self._counters.refused += 1
            return replace(step, code=TickCode.REFUSED)
        target = np.clip(action, self._lower, self._upper)
        clamped = bool((target != action).any())
        if self._config.keep_velocity or self._config.speedup > 1:
            rest_ns = self._spec.period_ns - step.since_ns
            target, short = limit_step(step.start, target, self._limits, rest_ns)
            clamped = clamped or short
        self._counters.clamped += clamped
        return replace(step, target=target, code=TickCode.RUNNING, clamped=clamped)


def _check_spec(spec: RobotSpec, config: LoopConfig) -> None:
    if spec.period_ns % config.control_period_ns:
        raise OnsetError(
            ErrorCode.BAD_VALUE,
            "config.control_period_ns",
            config.control_period_ns,
            f"a divisor of the policy period {spec.period_ns}",
        )
    if missing := sorted(set(spec.action_names) - set(spec.state_names)):
        raise OnsetError(ErrorCode.BAD_NAMES, "robot.action", missing, list(spec.state_names))
    if relative := [d.name for d in spec.action if d.kind is not ActionKind.ABSOLUTE]:
        raise OnsetError(
            ErrorCode.BAD_VALUE, "robot.action.kind", relative, f"{ActionKind.ABSOLUTE} only"
        )
