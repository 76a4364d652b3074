"""The ladder of modes, from fresh actions down to a latched fault.

::

                 fresh action                      plan is old            no action
    HOLDING ------------------> RUNNING <--> COASTING ------> DECELERATING ------> HOLDING
       ^     (blended)             |    fresh     |     gap         |     at rest
       |                           +--------------+-----------------+
       |                                          | e-stop, tracking error, limit broken,
       |  explicit reset                          v command not finite
       +--------------------------------------- FAULT   (stops within the limits, then holds)

Going up takes a *fresh* action: the tail of a plan that has grown old never starts an arm that
stands. Every change of mode is counted, and told with its reason.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import IntEnum

from controller.bounds import MAX_COUNT, check_range
from controller.errors import ErrorCode, OnsetError


class Mode(IntEnum):
    """What the arm is doing."""

    RUNNING = 0
    COASTING = 1
    DECELERATING = 2
    HOLDING = 3
    FAULT = 4


class Reason(IntEnum):
    """Why the mode is what it is; NONE while RUNNING."""

    NONE = 0
    PLAN_OLD = 1
    NO_ACTION = 2
    ACTION_REFUSED = 3
    STOPPING = 4
    ESTOP = 5
    TRACKING = 6
    LIMIT = 7
    NOT_FINITE = 8
    ROBOT = 9


WORDS = {
    Reason.NONE: "fresh actions",
    Reason.PLAN_OLD: "the plan was not renewed in time; its tail is played out",
    Reason.NO_ACTION: "no action for this step",
    Reason.ACTION_REFUSED: "the policy's action is not finite",
    Reason.STOPPING: "told to stop",
    Reason.ESTOP: "emergency stop",
    Reason.TRACKING: "a joint is too far from its command",
    Reason.LIMIT: "a joint is measured outside its limits",
    Reason.NOT_FINITE: "the command came out non-finite",
    Reason.ROBOT: "the robot does not answer",
}


@dataclass(frozen=True)
class LadderConfig:
    """Thresholds of the ladder.

    Attributes:
        fresh_ns: A plan that was not renewed for longer is old [ns].
        coast_ns: An old plan is played out no longer than this after its last renewal [ns]; None:
            to its last step.
        resume_ns: From HOLDING the plan is blended in over so long [ns].
        tracking: Largest distance between command and measurement, in a joint's own unit; None to
            leave it unchecked. Grippers, which objects stop, are never checked.
        tracking_ns: It must last so long to be a fault [ns].
        outside: How far a joint may be measured outside its limits, as a share of their range.
    """

    fresh_ns: int = 500_000_000
    coast_ns: int | None = None
    resume_ns: int = 200_000_000
    tracking: float | None = 0.6
    tracking_ns: int = 500_000_000
    outside: float = 0.05

    def __post_init__(self) -> None:
        check_range("ladder.fresh_ns", self.fresh_ns, 1, MAX_COUNT)
        if self.coast_ns is not None:
            check_range("ladder.coast_ns", self.coast_ns, self.fresh_ns, MAX_COUNT)
        check_range("ladder.resume_ns", self.resume_ns, 0, MAX_COUNT)
        check_range("ladder.tracking_ns", self.tracking_ns, 0, MAX_COUNT)
        for name, value in (("tracking", self.tracking), ("outside", self.outside)):
            if value is not None and not value >= 0:
                raise OnsetError(ErrorCode.BAD_VALUE, f"ladder.{name}", value, "0 or more")


@dataclass(frozen=True)
class Change:
    """One change of mode.

    Attributes:
        now_ns: When [ns], robot's clock.
        old: The mode before.
        new: The mode after.
        reason: Why.
    """

    now_ns: int
    old: Mode
    new: Mode
    reason: Reason

    def __str__(self) -> str:
        return f"{self.old.name} -> {self.new.name}: {WORDS[self.reason]}"


class Watchdog:
    """Decides the mode of every tick. Starts in HOLDING: an arm moves when it is told to.

    Attributes:
        mode: The present mode.
        reason: Why.
        changes: Changes so far, by (old, new) [count].
    """

    def __init__(self, config: LadderConfig) -> None:
        self._config = config
        self.mode, self.reason = Mode.HOLDING, Reason.NO_ACTION
        self.changes: Counter[tuple[Mode, Mode]] = Counter()

    def tick(
        self,
        now_ns: int,
        *,
        action: bool,
        age_ns: int,
        at_rest: bool,
        refused: bool = False,
        stop: bool = False,
    ) -> Change | None:
        """Goes up or down the ladder; returns the change, if there is one.

        Args:
            now_ns: The present [ns], robot's clock.
            action: Whether a finite action stands at this step.
            age_ns: Since the plan was last renewed [ns].
            at_rest: Whether the command stands still.
            refused: Whether an action stands there that is not finite.
            stop: Whether the arm shall stop although it has actions.
        """
        if self.mode is Mode.FAULT:
            return None
        fresh = age_ns <= self._config.fresh_ns
        moving = self.mode in (Mode.RUNNING, Mode.COASTING)
        coast_ns = self._config.coast_ns
        if stop:
            # Once stopped it stays so: the way to the park pose is no reason to brake.
            held = at_rest or (self.mode, self.reason) == (Mode.HOLDING, Reason.STOPPING)
            mode, reason = self._stopped(held), Reason.STOPPING
        elif action and fresh:
            mode, reason = Mode.RUNNING, Reason.NONE
        elif action and moving and (coast_ns is None or age_ns <= coast_ns):
            mode, reason = Mode.COASTING, Reason.PLAN_OLD
        else:
            why = Reason.PLAN_OLD if action else Reason.NO_ACTION
            mode, reason = self._stopped(at_rest), Reason.ACTION_REFUSED if refused else why
        return self._enter(now_ns, mode, reason)

    def fault(self, now_ns: int, reason: Reason) -> Change | None:
        """Latches a fault; the first one stays."""
        if self.mode is Mode.FAULT:
            return None
        return self._enter(now_ns, Mode.FAULT, reason)

    def reset(self, now_ns: int) -> Change | None:
        """Leaves FAULT, to HOLDING. The only way out of it."""
        if self.mode is not Mode.FAULT:
            return None
        return self._enter(now_ns, Mode.HOLDING, Reason.NO_ACTION)

    def _stopped(self, at_rest: bool) -> Mode:
        return Mode.HOLDING if at_rest else Mode.DECELERATING

    def _enter(self, now_ns: int, mode: Mode, reason: Reason) -> Change | None:
        old, self.mode, self.reason = self.mode, mode, reason
        if mode is old:
            return None
        self.changes[old, mode] += 1
        return Change(now_ns, old, mode, reason)
