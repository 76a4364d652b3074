"""Keeps the frames that lagged cameras need."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import numpy as np

from controller.errors import ErrorCode, OnsetError
from controller.types import CameraSpec, Image


class FrameRing:
    """The newest frames of each camera, by step."""

    def __init__(self, cameras: tuple[CameraSpec, ...]) -> None:
        self._cameras = cameras
        self._frames: dict[str, deque[tuple[int, Image]]] = {
            camera.name: deque(maxlen=max(camera.lags) + 1) for camera in cameras
        }

    def clear(self) -> None:
        """Forgets the frames of the episode before."""
        for frames in self._frames.values():
            frames.clear()

    def push(self, step: int, frames: Mapping[str, Image], *, needed_now: bool) -> None:
        """Takes the frames of a step.

        A camera without lagged frames is looked at only when its frame is needed now: a mapping
        that renders on access then renders no more than that.

        Raises:
            OnsetError: BAD_NAMES when a frame is missing, BAD_FRAME when its shape is not the
                camera's.
        """
        for camera in self._cameras:
            if needed_now or max(camera.lags) > 0:
                # A copy, since a driver may use its buffer again.
                self._frames[camera.name].append((step, np.array(_frame(frames, camera))))

    def lagged(self, step: int) -> dict[str, Image]:
        """Returns per camera the frames of its lags. Shape (lags, h, w, 3), uint8 RGB.

        The frame for a lag is the newest one at least that old; at an episode's start, where
        there is none yet, the oldest frame stands in.
        """
        return {
            camera.name: np.stack(
                [_newest_until(self._frames[camera.name], step - lag) for lag in camera.lags]
            )
            for camera in self._cameras
        }


def _frame(frames: Mapping[str, Image], camera: CameraSpec) -> Image:
    if camera.name not in frames:
        raise OnsetError(ErrorCode.BAD_NAMES, "reading.frames", sorted(frames), camera.name)
    image = frames[camera.name]
    shape = (camera.height, camera.width, 3)
    if image.shape != shape or image.dtype != np.uint8:
        raise OnsetError(
            ErrorCode.BAD_FRAME,
            f"reading.frames[{camera.name}]",
            f"{image.dtype} {image.shape}",
            f"uint8 {shape}",
        )
    return image


def _newest_until(frames: deque[tuple[int, Image]], step: int) -> Image:
    for at, image in reversed(frames):
        if at <= step:
            return image
    return frames[0][1]
