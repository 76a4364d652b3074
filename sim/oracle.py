"""The true state ahead, by simulating it: the forecaster that none can beat."""

from __future__ import annotations

import mujoco
import numpy as np

from controller.types import Float
from sim.env import PHYSICS_DT, SimRobot
from sim.robots import so101


class OracleForecaster:
    """Runs a copy of the physics through the actions. A ``controller.forecast.Forecaster``.

    What the task moves stands still in the copy; nothing of it touches the arm.
    """

    def __init__(self, robot: SimRobot, control_period_ns: int) -> None:
        """Args:
        robot: The simulated arm.
        control_period_ns: Time between set-points [ns].
        """
        self._robot = robot
        self._data = mujoco.MjData(robot.model)
        self._ticks = robot.spec.period_ns // control_period_ns
        self._per_tick = round(control_period_ns * 1e-9 / PHYSICS_DT)

    def forecast(self, state: Float, set_point: Float, actions: Float) -> Float:
        """See ``Forecaster.forecast``; ``state`` is the robot's own, now."""
        robot, data = self._robot, self._data
        mujoco.mj_copyData(data, robot.model, robot.data)
        point = np.asarray(set_point, dtype=np.float64)
        for action in np.asarray(actions, dtype=np.float64):
            for tick in range(1, self._ticks + 1):
                between = point + (action - point) * tick / self._ticks
                data.ctrl[:6] = so101.to_joints(between)
                mujoco.mj_step(robot.model, data, self._per_tick)
            point = action
        velocity = data.qvel[:6].copy()
        velocity[5] /= so101.GRIPPER_RANGE
        return np.concatenate([so101.to_normalised(data.qpos[:6]), velocity]).astype(np.float32)
