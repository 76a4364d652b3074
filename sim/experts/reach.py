"""The expert of the tasks that are about reaching a moving thing in time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sim.experts.motion import plan_start, roll_out
from sim.robots import so101
from sim.robots.so101 import Array
from sim.task import Targets


@dataclass(frozen=True)
class Reach:
    """How to reach.

    Attributes:
        pitch: Hand below the horizon [rad].
        omega: Natural frequency of the motion [rad/s].
        hover: Height of the tip on the way [m].
        strike: Height of the tip at the target [m].
        strike_within: Horizontal distance below which the tip goes down [m].
    """

    pitch: float
    omega: float
    hover: float
    strike: float
    strike_within: float

    def start(self, tip: Array) -> Array:
        """Joint angles with the tip there and the gripper closed. Shape (6,), [rad]."""
        arm = so101.inverse(np.append(tip, self.pitch))
        return np.concatenate([arm, [0.0, so101.LOWER[5]]])


def reach_plan(
    motion: Reach,
    target: Targets | None,
    home: Array,
    position: Array,
    velocity: Array,
    steps: int,
    dt: float,
) -> Array:
    """Goes over the target, led by its velocity, and down on it; goes home when there is none.

    Returns:
        Set-points at the end of each period. Shape (steps, 6), action units.
    """
    start, rate = plan_start(position, velocity)
    # The reference model trails a moving goal by 2/omega, and the servo trails the command.
    lead = 2.0 / motion.omega + so101.SERVO_LAG

    def goal(i: int, x: Array, v: Array) -> Array:
        if target is None:
            return np.array([*home, motion.pitch, 0.0, 0.0])
        there = target.position[0, :2] + target.velocity[0, :2] * (i * dt + lead)
        near = np.linalg.norm(x[:2] - there) < motion.strike_within
        return np.array([*there, motion.strike if near else motion.hover, motion.pitch, 0.0, 0.0])

    omega = np.full(6, motion.omega)
    return roll_out(start, rate, goal, omega, dt, steps)
