"""What a closed loop in simulation asks of a robot with its task: ours, or another suite's."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from controller.robot import Robot

Array = NDArray[np.float64]


class Scored(Protocol):
    """A task as the loop and the evaluation see it; ``sim.task.Task`` says what each means."""

    @property
    def steps(self) -> int: ...

    def success(self) -> bool: ...

    def score(self) -> float: ...

    def done(self) -> bool: ...

    def swapped_prompt(self) -> str: ...

    def swapped_success(self) -> bool: ...

    def plan(self, position: Array, velocity: Array, steps: int, dt: float) -> Array: ...


class Simulated(Robot, Protocol):
    """A robot in simulation, whose time is the caller's.

    Attributes:
        task: What is to be done.
        control_period_ns: Time between set-points [ns].
        prompt: The episode's instruction.
        position: Measured, in action units. Shape (A,).
        velocity: Its rate, in action units per second. Shape (A,).
    """

    @property
    def task(self) -> Scored: ...

    @property
    def control_period_ns(self) -> int: ...

    @property
    def prompt(self) -> str: ...

    @property
    def position(self) -> Array: ...

    @property
    def velocity(self) -> Array: ...

    def reset(self, seed: int, prompt: str | None = None, now_ns: int = 0) -> str:
        """Starts an episode at ``now_ns`` and returns its instruction."""
        ...

    def advance_to(self, now_ns: int) -> None:
        """Runs physics up to an instant."""
        ...

    def close(self) -> None: ...
