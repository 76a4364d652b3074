"""The executor at work: joints on one side, shared memory on the other, absolute deadlines.

Nothing here waits but the sleep to the next deadline. On the way out, for whatever reason, the arm
is stopped within its limits, parked where that is asked for, and left holding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from controller.clock import Clock
from controller.errors import OnsetError
from controller.exchange import STOP_WORDS, WORDS, PlanReader, Sent, state_dtype
from controller.executor import Execution, Executor
from controller.limits import MotionLimits
from controller.park import ParkMotion
from controller.plan import EMPTY
from controller.record import Level, new_event, record_dtype
from controller.robot import Joints
from controller.shared import Segment
from controller.shared_slots import packer
from controller.types import Command, Float
from controller.watchdog import Change, Mode, Reason

PARKED = 1
HELD = 0
_EPISODE_NONE = -1


@dataclass(frozen=True)
class LoopSettings:
    """Settings of an executor at work.

    Attributes:
        control_period_ns: Time between ticks [ns].
        read_every: The joints are read at every so many ticks [count].
        robot_errors: So many failing writes or reads one after the other are a fault [count].
        orphan_ns: Without a sign of life of a client for so long, the arm stops for good, parks
            where there is a pose for it, and the executor ends [ns]; None: it holds for ever.
    """

    control_period_ns: int
    read_every: int = 1
    robot_errors: int = 5
    orphan_ns: int | None = 30_000_000_000


class ExecutorLoop:
    """One tick after the other: shared memory in, joints and shared memory out.

    Attributes:
        orphaned: Whether it ends because no client gave a sign of life.
    """

    def __init__(
        self,
        segment: Segment,
        recording: Segment,
        stops: Segment,
        joints: Joints,
        executor: Executor,
        limits: MotionLimits,
        settings: LoopSettings,
        park: np.ndarray | None,
        clock: Clock,
    ) -> None:
        """Makes it; ``start`` reads where the arm is."""
        spec = joints.spec
        actions, states = len(spec.action), len(spec.state)
        self._joints, self._executor, self._limits = joints, executor, limits
        self._settings, self._park, self._clock = settings, park, clock
        self._plans = PlanReader(segment, spec)
        self._pack_state = packer(state_dtype(actions, states)).pack
        self._states = segment.latest("state")
        self._pack_record = packer(record_dtype(actions, states)).pack
        self._nothing, self._unmeasured = [math.nan] * actions, [math.nan] * states
        self._records, self._events = recording.ring("records"), recording.ring("events")
        self._words = {name: segment.word(name) for name in WORDS}
        self._words |= {name: stops.word(name) for name in STOP_WORDS}
        self._index = [spec.state_names.index(name) for name in spec.action_names]
        self._measured: Float | None = None
        self._measured_ns = -1
        self._episode = _EPISODE_NONE
        self._ticks = self._missed = self._starved = self._busy_ns = 0
        self._failures = {"read": 0, "write": 0}  # one after the other, of each
        self._cleared = self._words["clear"].value
        self._parking: ParkMotion | None = None
        self._quitting = self._blind = False
        self._started_ns = 0
        self.orphaned = False

    def start(self, now_ns: int) -> None:
        """Reads where the arm is and stands there.

        Raises:
            OnsetError: It cannot be read, or a joint is well outside its limits.
        """
        self._measured = self._joints.read_state()
        self._measured_ns = self._started_ns = now_ns
        self._executor.reset(now_ns, self._measured[self._index])
        self.event(now_ns, Level.INFO, f"executor ready, {self._settings.control_period_ns} ns")
        self._publish(now_ns, self._executor.tick(now_ns, EMPTY, self._measured))

    def event(self, now_ns: int, level: Level, text: str) -> None:
        """Notes a line of text for the recording."""
        self._events.write(new_event(now_ns, level, text))

    def stop(self, *, blind: bool = False) -> None:
        """Ends after a stop, and a way to the park pose where there is one. For signal handlers.

        Args:
            blind: Stop without reading the joints again, and without parking.
        """
        self._quitting = True
        if blind:
            self._blind, self._park, self._measured = True, None, None

    def tick(self, due_ns: int, late_ns: int, missed: int) -> bool:
        """Runs one control period; says whether to go on.

        Args:
            due_ns: When the tick was due [ns].
            late_ns: By how much it began later [ns].
            missed: Ticks left out before it [count].
        """
        words, began_ns = self._words, self._clock.now_ns()
        self._ticks += 1
        self._missed += missed
        sent = self._plans.read()
        if sent is not None and sent.episode != self._episode:
            self._begin(due_ns, sent)
        if self._ticks % self._settings.read_every == 0 and not self._blind:
            self._read(due_ns)
        if words["clear"].value != self._cleared:
            self._clear(due_ns)
        quitting = self._quitting or words["quit"].value != 0 or self._orphaned(due_ns)
        execution = self._executor.tick(
            due_ns,
            EMPTY if sent is None else sent.plan,
            self._measured,
            stop=quitting or words["stop"].value != 0,
            estop=words["estop"].value != 0,
            goal=self._goal(due_ns) if quitting else None,
        )
        self._write(due_ns, execution)
        self._tell(due_ns, execution.change)
        self._publish(due_ns, execution)
        self._note(due_ns, late_ns, execution, sent)
        words["executor_ns"].value = due_ns
        goes_on = not (quitting and self._done(due_ns))
        self._busy_ns = self._clock.now_ns() - began_ns
        return goes_on

    def _begin(self, now_ns: int, sent: Sent) -> None:
        self._episode, self._starved = sent.episode, 0
        if sent.placed:
            self._read(now_ns)
        if not sent.placed or self._measured is None:
            self._executor.begin(sent.begin_ns)
            return
        self.event(now_ns, Level.INFO, "the arm was put elsewhere")
        try:
            self._executor.reset(sent.begin_ns, self._measured[self._index])
        except OnsetError as error:
            self._executor.begin(sent.begin_ns)
            self.event(now_ns, Level.ERROR, str(error))
            self._tell(now_ns, self._executor.watchdog.fault(now_ns, Reason.LIMIT))

    def _read(self, now_ns: int) -> None:
        try:
            self._measured = self._joints.read_state()
        except OnsetError as error:
            self._fail(now_ns, "read", error)
            return
        self._failures["read"] = 0
        self._measured_ns = now_ns

    def _write(self, now_ns: int, execution: Execution) -> None:
        try:
            self._joints.write(Command(now_ns, execution.command))
        except OnsetError as error:
            self._fail(now_ns, "write", error)
            return
        self._failures["write"] = 0

    def _tell(self, now_ns: int, change: Change | None) -> None:
        if change is not None:
            level = Level.ERROR if change.new is Mode.FAULT else Level.INFO
            self.event(now_ns, level, str(change))

    def _fail(self, now_ns: int, what: str, error: OnsetError) -> None:
        # Apart: many buses do not acknowledge a write, which then succeeds without any motor.
        self._failures[what] += 1
        most = self._settings.robot_errors
        if self._failures[what] <= most:  # or they would push all other events out of the ring
            self.event(now_ns, Level.ERROR, str(error))
        if self._failures[what] >= most:
            self._tell(now_ns, self._executor.watchdog.fault(now_ns, Reason.ROBOT))

    def _clear(self, now_ns: int) -> None:
        """Leaves a fault, on request, once the emergency stop is released."""
        self._cleared = self._words["clear"].value
        if self._words["estop"].value:
            self.event(now_ns, Level.WARNING, "a fault is cleared only without emergency stop")
            return
        self._read(now_ns)
        if self._measured is None or self._measured_ns != now_ns:
            self.event(now_ns, Level.WARNING, "a fault is cleared only where the arm can be read")
            return
        try:
            change = self._executor.clear(now_ns, self._measured[self._index])
        except OnsetError as error:
            self.event(now_ns, Level.ERROR, str(error))
            return
        if change is not None:
            self.event(now_ns, Level.INFO, f"{change.old.name} -> {change.new.name}: reset")

    def _orphaned(self, now_ns: int) -> bool:
        # A client that dies before its first sign of life leaves an orphan, too.
        seen_ns = max(self._words["client_ns"].value, self._started_ns)
        orphan_ns = self._settings.orphan_ns
        if orphan_ns is None or now_ns - seen_ns <= orphan_ns:
            return False
        if not self.orphaned:
            self.event(now_ns, Level.WARNING, "no client: stopping for good")
        self.orphaned = self._quitting = True
        return True

    def _goal(self, now_ns: int) -> tuple[np.ndarray, np.ndarray] | None:
        """The way to the park pose, once the arm has stopped."""
        if self._park is None or self._executor.watchdog.mode is not Mode.HOLDING:
            return None
        if self._parking is None:
            start = self._executor.position.copy()
            self._parking = ParkMotion(start, self._park, self._limits, now_ns)
            seconds = math.ceil(self._parking.duration_ns * 1e-9)
            self.event(now_ns, Level.INFO, f"parking, about {seconds} s")
        return self._parking.at(now_ns + self._settings.control_period_ns)

    def _done(self, now_ns: int) -> bool:
        """Whether there is nothing left to do: at rest in the park pose, or where it stopped."""
        if not self._executor.at_rest or self._executor.watchdog.mode is Mode.DECELERATING:
            return False
        if self._park is None or self._executor.watchdog.mode is Mode.FAULT:
            return True
        # A second, should limits have held the arm back behind the motion.
        late_ns = 1_000_000_000
        parking = self._parking
        return parking is not None and (
            self.parked or now_ns > parking.begin_ns + parking.duration_ns + late_ns
        )

    @property
    def parked(self) -> bool:
        """Whether the command stands in the park pose."""
        park = self._park
        return park is not None and bool(np.allclose(self._executor.position, park, atol=1e-6))

    # Both in plain numbers, in the order of the dtype's fields.

    def _publish(self, due_ns: int, execution: Execution) -> None:
        held = execution.mode not in (Mode.RUNNING, Mode.COASTING)
        self._starved += execution.boundary and held and self._episode != _EPISODE_NONE
        measured = self._unmeasured if self._measured is None else self._measured.tolist()
        position, velocity, _ = zip(*execution.states, strict=True)
        state = self._pack_state(
            self._ticks, due_ns, self._episode, execution.step, self._measured_ns, self._missed,
            self._starved, *position, *velocity, *measured, execution.mode, execution.reason,
        )  # fmt: skip
        self._states.write(state)

    def _note(self, due_ns: int, late_ns: int, execution: Execution, sent: Sent | None) -> None:
        renewed_ns, round_trip_ns = -1, -1
        if sent is not None:
            renewed_ns, round_trip_ns = sent.plan.renewed_ns, sent.round_trip_ns
        # A plan may be from after the tick was due.
        age_ns = max(due_ns - renewed_ns, 0) if renewed_ns >= 0 else -1
        desired = self._nothing if execution.desired is None else execution.desired
        position, velocity, acceleration = zip(*execution.states, strict=True)
        measured = self._unmeasured if self._measured is None else self._measured.tolist()
        record = self._pack_record(
            self._ticks, due_ns, late_ns, self._busy_ns, execution.step, self._episode,
            execution.observation_id, age_ns, round_trip_ns, *desired,
            *execution.target, *position, *velocity, *acceleration, *measured,
            execution.clamped, execution.mode, execution.reason, execution.refused,
        )  # fmt: skip
        self._records.write(record)
