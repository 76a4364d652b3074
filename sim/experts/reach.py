"""The expert of the tasks that are about reaching a moving thing in time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sim.experts.motion import goal_of, plan_start, roll_out
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
    targets: Targets,
    home: Array,
    position: Array,
    velocity: Array,
    steps: int,
    dt: float,
) -> Array:
    """Goes over the target, led by its velocity, and down on it; goes home when there is none.

    Args:
        motion: How.
        targets: The first one is meant. One scene, or (...,) of them.
        home: Where the tip goes otherwise. Shape (3,), [m].
        position: Measured joints, action units. Shape (..., 6).
        velocity: Their rates. Shape (..., 6).
        steps: Length of the chunk.
        dt: Policy period [s].

    Returns:
        Set-points at the end of each period. Shape (..., steps, 6), action units.
    """
    start, rate = plan_start(position, velocity)
    # The reference model trails a moving goal by 2/omega, and the servo trails the command.
    lead = 2.0 / motion.omega + so101.SERVO_LAG
    place, speed = targets.position[..., 0, :2], targets.velocity[..., 0, :2]
    at_home = goal_of(np.broadcast_to(home, start[..., :3].shape), motion.pitch)
    seen = targets.visible[..., :1]

    def goal(i: int, x: Array, v: Array) -> Array:
        there = place + speed * (i * dt + lead)
        away = np.linalg.norm(x[..., :2] - there, axis=-1, keepdims=True)
        height = np.where(away < motion.strike_within, motion.strike, motion.hover)
        over = goal_of(np.concatenate([there, height], axis=-1), motion.pitch)
        return np.where(seen, over, at_home)

    omega = np.full(6, motion.omega)
    return roll_out(start, rate, goal, omega, dt, steps)
