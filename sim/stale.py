"""The expert with late eyes: what can be won at all by a policy whose pictures are d steps old."""

from __future__ import annotations

import numpy as np

from controller.loop_types import TickResult
from controller.types import Float, Observation
from sim.env import SimRobot
from sim.robots.so101 import Array
from sim.task import Targets


class StaleExpert:
    """Plans from the scene of d steps ago, foreseen to now, and from its own joints as they are.

    An ``Infer`` for ``sim.delay.whole``. Its ``watch`` is to be called with every tick, so that it
    knows what it saw and did::

        seen        k-d
        own joints  k-d  ......  k
        plan                     k ->
    """

    def __init__(self, robot: SimRobot, delay: int, horizon: int) -> None:
        """Args:
        robot: The simulated arm with its task.
        delay: Age of what it sees [steps].
        horizon: H, length of its chunks.
        """
        self._robot, self._delay, self._horizon = robot, delay, horizon
        self._seen: list[Targets] = []
        self._joints: list[Array] = []

    def watch(self, result: TickResult) -> None:
        """Notes the scene at the beginning of each step."""
        if result.boundary:
            self._note()

    def _note(self) -> None:
        self._seen.append(self._robot.task.targets())
        self._joints.append(self._robot.position)

    def __call__(self, observation: Observation) -> Float:
        """The chunk from now on. Shape (H, A)."""
        robot, now = self._robot, observation.step
        then = max(0, now - self._delay)
        # This step is noted once its tick is over.
        seen = [*self._seen, robot.task.targets()][then]
        joints = np.stack([*self._joints, robot.position][then : now + 1])
        dt = robot.spec.period_ns * 1e-9
        scene = robot.task.foresee(seen, joints, dt)
        plan = robot.task.plan_for(scene, robot.position, robot.velocity, self._horizon, dt)
        return plan.astype(np.float32)
