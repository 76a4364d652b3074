"""Frames of one observation: where they are decoded, and how long that takes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Executor

import cv2

from controller.codec import decode_frames
from controller.errors import ErrorCode, OnsetError
from controller.shared_frames import SharedFramesReader, frame_bytes
from controller.types import Image, RobotSpec
from onset.v1 import policy_pb2 as pb

# What holds the event loop up for 0.1 ms (raw) or less than half a millisecond (others).
_RAW_INLINE_BYTES = 512 * 1024
_SHARED_INLINE_BYTES = 2 * 1024 * 1024  # copied once, and by the kernel
_COMPRESSED_INLINE_BYTES = 400 * 1024  # decoded: two frames of 256 x 256


def is_small(wire: pb.Observation, robot: RobotSpec) -> bool:
    """Whether the frames are decoded before another thread would have begun."""
    if wire.HasField("shared_slot"):
        return frame_bytes(robot) <= _SHARED_INLINE_BYTES
    raw = compressed = 0
    for frame in wire.frames:
        size = 3 * frame.height * frame.width
        if frame.encoding == pb.FRAME_ENCODING_RAW:
            raw += size
        else:
            compressed += size
    return raw <= _RAW_INLINE_BYTES and compressed <= _COMPRESSED_INLINE_BYTES


def decode(
    wire: pb.Observation,
    robot: RobotSpec,
    helpers: Executor | None = None,
    shared: SharedFramesReader | None = None,
) -> tuple[Mapping[str, Image], int]:
    """Frames by camera, and how long they took [ns]. May run on a decoding thread."""
    began_ns = time.monotonic_ns()
    try:
        frames = decode_frames(wire, robot, helpers, shared)
    except cv2.error as error:
        raise OnsetError(
            ErrorCode.BAD_FRAME,
            "observation.frames",
            error,
            "frames that decode",
            observation_id=wire.id,
        ) from error
    return frames, time.monotonic_ns() - began_ns
