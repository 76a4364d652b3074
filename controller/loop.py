"""Planner and motion in one thread, the same in virtual and in wall-clock time.

A tick lets the planner work, moves the set-point by one control period, and writes it. With
``limits`` the set-point is an ``Executor``'s: smooth, limited, watched. Without, it goes straight
from action to action. A robot whose ticks must not wait for rendering or for the interpreter runs
the executor in a process of its own instead (``controller/runtime.py``).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from controller.direct import DirectMotion
from controller.errors import ErrorCode, OnsetError
from controller.executor import Execution, Executor, ExecutorConfig
from controller.forecast import Forecaster
from controller.latency import DelayEstimator
from controller.limits import MotionLimits
from controller.link import PolicyLink
from controller.loop_types import Counters, LoopConfig, TickCode, TickResult
from controller.planner import Planner
from controller.robot import Robot
from controller.timeline import Timeline
from controller.types import Command, Float, Reading
from controller.watchdog import LadderConfig, Mode


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
        limits: MotionLimits | None = None,
        ladder: LadderConfig | None = None,
    ) -> None:
        """Makes a loop; the first tick begins the first episode.

        Args:
            robot: The robot.
            link: The path to the policy.
            config: Settings.
            prompt: The instruction of the first episode.
            estimator: Measures the delay; by default one that ``config`` describes.
            forecaster: Tells the state ahead; by default the strategy's, where it has one.
            limits: Move smoothly within them, and stop by the ladder; by default set-points go
                straight to the policy's actions.
            ladder: Thresholds of the ladder.

        Raises:
            OnsetError: BAD_VALUE when the control period does not divide the policy period, or an
                action dimension is not absolute; BAD_NAMES when an action dimension has no state
                dimension of its name, or no limits.
        """
        spec = robot.spec
        if spec.period_ns % config.control_period_ns:
            raise OnsetError(
                ErrorCode.BAD_VALUE,
                "config.control_period_ns",
                config.control_period_ns,
                f"a divisor of the policy period {spec.period_ns}",
            )
        self._planner = Planner(
            spec, link, config, prompt, estimator=estimator, forecaster=forecaster
        )
        self._direct = DirectMotion(spec, config)
        self._executor: Executor | None = None
        if limits is not None:
            settings = ExecutorConfig(config.control_period_ns, ladder or LadderConfig())
            self._executor = Executor(spec, limits, settings)
        self._robot, self._config, self._spec = robot, config, spec
        self._start_ns: int | None = None
        self._set_point: Float | None = None
        self._index = -1

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
        self._set_point, self._index = None, -1
        self._start_clock(now_ns)
        self._planner.reset(prompt, episode)

    def set_prompt(self, prompt: str) -> None:
        """Changes the instruction from the next observation on.

        Raises:
            OnsetError: The prompt is empty or too long.
        """
        self._planner.set_prompt(prompt)

    @property
    def timeline(self) -> Timeline:
        """The actions ahead; to be looked at, not changed."""
        return self._planner.timeline

    @property
    def estimator(self) -> DelayEstimator:
        """The measured delay."""
        return self._planner.estimator

    @property
    def executor(self) -> Executor | None:
        """What moves the arm within limits, where there are any."""
        return self._executor

    @property
    def counters(self) -> Counters:
        """A snapshot of the episode's counts."""
        return replace(self._planner.counters)

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
        index = (now_ns - start_ns) // self._spec.period_ns
        boundary, measured = index != self._index, None
        reading: Reading | None = None

        def read() -> tuple[Reading, Float]:
            nonlocal reading
            reading = self._robot.read()
            return reading, self._standing(start_ns, reading)

        planned = self._planner.step(now_ns, index, read if boundary else None)
        self._index = index
        plan, counters = self._planner.plan(index), self._planner.counters
        execution: Execution | None = None
        if self._executor is not None:
            measured = None if reading is None else reading.state
            execution = self._executor.tick(now_ns, plan, measured)
            turned, code = boundary or planned.amended, _code_of(execution)
            clamped = execution.clamped != 0
            self._set_point = execution.command.astype(np.float32)
        else:
            elapsed_ns = now_ns - start_ns - index * self._spec.period_ns
            turned = self._direct.tick(index, elapsed_ns, plan, planned.amended)
            code, clamped = self._direct.code, self._direct.clamped
            self._set_point = self._direct.set_point
        self._robot.write(Command(now_ns, self._set_point))
        counters.refused += turned and code is TickCode.REFUSED
        counters.starved += boundary and code is TickCode.STARVED
        counters.clamped += turned and code is TickCode.RUNNING and clamped
        return TickResult(
            code=code,
            step=index,
            set_point=self._set_point,
            boundary=boundary,
            observed=planned.observed,
            clamped=clamped,
            skipped=planned.skipped,
            missed=missed,
            delay_over_limit=self._planner.over_limit,
            observation_id=plan.observation_id(index),
            forecast_error=planned.forecast_error,
            error=planned.error,
            execution=execution,
        )

    def _standing(self, start_ns: int, reading: Reading) -> Float:
        """The set-point that stands; at the first tick of an episode, where the robot is."""
        if self._set_point is None:
            position = self._planner.position(reading)
            if self._executor is not None:
                self._executor.reset(start_ns, position)
            self._direct.reset(position)
            self._set_point = position
        return self._set_point

    def _keep_time(self, now_ns: int) -> int:
        """Returns the number of ticks that should have come before this one and did not."""
        if now_ns < self._last_ns:
            raise OnsetError(ErrorCode.BAD_VALUE, "now_ns", now_ns, f"{self._last_ns} or later")
        self._last_ns = now_ns
        period = self._config.control_period_ns
        missed = max((now_ns - self._due_ns) // period, 0)
        self._due_ns += (missed + 1) * period
        self._planner.counters.ticks += 1
        self._planner.counters.missed_deadlines += missed
        return missed


def _code_of(execution: Execution) -> TickCode:
    if execution.refused:
        return TickCode.REFUSED
    driven = execution.mode in (Mode.RUNNING, Mode.COASTING)
    return TickCode.RUNNING if driven else TickCode.STARVED
