"""What goes into the control loop and what comes out of a tick."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from controller.bounds import MAX_HORIZON, check_range
from controller.errors import ErrorCode, OnsetError
from controller.executor import Execution
from controller.strategy import Strategy, get_strategy
from controller.types import Float


@dataclass(frozen=True)
class LoopConfig:
    """Settings of a control loop.

    Attributes:
        control_period_ns: Time between ticks [ns]; divides the policy period.
        execute_steps: K: an observation is sent this long after the one before [steps].
        observe_when_empty: Send one at once when no action is ahead and none is on its way.
        strategy: How a new chunk is conditioned and takes over from the old one: a name of
            ``controller.strategy.STRATEGIES``.
        delay_steps: A fixed delay of a strategy that counts on one [steps]; None to measure it.
        min_delay: Least measured delay [steps].
        max_delay: Greatest measured delay [steps].
        margin_ns: Added to the measured latency [ns]. Less than 0 lets an action come that much
            after its step began: it then amends the step.
        horizon_limit: Actions further ahead than this are refused [steps].
        speedup: q: so many actions of a chunk are merged into one step. Velocity limits of the
            robot's state are kept after it. 1 where a chunk is guided by the old one.
        keep_velocity: Cut a step short where its set-points would be faster than the velocity
            limits of the robot's state; always with ``speedup``.
    """

    control_period_ns: int
    execute_steps: int
    observe_when_empty: bool = True
    strategy: str = "naive"
    delay_steps: int | None = None
    min_delay: int = 0
    max_delay: int = 12
    margin_ns: int = 0
    horizon_limit: int = MAX_HORIZON
    speedup: int = 1
    keep_velocity: bool = False

    @property
    def way(self) -> Strategy:
        """The strategy itself."""
        return get_strategy(self.strategy, "config.strategy")

    def __post_init__(self) -> None:
        check_range("config.control_period_ns", self.control_period_ns, 1, 2**62)
        check_range("config.execute_steps", self.execute_steps, 1, MAX_HORIZON)
        if self.delay_steps is not None:
            check_range("config.delay_steps", self.delay_steps, 0, MAX_HORIZON)
        check_range("config.speedup", self.speedup, 1, 1 if self.way.guided else MAX_HORIZON)
        if not self.way.delayed and self.delay_steps is not None:
            raise OnsetError(
                ErrorCode.BAD_VALUE,
                "config.delay_steps",
                self.delay_steps,
                f"None with {self.strategy!r}, which counts on no delay",
            )


class TickCode(StrEnum):
    """What drove the set-point of a tick."""

    RUNNING = "running"
    STARVED = "starved"
    REFUSED = "refused"


@dataclass(frozen=True)
class TickResult:
    """What one tick did.

    Attributes:
        code: RUNNING: an action; STARVED: none was there, the last set-point is held; REFUSED:
            the action was not finite, the last set-point is held or, where the step was amended,
            the action before it goes on. An amended step has the code of its newest action.
        step: The present step.
        set_point: What was written. Shape (A,), units as in the spec.
        boundary: Whether a step began with this tick.
        observed: Whether an observation was handed to the link.
        clamped: Whether the action of this step was clamped to the limits.
        skipped: Steps that time had passed over before this tick [count].
        missed: Ticks that should have come before this one and did not [count].
        delay_over_limit: Whether the measured delay is past ``max_delay``.
        observation_id: The observation whose action drives this step; -1 where none does.
        forecast_error: At the boundary of a step whose state was forecast: measured minus
            forecast state. Shape (S,). Else None.
        error: Why an observation was not sent, or what the link raised; else None. The loop
            goes on.
        execution: What the executor decided, where the loop moves within limits.
    """

    code: TickCode
    step: int
    set_point: Float
    boundary: bool = False
    observed: bool = False
    clamped: bool = False
    skipped: int = 0
    missed: int = 0
    delay_over_limit: bool = False
    observation_id: int = -1
    forecast_error: Float | None = None
    error: OnsetError | None = None
    execution: Execution | None = None


@dataclass
class Counters:
    """Counts since the episode began.

    Attributes:
        ticks: Ticks run.
        steps: Steps begun.
        observations: Observations handed to the link.
        slices: Slices polled.
        accepted: Actions that the timeline took for steps to come.
        amended: Actions that it took for the step under way.
        late: Actions dropped because their step was past.
        committed: Actions dropped because their step was committed.
        superseded: Actions dropped for a newer observation's.
        duplicate: Actions dropped because they were there already.
        beyond: Actions dropped for being too far ahead.
        stale: Actions dropped because they answer an earlier episode.
        malformed: Slices dropped because their shape does not fit the robot.
        starved: Steps that began without an action; the last set-point was held.
        refused: Actions that were not finite when their step came or was under way.
        clamped: Actions that were clamped to the limits then.
        skipped: Steps that time passed over.
        missed_deadlines: Ticks that should have come and did not.
        over_limit: Observations sent while the measured delay was past ``max_delay``.
        errors: Ticks with an error.
    """

    ticks: int = 0
    steps: int = 0
    observations: int = 0
    slices: int = 0
    accepted: int = 0
    amended: int = 0
    late: int = 0
    committed: int = 0
    superseded: int = 0
    duplicate: int = 0
    beyond: int = 0
    stale: int = 0
    malformed: int = 0
    starved: int = 0
    refused: int = 0
    clamped: int = 0
    skipped: int = 0
    missed_deadlines: int = 0
    over_limit: int = 0
    errors: int = 0
