"""The robot of the comparison, for both wires."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.peers._frames import HEIGHT, WIDTH
from controller.types import CameraSpec, Dimension, FrameEncoding, Image, Observation, RobotSpec

CAMERAS = ("front", "wrist")
PERIOD_NS = 33_333_333


def robot(dimensions: int, height: int = HEIGHT, width: int = WIDTH) -> RobotSpec:
    """A robot with as many joints, and two cameras whose frames travel in this size as JPEG."""
    joints = tuple(Dimension(f"joint{i}.pos", "rad", -9.0, 9.0) for i in range(dimensions))
    cameras = tuple(CameraSpec(name, height, width, FrameEncoding.JPEG) for name in CAMERAS)
    return RobotSpec("two cameras", joints, joints, cameras, PERIOD_NS)


def features(dimensions: int) -> dict[str, Any]:
    """The same robot as LeRobot's dataset features."""
    names = [f"joint{i}.pos" for i in range(dimensions)]
    images = {
        f"observation.images.{name}": {
            "dtype": "image",
            "shape": (HEIGHT, WIDTH, 3),
            "names": ["height", "width", "channels"],
        }
        for name in CAMERAS
    }
    state = {"dtype": "float32", "shape": (dimensions,), "names": names}
    return {"observation.state": state} | images


def ours(number: int, state: np.ndarray, frames: dict[str, Image]) -> Observation:
    """An observation on our wire."""
    none = np.zeros((0, len(state)), np.float32)
    return Observation(
        id=number,
        step=number,
        capture_ns=number + 1,
        state=state,
        frames={name: frame[None] for name, frame in frames.items()},
        committed=none,
        planned=none,
        delay=0,
        deadline_ns=0,
    )


def theirs(state: np.ndarray, frames: dict[str, Image], task: str) -> dict[str, Any]:
    """The same observation on LeRobot's wire."""
    joints = {f"joint{i}.pos": float(value) for i, value in enumerate(state)}
    return joints | dict(frames) | {"task": task}
