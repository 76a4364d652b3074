"""What the side that plans tells the side that moves: the actions that stand, by absolute step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from controller.types import Float


class Ahead(Protocol):
    """What the side that moves asks of a plan."""

    @property
    def renewed_ns(self) -> int: ...

    @property
    def version(self) -> int: ...

    def rows(self, step: int, count: int) -> list[list[float]]: ...

    def observation_id(self, step: int) -> int: ...


@dataclass(frozen=True)
class Plan:
    """The actions from the step under way on.

    Attributes:
        first_step: Step of the first row.
        actions: Absolute, in the robot's units; n may be 0. Shape (n, A).
        observation_ids: The observation that each answers; -1 where no action stands. Shape (n,).
        renewed_ns: When an action was last taken into the plan [ns], robot's clock; -1 before.
        version: Grows with every change.
    """

    first_step: int
    actions: Float
    observation_ids: NDArray[np.int64]
    renewed_ns: int = -1
    version: int = 0

    def action(self, step: int) -> Float | None:
        """The action of a step, or None where none stands. Shape (A,)."""
        row = step - self.first_step
        if not 0 <= row < len(self.observation_ids) or self.observation_ids[row] < 0:
            return None
        return self.actions[row]

    def rows(self, step: int, count: int) -> list[list[float]]:
        """The actions that stand from a step on without a gap, ``count`` at most; plain numbers.

        Returns:
            Lengths (n, A); empty where none stands at ``step``.
        """
        row = step - self.first_step
        if row < 0:
            return []
        stand = slice(row, row + count)
        actions = self.actions[stand].tolist()
        for i, answers in enumerate(self.observation_ids[stand].tolist()):
            if answers < 0:
                return actions[:i]
        return actions

    def observation_id(self, step: int) -> int:
        """The observation that a step's action answers; -1 where none stands."""
        row = step - self.first_step
        return int(self.observation_ids[row]) if 0 <= row < len(self.observation_ids) else -1


EMPTY = Plan(0, np.zeros((0, 0), dtype=np.float32), np.zeros(0, dtype=np.int64))
