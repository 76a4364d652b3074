"""Ticks that move nothing, right before those that do.

Between two ticks other programs have the CPU for most of a period, and what a tick needs falls out
of its caches: a tick that finds them cold takes two to three times as long as one that does not,
and how much longer depends on what ran meanwhile. So a moment before each deadline the loop runs a
tick of a loop of its own, in memory of its own, with an arm that is none::

    period  |--------------- 5 ms ---------------|
            tick       others                rehearsal tick
                                               (cold)  (warm)

It costs about a cold tick of CPU time per period, 3 to 6 % of one core at 200 Hz.
"""

from __future__ import annotations

import numpy as np

from controller.clock import Clock
from controller.exchange import STOP_LAYOUT, Sent, layout, packed
from controller.executor import Executor, ExecutorConfig
from controller.executor_loop import ExecutorLoop, LoopSettings
from controller.limits import MotionLimits
from controller.plan import Plan
from controller.record import EVENT_DTYPE, record_dtype
from controller.shared import RingLayout, Segment
from controller.types import Command, Float, RobotSpec

_STEPS = 2  # that it plays over and over


class Rehearsal:
    """An executor loop that moves nothing. ``run`` it before a tick of the one that does."""

    def __init__(
        self, spec: RobotSpec, limits: MotionLimits, config: ExecutorConfig, clock: Clock
    ) -> None:
        """Makes it, of the same kind as the loop it rehearses.

        Args:
            spec: The robot.
            limits: Of its joints.
            config: Of the executor.
            clock: The loop's.
        """
        shape = len(spec.action), len(spec.state)
        shared = Segment.private(layout(spec))
        records, events = RingLayout(record_dtype(*shape), 2), RingLayout(EVENT_DTYPE, 2)
        recording = Segment.private({"records": records, "events": events})
        stops = Segment.private(STOP_LAYOUT)
        joints = _NoJoints(spec, (limits.lower + limits.upper) / 2)
        executor = Executor(spec, limits, config)
        settings = LoopSettings(config.control_period_ns, orphan_ns=None)
        self._loop = ExecutorLoop(
            shared, recording, stops, joints, executor, limits, settings, None, clock
        )
        self._loop.start(0)
        rows = np.repeat(joints.position[None].astype(np.float32), 2 * _STEPS, axis=0)
        record = packed(Sent(Plan(0, rows, np.zeros(len(rows), np.int64), 0, 1), 0, 0), spec)
        self._plans, self._plan = shared.latest("plan"), record.tobytes()
        self._step, self._period_ns = 0, spec.period_ns

    def run(self) -> None:
        """Runs one tick: one of those that have most to do, with a new plan and a new step."""
        self._step = (self._step + 1) % _STEPS
        self._plans.write(self._plan)
        self._loop.tick(self._step * self._period_ns, 0, 0)


class _NoJoints:
    """Joints that are where they are told to be."""

    def __init__(self, spec: RobotSpec, position: np.ndarray) -> None:
        self.spec, self.position = spec, position
        self._index = [spec.state_names.index(name) for name in spec.action_names]
        self._state = np.zeros(len(spec.state), dtype=np.float32)
        self._state[self._index] = position

    def connect(self) -> None: ...

    def read_state(self) -> Float:
        return self._state

    def write(self, command: Command) -> None:
        self.position = command.position

    def close(self, *, release: bool = False) -> None: ...
