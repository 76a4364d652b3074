"""Meta-World's hand as a robot: absolute set-points where Meta-World has steps.

Meta-World's action moves a point that the hand is welded to, by at most 1 cm along each axis in an
environment step of 12.5 ms, and opens or closes the gripper with some effort. Here an action is
where that point is to be at the end of a policy step, so that plans can be merged, limited and
forecast; the simulation goes there as fast as Meta-World's own limit allows::

    policy step   |-------------- 50 ms --------------|
    set-points    |        x        x        x        x   4, on a straight line to the action
    Meta-World    |--step--|--step--|--step--|--step--|   action = clip((x - point) / 1 cm, -1, 1)

The hand trails the point by some centimetres when it moves, and stays behind it when it pushes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from controller.types import CameraSpec, Dimension, FrameEncoding, RobotSpec

Array = NDArray[np.float64]

TICK_NS = 12_500_000  # one environment step of Meta-World
TICKS = 4  # of them in a policy period
PERIOD_NS = TICKS * TICK_NS
STEP_M = 0.01  # farthest that the point goes in an environment step, along each axis [m]
CAMERAS = ("corner4", "topview")  # two, so that a point in the air has a place
IMAGE_SIZE = 64  # [px]

NAMES = ("hand_x", "hand_y", "hand_z", "gripper")
# Where the hand may be sent in any of the tasks; each keeps its own, narrower bounds.
_LOWER, _UPPER = (-0.5, 0.35, -0.15, 0.0), (0.5, 1.0, 0.5, 1.0)
_SPEED = STEP_M / (TICK_NS * 1e-9)  # [m/s]
_GRIPPER_SPEED = 10.0  # [1/s]


def spec(encoding: FrameEncoding = FrameEncoding.RAW) -> RobotSpec:
    """The robot: state is position and velocity of hand and gripper, action their position.

    The hand is in m and m/s. The gripper is 0 closed and 1 open; as an action it is an effort,
    from full effort to close to full effort to open.
    """
    action, velocity = [], []
    for name, lower, upper in zip(NAMES, _LOWER, _UPPER, strict=True):
        gripper = name == "gripper"
        speed = _GRIPPER_SPEED if gripper else _SPEED
        action.append(Dimension(f"{name}.pos", "1" if gripper else "m", lower, upper))
        velocity.append(Dimension(f"{name}.vel", "1/s" if gripper else "m/s", -speed, speed))
    cameras = tuple(CameraSpec(name, IMAGE_SIZE, IMAGE_SIZE, encoding) for name in CAMERAS)
    return RobotSpec("metaworld-sawyer", (*action, *velocity), tuple(action), cameras, PERIOD_NS)


def to_action(set_point: Array, point: Array) -> Array:
    """The set-point as Meta-World's action in -1..1. Shape (4,).

    Args:
        set_point: Where the point is to be [m], and the gripper's effort 0..1. Shape (4,).
        point: Where it is [m]. Shape (3,).
    """
    step = (set_point[:3] - point) / STEP_M
    return np.clip(np.append(step, 1.0 - 2.0 * set_point[3]), -1.0, 1.0)


def to_set_point(point: Array, effort: float) -> Array:
    """The inverse of ``to_action``, once the step is made. Shape (4,).

    Args:
        point: Where the point is now [m]. Shape (3,).
        effort: Meta-World's, -1 to open and 1 to close; more is clipped.
    """
    return np.append(point, 0.5 - 0.5 * np.clip(effort, -1.0, 1.0))
