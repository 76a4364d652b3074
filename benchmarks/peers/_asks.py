"""The robot's side of both wires in the comparison: what it sees, and how long an answer takes."""

from __future__ import annotations

import time

import numpy as np

from benchmarks.peers._frames import HEIGHT, WIDTH, Scene
from benchmarks.peers._robots import CAMERAS, ours, robot
from controller.client import GrpcLink
from controller.client_session import LinkConfig
from controller.frames import fit_image
from controller.types import Image

TASK = "pick the red cube"


def scenes() -> dict[str, Scene]:
    """What each camera sees."""
    return {name: Scene(seed) for seed, name in enumerate(CAMERAS)}


def observed(
    number: int, seen: dict[str, Scene], joints: int
) -> tuple[np.ndarray, dict[str, Image]]:
    """State, and frames by camera, of one observation."""
    state = np.sin(0.1 * number + np.arange(joints)).astype(np.float32)
    return state, {name: scene.frame(number) for name, scene in seen.items()}


def link_to(
    address: str,
    joints: int,
    height: int = HEIGHT,
    width: int = WIDTH,
    *,
    shared_frames: bool = True,
) -> GrpcLink:
    """Our robot's end; frames travel in this size."""
    patient = LinkConfig(reply_deadline_s=120.0, open_timeout_s=120.0, shared_frames=shared_frames)
    spec = robot(joints, height, width)
    return GrpcLink(address, spec, robot_id="bench", prompt=TASK, config=patient)


def first_ms(link: GrpcLink, number: int, state: np.ndarray, frames: dict[str, Image]) -> float:
    """Time to the first action [ms]; waits for the others before it returns."""
    began = time.perf_counter_ns()
    link.submit(ours(number, state, frames))
    took, final = 0.0, False
    while not final:
        link.wait(120.0)
        for piece in link.poll(0):
            took = took or (time.perf_counter_ns() - began) * 1e-6
            final = final or piece.final
    return took


def whole_ms(
    link: GrpcLink, number: int, state: np.ndarray, frames: dict[str, Image], side: int = 0
) -> float:
    """Time to the whole chunk [ms], with the scaling of frames to ``side``; none when 0."""
    began = time.perf_counter_ns()
    if side:
        frames = {name: fit_image(frame, side, side) for name, frame in frames.items()}
    first_ms(link, number, state, frames)
    return (time.perf_counter_ns() - began) * 1e-6
