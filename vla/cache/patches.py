"""Frames as patches. On the host, in numpy.

Frames arrive on the host, so the choice of rows is made there: a device gets the chosen patches and
their numbers, and is never waited for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from controller.types import Image

Float = NDArray[np.float32]
Bytes = NDArray[np.uint8]

CHANGES = 6  # of each patch, see ``frame_changes``


def patchify(frames: Image, patch: int) -> Bytes:
    """Frames (lags, h, w, 3) to patches (P, lags * patch * patch * 3), newest frame first."""
    lags, h, w, _ = frames.shape
    # A patch's line is moved as one thing of its size.
    lines = np.ascontiguousarray(frames).reshape(lags, h, w * 3).view(f"V{patch * 3}")
    grid = lines.reshape(lags, h // patch, patch, w // patch).transpose(1, 3, 0, 2)
    return grid.copy().reshape((h // patch) * (w // patch), -1).view(np.uint8)


class Patcher:
    """Cuts the frames of all cameras.

    Attributes:
        cameras: Their names, in the model's order.
        per_camera: P, patches of a camera.
        newest: Bytes of a patch that are the newest frame's; they come first.
    """

    def __init__(self, cameras: Sequence[str], patch: int, grid: int) -> None:
        """Args:
        cameras: Names, in the model's order.
        patch: Height and width of a patch [px].
        grid: Patches per row and column.
        """
        self.cameras, self._patch = tuple(cameras), patch
        self.per_camera = grid * grid
        self.newest = patch * patch * 3

    def cut(self, frames: Mapping[str, Image]) -> list[Bytes]:
        """Per camera, patches of shape (P, K)."""
        return [patchify(frames[name], self._patch) for name in self.cameras]
