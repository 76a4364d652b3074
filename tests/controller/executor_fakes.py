"""An executor in virtual time, plans to give it, joints without an arm, and what it emitted."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from controller.clock import ManualClock
from controller.errors import ErrorCode, OnsetError
from controller.exchange import (
    STOP_LAYOUT,
    STOP_WORDS,
    PlanWriter,
    Sent,
    layout,
    recording_name,
    stop_name,
)
from controller.executor import Execution, Executor, ExecutorConfig
from controller.executor_loop import ExecutorLoop, LoopSettings
from controller.limits import MotionLimits
from controller.plan import EMPTY, Plan
from controller.record import describe_run
from controller.recorder import record_layout
from controller.shared import Segment
from controller.types import CameraSpec, Command, Dimension, RobotSpec
from controller.watchdog import LadderConfig, Mode
from tests.controller.helpers import MS

TICK = 5 * MS
SO101 = (5.0, 40.0, 2000.0)  # rad/s, rad/s^2, rad/s^3
SLOW = (2.0, 10.0, 100.0)
TINY = 1e-9
HOME = np.array([0.0, 0.0, 0.5])
ARM = RobotSpec(
    name="arm",
    state=(
        Dimension("pan.pos", "rad", -1.7, 1.7),
        Dimension("lift.pos", "rad", -1.2, 1.5),
        Dimension("grip.pos", "1", 0.0, 1.0),
        Dimension("pan.vel", "rad/s", -9.0, 9.0),
    ),
    action=(
        Dimension("pan.pos", "rad", -1.7, 1.7),
        Dimension("lift.pos", "rad", -1.2, 1.5),
        Dimension("grip.pos", "1", 0.0, 1.0),
    ),
    cameras=(CameraSpec("front", 16, 16),),
    period_ns=40 * MS,
)
PER_STEP = ARM.period_ns // TICK  # ticks


def limits_of(spec: RobotSpec = ARM, rates=SO101) -> MotionLimits:
    """The same rates for every dimension."""
    count = len(spec.action)
    lower, upper = spec.action_lower, spec.action_upper
    return MotionLimits(spec.action_names, lower, upper, *(np.full(count, r) for r in rates))


def plan_of(actions, first: int = 0, renewed_ns: int = 0, version: int = 1, ids=None) -> Plan:
    """A plan that answers observation 7 where ``ids`` says nothing else."""
    rows = np.asarray(actions, dtype=np.float32)
    known = np.full(len(rows), 7) if ids is None else np.asarray(ids)
    return Plan(first, rows, known.astype(np.int64), renewed_ns, version)


class Arm:
    """An executor, the present, and all that it emitted.

    Attributes:
        now_ns: When the next tick is due.
        results: What the ticks decided.
    """

    def __init__(
        self,
        *,
        spec: RobotSpec = ARM,
        rates=SO101,
        ladder: LadderConfig | None = None,
        start=(0.0, 0.0, 0.5),
        bandwidth: float = 30.0,
        start_ns: int = 1000 * MS,
    ) -> None:
        self.spec, self.limits = spec, limits_of(spec, rates)
        config = ExecutorConfig(TICK, ladder or LadderConfig(), bandwidth)
        self.executor = Executor(spec, self.limits, config)
        self.executor.reset(start_ns, np.array(start))
        self.begin_ns = self.now_ns = start_ns
        self.results: list[Execution] = []
        self._states = [self._state()]

    def _state(self):
        at = self.executor._limiter
        return np.stack([at.position, at.velocity, at.acceleration])

    def tick(self, plan: Plan = EMPTY, measured=None, *, skip: int = 0, **asked) -> Execution:
        """One tick, ``skip`` periods later than it should be."""
        self.now_ns += skip * TICK
        state = None if measured is None else np.asarray(measured, dtype=np.float32)
        result = self.executor.tick(self.now_ns, plan, state, **asked)
        self.now_ns += TICK
        self.results.append(result)
        self._states.append(self._state())
        return result

    def run(self, ticks: int, plan: Plan = EMPTY, measured=None, **asked) -> list[Execution]:
        return [self.tick(plan, measured, **asked) for _ in range(ticks)]

    def measured(self):
        """The state of an arm that is where it was told to be."""
        return np.append(self.executor.position, 0.0).astype(np.float32)

    def begin(self) -> None:
        """A new episode, from where the arm is."""
        self.begin_ns = self.now_ns
        self.executor.begin(self.now_ns)

    def clear(self, position):
        """Leaves a fault; the jump to where the arm is measured is no motion."""
        change = self.executor.clear(self.now_ns, np.asarray(position))
        self.pause()
        return change

    def pause(self) -> None:
        """Forgets what was emitted: what comes is another motion."""
        self._states = [self._state()]

    @property
    def commands(self):
        return np.array([r.command for r in self.results])

    @property
    def modes(self):
        return [r.mode for r in self.results]

    def excess(self) -> float:
        """By how much limits were exceeded at worst, as a share of them; not above 0 if kept."""
        limits, t = self.limits, TICK / 1e9
        states = np.array(self._states).transpose(1, 0, 2)
        bounds = (limits.velocity, limits.acceleration, limits.jerk)
        rounding = 2e-15 * np.maximum(np.abs(limits.lower), np.abs(limits.upper))
        worst = [float(np.maximum(states[0] - limits.upper, limits.lower - states[0]).max())]
        for first, values in enumerate(states):
            for order in range(0 if first else 1, 4 - first):
                steps = np.abs(np.diff(values, n=order, axis=0))
                steps = steps - (0.0 if first else 2**order * rounding)
                share = steps / t**order / bounds[first + order - 1]
                worst.append(float(share.max(initial=0.0)) - 1)
        return max(worst)


class FakeJoints:
    """Joints that are at once where they are told to be; a test may break them.

    Attributes:
        failing: What fails: "read", "write" or both.
        frozen: Whether they stay where they are.
    """

    def __init__(
        self, spec: RobotSpec = ARM, start: Iterable[float] = (0.0, 0.0, 0.5, 0.0)
    ) -> None:
        self.spec = spec
        self.state = np.array(list(start), dtype=np.float32)
        self.commands: list[Command] = []
        self.reads = 0
        self.failing: set[str] = set()
        self.frozen = False

    def connect(self) -> None: ...

    def close(self, *, release: bool = False) -> None: ...

    def read_state(self):
        self.reads += 1
        self._answer("read")
        return self.state.copy()

    def write(self, command: Command) -> None:
        self._answer("write")
        self.commands.append(command)
        if not self.frozen:
            self.state[: len(command.position)] = command.position

    def _answer(self, what: str) -> None:
        if what in self.failing:
            raise OnsetError(ErrorCode.UNAVAILABLE, f"joints.{what}", "no answer", "an answer")


class Bench:
    """An executor at work in this thread, between its segments; a client's end of them.

    Use as a context manager.
    """

    def __init__(
        self,
        name: str,
        *,
        park=None,
        settings: LoopSettings | None = None,
        ladder: LadderConfig | None = None,
        rates=SO101,
    ) -> None:
        self.clock = ManualClock(1000 * MS)
        self.joints = FakeJoints()
        self.limits = limits_of(ARM, rates)
        self.segment = Segment.create(name, layout(ARM))
        self.recording = Segment.create(
            recording_name(name), record_layout(describe_run(ARM, TICK, 0))
        )
        self.stops = Segment.create(stop_name(name), STOP_LAYOUT)
        self.executor = Executor(ARM, self.limits, ExecutorConfig(TICK, ladder or LadderConfig()))
        self.loop = ExecutorLoop(
            self.segment,
            self.recording,
            self.stops,
            self.joints,
            self.executor,
            self.limits,
            settings or LoopSettings(TICK),
            None if park is None else np.asarray(park, dtype=np.float64),
            self.clock,
        )
        self.plans = PlanWriter(self.segment, ARM)
        self._records = self.recording.ring("records").reader()
        self._events = self.recording.ring("events").reader()

    def publish(self, plan: Plan, *, episode: int = 0, begin_ns: int | None = None, **more) -> None:
        begin_ns = self.clock.now_ns() if begin_ns is None else begin_ns
        self.plans.write(Sent(plan, episode, begin_ns, **more))

    def raise_word(self, name: str, value: int = 1) -> None:
        segment = self.stops if name in STOP_WORDS else self.segment
        segment.word(name).value = value

    def tick(self, late_ns: int = 0, missed: int = 0) -> bool:
        due_ns = self.clock.now_ns()
        self.clock.sleep_until_ns(due_ns + late_ns)
        goes_on = self.loop.tick(due_ns, late_ns, missed)
        self.clock.sleep_until_ns(due_ns + TICK)
        return goes_on

    def run(self, ticks: int) -> bool:
        """Ticks until it is done, at most so many; says whether it would go on."""
        return all(self.tick() for _ in range(ticks))

    def records(self):
        return self._records.read_all()[0]

    def events(self) -> list[str]:
        return [row["text"].decode() for row in self._events.read_all()[0]]

    @property
    def state(self):
        return self.segment.latest("state").read()

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        for segment in (self.segment, self.recording, self.stops):
            segment.close()
            segment.unlink()


def glide(count: int, rate: float = 1.0, start: float = 0.0):
    """Actions of a pan that moves at so many rad/s. Shape (count, A)."""
    pan = start + rate * 0.04 * np.arange(1, count + 1)
    return np.column_stack([pan, np.zeros(count), np.full(count, 0.5)])


def sway(count: int, scatter: float = 0.0, seed: int = 0):
    """Actions of a motion that uses the arm and half its limits. Shape (count, A)."""
    times = 0.04 * np.arange(count)[:, None]
    rows = HOME + np.array([0.6, 0.5, 0.3]) * np.sin(2 * np.pi * times * [0.5, 0.7, 0.4])
    return rows + scatter * np.random.default_rng(seed).normal(size=rows.shape)


def until(arm: Arm, mode: Mode, most: int = 400, **asked) -> int:
    """Ticks until it is in a mode [count]."""
    for count in range(1, most + 1):
        if arm.tick(**asked).mode is mode:
            return count
    raise AssertionError(f"not {mode.name} after {most} ticks")


def stop_ticks(rates) -> int:
    """Until rest from full speed: v/a + a/j, and a tick."""
    v, a, j = rates
    return int(np.ceil((v / a + a / j) / 0.005 - 1e-9)) + 1
