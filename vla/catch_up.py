"""Catching up with a delay: a new plan that turns elsewhere begins with its observation.

A late chunk begins where the arm will be once the old plan was followed for the delay. Where both
plans go the same way, nothing was lost. Where they do not, the arm would have turned d steps ago::

    step        k            k+d           k+2d
    old plan    |-------------|- - - - - - - o
    late                      |n n n n n n n n      where n has come is near o: it is taken
    at once     |. . . . . . .|e e e e e e e        elsewhere: this one is, from its action d on

The first d actions of a chunk that begins at k are past: the robot goes from where the old plan has
brought it straight for the rest, at the policy's pace, or where it has none as fast as the robot's
limits allow. All of it keeps the scene's time: an action is for its step, whoever moves meanwhile.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from controller.types import Float, Observation, RobotSpec
from vla.chunking import Condition, Scales

# How far apart two plans lead, as a share of both ways: 0 where they are the same, 1 where they are
# opposite or one of them stands still.
ELSEWHERE = 0.4
# Ways shorter than this count as this long [standard deviations of the policy's actions].
STILL = 0.1


def can_catch_up(observation: Observation, horizon: int) -> bool:
    """Whether there is a delay, a chunk outlasts it, and it is known what the old plan says.

    It is not where several actions are merged into one: the observation has no set-point then.
    """
    return 0 < observation.delay < horizon and observation.set_point is not None


def turns(late: Tensor, observation: Observation, state: Float, scales: Scales) -> bool:
    """Whether a late chunk turns elsewhere than the old plan.

    Both are compared by where they have come to after another delay, or where the old plan ends.
    Where there is none the robot would stand still.

    Args:
        late: The chunk, or what one expert step expects of it; normalised. Shape (1, H, A).
        observation: With its committed and planned actions and its set-point.
        state: Where the chunk begins, in the robot's units. Shape (S,).
        scales: The policy's.
    """
    planned = observation.planned[: observation.delay]
    here = brought_to(observation)
    old = planned[-1] if len(planned) else here
    at = (len(planned) or observation.delay) - 1
    # Normalisation may differ from index to index.
    rows = torch.from_numpy(np.array([here, old], dtype=np.float32))
    rows = rows[:, None].expand(-1, at + 1, -1)
    states = torch.from_numpy(np.array(state, dtype=np.float32))[None]
    begin, kept = scales.chunk(rows, states.expand(2, -1))[:, -1]
    way, old_way = late[0, at].cpu() - begin, kept - begin
    length = max(float(way.norm() + old_way.norm()), STILL)
    return float((way - old_way).norm()) > ELSEWHERE * length


def brought_to(observation: Observation) -> Float:
    """Where the old plan brings the set-point by the end of the delay. Shape (A,)."""
    committed = observation.committed
    return committed[-1] if len(committed) else np.asarray(observation.set_point)


def at_once(observation: Observation) -> Condition:
    """The condition of a chunk that begins with its observation, d actions of which are past."""
    return Condition(0, observation.state, unused=observation.delay)


class Paced:
    """A chunk's way from where the old plan has brought the robot, no faster than a pace.

    The joints keep the direction in which the chunk leads, and are with it again once it is slower.
    What is measured in another unit, as a gripper, is left to the chunk.
    """

    def __init__(self, begin: Float, robot: RobotSpec, pace: float) -> None:
        """Args:
        begin: Where it sets out from. Shape (A,).
        robot: Whose actions they are.
        pace: Greatest speed of a joint [rad/s].
        """
        self._at = begin
        self._joints: NDArray[np.bool_] = np.array([d.unit == "rad" for d in robot.action])
        self._step = pace * robot.period_ns * 1e-9

    def follow(self, actions: Float) -> Float:
        """The next actions of the chunk as they are to be sent. Shapes (n, A)."""
        paced = np.array(actions)
        for row in paced:
            way = (row - self._at)[self._joints]
            longest = np.abs(way).max(initial=0.0)
            if longest > self._step:
                row[self._joints] = self._at[self._joints] + way * (self._step / longest)
            self._at = row
        return paced
