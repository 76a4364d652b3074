"""The side that plans: asks the policy, merges its answers, and keeps the actions that stand.

A step of it, at a step boundary and in between::

    boundary?  poll link -> merge slices
               observe when due: commit, submit
               |
    always     poll link -> merge slices
               |
    boundary?  the action of this step is under way

Polling comes before an observation commits actions, so that these are the newest there are, and
again after submitting, so that a link that answers at once is used at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np

from controller.bounds import check_vector
from controller.codec import check_observation
from controller.errors import ErrorCode, OnsetError
from controller.forecast import Forecaster, make_forecaster
from controller.latency import DelayEstimator
from controller.link import EpisodicLink, PolicyLink
from controller.loop_types import Counters, LoopConfig
from controller.observer import Observer
from controller.plan import Plan
from controller.speedup import speed_up_slice
from controller.timeline import MergeResult, Timeline
from controller.types import ActionKind, ActionSlice, Float, Reading, RobotSpec


@dataclass(frozen=True)
class Planned:
    """What one step of the planner did.

    Attributes:
        observed: Whether an observation was handed to the link.
        amended: Whether the action of the step under way was replaced.
        skipped: Steps that time had passed over [count].
        forecast_error: Measured minus forecast state where this step was forecast. Shape (S,).
        error: Why an observation was not sent, or what the link raised; else None.
    """

    observed: bool = False
    amended: bool = False
    skipped: int = 0
    forecast_error: Float | None = None
    error: OnsetError | None = None


class Planner:
    """Keeps the plan of a robot; never blocks."""

    def __init__(
        self,
        spec: RobotSpec,
        link: PolicyLink,
        config: LoopConfig,
        prompt: str,
        *,
        estimator: DelayEstimator | None = None,
        forecaster: Forecaster | None = None,
    ) -> None:
        """Makes a planner at step 0 of the first episode.

        Args:
            spec: The robot.
            link: The path to the policy.
            config: Settings.
            prompt: The instruction of the first episode.
            estimator: Measures the delay; by default one that ``config`` describes.
            forecaster: Tells the state ahead; by default the strategy's, where it has one.

        Raises:
            OnsetError: BAD_VALUE when an action dimension is not absolute; BAD_NAMES when one has
                no state dimension of its name, from which the first set-point could be taken.
        """
        _check_spec(spec)
        self._spec, self._link, self._config = spec, link, config
        estimator = estimator or DelayEstimator(
            spec.period_ns,
            max_delay=config.max_delay,
            min_delay=config.min_delay,
            margin_ns=config.margin_ns,
        )
        if forecaster is None and config.way.late:
            forecaster = make_forecaster(config.way.forecaster, spec)
        self._observer = Observer(spec, config, estimator, forecaster)
        self.timeline = Timeline(config.horizon_limit, config.way.new_share)
        self._state_index = [spec.state_names.index(name) for name in spec.action_names]
        self._plan: Plan | None = None
        self.restart(prompt)

    def restart(self, prompt: str) -> None:
        """Begins an episode at step 0, without a word to the link."""
        self._observer.reset(prompt)
        self.timeline.reset(self._observer.next_id)
        self.counters = Counters()

    def reset(self, prompt: str, episode: str) -> None:
        """Begins an episode at step 0; an ``EpisodicLink`` is told.

        The measured delay is kept: it belongs to the link and the policy.

        Raises:
            OnsetError: The prompt or episode is not allowed, or the link has ended.
        """
        self.restart(prompt)
        if isinstance(self._link, EpisodicLink):
            self._link.reset(episode, prompt)

    def set_prompt(self, prompt: str) -> None:
        """Changes the instruction from the next observation on.

        Raises:
            OnsetError: The prompt is empty or too long.
        """
        self._observer.set_prompt(prompt)

    def forget(self) -> None:
        """The session was lost and opened again: what was under way is asked anew, at once."""
        self._observer.forget()

    @property
    def estimator(self) -> DelayEstimator:
        """The measured delay."""
        return self._observer.estimator

    @property
    def over_limit(self) -> bool:
        """Whether the measured delay is past what the policy was trained for."""
        return self._observer.over_limit

    def position(self, reading: Reading) -> Float:
        """The measured state as the set-point that it is. Shape (A,).

        Raises:
            OnsetError: BAD_SHAPE or NON_FINITE when the state is unusable.
        """
        state = check_vector("reading.state", reading.state, self._spec.state_names)
        return np.clip(state[self._state_index], self._spec.action_lower, self._spec.action_upper)

    def plan(self, index: int) -> Plan:
        """The actions that stand from the step under way on."""
        plan = self._plan
        if plan is None or plan.version != self.timeline.version or plan.first_step != index:
            plan = self._plan = self.timeline.plan(index)
        return plan

    def step(
        self,
        now_ns: int,
        index: int,
        read: Callable[[], tuple[Reading, Float] | None] | None,
    ) -> Planned:
        """Runs the planner once.

        Args:
            now_ns: The present [ns], robot's clock.
            index: The present step.
            read: At the boundary of a step: reads the robot, and the set-point that stands; None
                when there is nothing new to be seen, and so nothing to be asked.
        """
        observed, skipped, error, forecast_error = False, 0, None, None
        if read is not None:
            skipped = index - self.timeline.next_step
            _, early_error = self._receive(now_ns, index)
            seen = read()
            if seen is not None:
                reading, set_point = seen
                forecast_error = self._observer.forecast_error(index, reading.state)
                observed, error = self._observe(index, reading, set_point)
            error = early_error or error
        amended, receive_error = self._receive(now_ns, index)
        if read is not None:
            self.timeline.execute(index)
            self.counters.steps += 1
            self.counters.skipped += skipped
        error = receive_error or error
        self.counters.errors += error is not None
        return Planned(observed, amended, skipped, forecast_error, error)

    def _observe(
        self, index: int, reading: Reading, set_point: Float
    ) -> tuple[bool, OnsetError | None]:
        """Says whether an observation was sent, or why it could not be."""
        try:
            observation = self._observer.observe(index, reading, set_point, self.timeline)
            if observation is None:
                return False, None
            check_observation(observation, self._spec)
            self._link.submit(observation)
        except OnsetError as error:
            return False, error
        self._observer.sent(observation)
        self.counters.observations += 1
        self.counters.over_limit += self._observer.over_limit
        return True, None

    def _receive(self, now_ns: int, index: int) -> tuple[bool, OnsetError | None]:
        """Merges what has arrived; says whether it amends this step, and what the link raised."""
        try:
            pieces = self._link.poll(now_ns)
        except OnsetError as error:
            return False, error
        counters = self.counters
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
            merged = self.timeline.merge(aligned, index, now_ns)
            for count in fields(MergeResult):
                total = getattr(counters, count.name) + getattr(merged, count.name)
                setattr(counters, count.name, total)
        return counters.amended > amended_before, None

    def _speed_up(self, piece: ActionSlice) -> ActionSlice:
        continued = self._observer.continued(piece.observation_id)
        return speed_up_slice(piece, self._config.speedup, continued)


def _check_spec(spec: RobotSpec) -> None:
    if missing := sorted(set(spec.action_names) - set(spec.state_names)):
        raise OnsetError(ErrorCode.BAD_NAMES, "robot.action", missing, list(spec.state_names))
    if relative := [d.name for d in spec.action if d.kind is not ActionKind.ABSOLUTE]:
        raise OnsetError(
            ErrorCode.BAD_VALUE, "robot.action.kind", relative, f"{ActionKind.ABSOLUTE} only"
        )
