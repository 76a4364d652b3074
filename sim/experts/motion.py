"""The motion law that all scripted experts share.

The tip follows a critically damped reference model towards a goal,
``x'' = w^2 (goal - x) - 2 w x'``. It has no clock of its own: planned again from any point of its
path it gives the same path, so the expert's chunk is a function of the present state alone, which
is what a policy can learn.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sim.robots import so101
from sim.robots.so101 import Array

# A plan's coordinates: x, y, z [m], pitch [rad], roll [rad], gripper [0..1].
DIMS = 6
Goal = Callable[[int, Array, Array], Array]


def goal_of(tip: Array, pitch: float) -> Array:
    """A goal with the tip there, no roll and the gripper closed. Shapes (..., 3) to (..., 6)."""
    rest = np.broadcast_to([pitch, 0.0, 0.0], tip.shape)
    return np.concatenate([tip, rest], axis=-1)


def plan_start(position: Array, velocity: Array) -> tuple[Array, Array]:
    """The plan's coordinates and rates, from the measured joints.

    The servo trails its command by about ``SERVO_LAG``, so the present command is the measured
    position led by that much.

    Args:
        position: Measured joints in action units. Shape (..., 6).
        velocity: Measured joint rates in action units per second. Shape (..., 6).
    """
    # The gripper may be blocked by what it holds: its measured position is its own start.
    lead = np.where(np.arange(DIMS) == 5, 0.0, so101.SERVO_LAG)
    joints = so101.to_joints(position + lead * velocity)
    rates = np.array(velocity, dtype=np.float64)
    span = 0.01
    here, ahead = so101.forward(np.stack([joints, joints + span * rates]))
    gripper = position[..., 5:]
    start = np.concatenate([here, joints[..., 4:5], gripper], axis=-1)
    rate = np.concatenate([(ahead - here) / span, rates[..., 4:]], axis=-1)
    return start, rate


def roll_out(start: Array, rate: Array, goal: Goal, omega: Array, dt: float, steps: int) -> Array:
    """Follows the reference model for ``steps`` periods.

    Args:
        start: Shape (..., 6), plan coordinates.
        rate: Shape (..., 6), their rates.
        goal: Called as ``goal(i, x, v)`` at the beginning of period i; returns shape (..., 6).
        omega: Natural frequency per coordinate [rad/s]. Shape (6,).
        dt: Period [s].

    Returns:
        Joint set-points at the *end* of each period, in action units. Shape (..., steps, 6).
    """
    decay = np.exp(-omega * dt)
    x, v = start.copy(), rate.copy()
    path = np.empty((*start.shape[:-1], steps, DIMS))
    for i in range(steps):
        target = goal(i, x, v)
        error = x - target
        slope = v + omega * error
        x = target + decay * (error + slope * dt)
        v = decay * (v - omega * dt * slope)
        path[..., i, :] = x
    joints = np.concatenate([so101.inverse(path[..., :4]), path[..., 4:]], axis=-1)
    joints[..., 4] = np.clip(joints[..., 4], so101.LOWER[4], so101.UPPER[4])
    joints[..., 5] = np.clip(joints[..., 5], 0.0, 1.0)
    return joints
