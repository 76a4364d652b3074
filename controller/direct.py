"""Policy actions as set-points without a limiter: straight lines, clamped to the joint limits.

What simulation uses to compare policies and strategies, and what peers do on a real arm::

    set-point
        new   .............................o    o  a slice amends the step at its second tick
                                     x     |    x  set-points written, here 4 per step
                               x           |
        old   ...........x.................|
                    x                      |
              o----------------------------|--> time
              |     |    |     |     |
            ticks        slice

Without an action the last set-point is held, at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from controller.interpolate import set_point
from controller.loop_types import LoopConfig, TickCode
from controller.plan import Plan
from controller.speedup import limit_step, velocity_limits
from controller.types import Float, RobotSpec


@dataclass(frozen=True)
class Step:
    """The present step: from ``start`` to ``target``, since ``since_ns`` after it began.

    Attributes:
        index: The step.
        start: Set-point where it begins. Shape (A,).
        target: Set-point where it ends. Shape (A,).
        code: What drives it.
        clamped: Whether its action was clamped to the limits.
        since_ns: When it took this target, after its beginning [ns].
    """

    index: int
    start: Float
    target: Float
    code: TickCode
    clamped: bool
    since_ns: int = 0


class DirectMotion:
    """Straight lines between the policy's actions."""

    def __init__(self, spec: RobotSpec, config: LoopConfig) -> None:
        self._config, self._period_ns = config, spec.period_ns
        self._lower, self._upper = spec.action_lower, spec.action_upper
        self._limits = velocity_limits(spec)
        self._keep = config.keep_velocity or config.speedup > 1

    def reset(self, position: Float) -> None:
        """The set-point is ``position``. Shape (A,)."""
        self.set_point = np.asarray(position, dtype=np.float32)
        self.step: Step | None = None

    @property
    def code(self) -> TickCode:
        """What drives the step."""
        return TickCode.STARVED if self.step is None else self.step.code

    @property
    def clamped(self) -> bool:
        """Whether its action was clamped to the limits."""
        return self.step is not None and self.step.clamped

    def tick(self, index: int, elapsed_ns: int, plan: Plan, amended: bool) -> bool:
        """Moves the set-point by one control period; says whether the step took a new target.

        Args:
            index: The present step.
            elapsed_ns: Time since it began [ns].
            plan: The actions that stand.
            amended: Whether the step's action was replaced since the tick before.
        """
        step, turned = self.step, False
        if step is None or step.index != index:
            start = np.asarray(self.set_point, dtype=np.float32)
            held = Step(index, start, start, TickCode.STARVED, clamped=False)
            step, turned = self._towards(plan.action(index), held), True
        elif amended:
            start = np.asarray(self.set_point, dtype=np.float32)
            step = self._towards(
                plan.action(index), replace(step, start=start, since_ns=elapsed_ns)
            )
            turned = True
        self.step = step
        self.set_point = set_point(
            step.start,
            step.target,
            elapsed_ns - step.since_ns,
            self._config.control_period_ns,
            self._period_ns - step.since_ns,
        )
        return turned

    def _towards(self, action: Float | None, step: Step) -> Step:
        """The step with the action as its target; its own target where there is no usable one."""
        if action is None:
            return step
        if not np.isfinite(action).all():
            return replace(step, code=TickCode.REFUSED)
        target = np.clip(action, self._lower, self._upper)
        clamped = bool((target != action).any())
        if self._keep:
            rest_ns = self._period_ns - step.since_ns
            target, short = limit_step(step.start, target, self._limits, rest_ns)
            clamped = clamped or short
        return replace(step, target=target, code=TickCode.RUNNING, clamped=clamped)
