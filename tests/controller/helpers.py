"""A small robot, a small policy's description and an observation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from controller.messages import Description
from controller.types import CameraSpec, Dimension, FrameEncoding, Observation, RobotSpec

MS = 1_000_000
ROBOT = RobotSpec(
    name="two",
    state=(
        Dimension("pan.pos", "rad", -2.0, 2.0),
        Dimension("grip.pos", "1", 0.0, 1.0),
        Dimension("pan.vel", "rad/s", -9.0, 9.0),
    ),
    action=(Dimension("pan.pos", "rad", -2.0, 2.0), Dimension("grip.pos", "1", 0.0, 1.0)),
    cameras=(
        CameraSpec("front", 24, 32, FrameEncoding.PNG, (0, 2)),
        CameraSpec("wrist", 16, 16, FrameEncoding.RAW),
    ),
    period_ns=40 * MS,
)
# Wide limits, so that an action may carry the id of the observation that it answers.
WIDE = replace(
    ROBOT,
    state=tuple(replace(d, lower=-1e6, upper=1e6) for d in ROBOT.state),
    action=tuple(replace(d, lower=-1e6, upper=1e6) for d in ROBOT.action),
)
DESCRIPTION = Description(
    model="fake",
    model_hash="0f",
    prompts=("hit the red mole",),
    horizon=8,
    robot=ROBOT,
    strategies=("naive",),
    expert_steps=10,
    min_delay=0,
    max_delay=8,
)


def frames_of(robot: RobotSpec, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {c.name: rng.integers(0, 256, c.frames_shape, dtype=np.uint8) for c in robot.cameras}


def observation(robot: RobotSpec = ROBOT, **changes) -> Observation:
    base = Observation(
        id=3,
        step=7,
        capture_ns=11,
        state=np.array([0.5, 0.25, -1.0], np.float32),
        frames=frames_of(robot),
        committed=np.array([[0.1, 0.2], [0.3, 0.4]], np.float32),
        planned=np.array([[0.5, 0.6]], np.float32),
        delay=3,
        deadline_ns=120 * MS,
    )
    return replace(base, **changes)
