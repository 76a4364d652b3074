"""Frames as patches, and how they differ from what was computed last. On the host, in numpy.

Frames arrive on the host, so the choice of rows is made there: a device gets the chosen patches and
their numbers, and is never waited for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from controller.types import Image

Float = NDArray[np.float32]
Bytes = NDArray[np.uint8]

CHANGES = 6  # of each patch, see ``Patcher.changes``


def patchify(frames: Image, patch: int) -> Bytes:
    """Frames (lags, h, w, 3) to patches (P, lags * patch * patch * 3), newest frame first."""
    lags, h, w, _ = frames.shape
    grid = frames.reshape(lags, h // patch, patch, w // patch, patch * 3)
    return np.ascontiguousarray(grid.transpose(1, 3, 0, 2, 4)).reshape(
        (h // patch) * (w // patch), -1
    )


class Patcher:
    """Cuts the frames of all cameras, and compares them."""

    def __init__(self, cameras: Sequence[str], lags: Sequence[int], patch: int, grid: int) -> None:
        """Args:
        cameras: Names, in the model's order.
        lags: Frames per camera.
        patch: Height and width of a patch [px].
        grid: Patches per row and column.
        """
        self.cameras, self._patch = tuple(cameras), patch
        self.per_camera = grid * grid
        pixels = patch * patch
        self._means = []
        for count in lags:
            # A product with these takes the means that numpy would take ten times as long for.
            means = np.zeros((count, pixels * 3, 2), np.float32)
            means[0, :, 0], means[..., 1] = 1 / (3 * pixels), 1 / (3 * pixels * count)
            self._means.append(means.reshape(-1, 2) / 255)
        self._newest = pixels * 3  # columns of a patch that are the newest frame's
        self._colours = np.tile(np.eye(3, dtype=np.float32) / (255 * pixels), (pixels, 1))

    def cut(self, frames: Mapping[str, Image]) -> list[Bytes]:
        """Per camera, patches of shape (P, K)."""
        return [patchify(frames[name], self._patch) for name in self.cameras]

    def changes(self, patches: Sequence[Bytes], reference: Sequence[Bytes]) -> Float:
        """How each patch differs from its reference, each value of full scale.

        Shape (N, 6): change of mean red, green and blue of the newest frame; mean difference of the
        newest frame, mean and greatest difference of all lags.
        """
        found = np.zeros((len(patches) * self.per_camera, CHANGES), np.float32)
        for i, (new, old) in enumerate(zip(patches, reference, strict=True)):
            # What is the same bit for bit needs no arithmetic.
            differ = np.flatnonzero((new != old).any(1))
            if not len(differ):
                continue
            new, old = new[differ], old[differ]
            rows, apart = np.empty((len(differ), CHANGES), np.float32), cv2.absdiff(new, old)
            np.matmul(apart.astype(np.float32), self._means[i], out=rows[:, 3:5])
            rows[:, 5] = apart.max(1)
            rows[:, 5] /= 255
            np.matmul(new[:, : self._newest].astype(np.float32), self._colours, out=rows[:, :3])
            rows[:, :3] -= old[:, : self._newest].astype(np.float32) @ self._colours
            found[differ + i * self.per_camera] = rows
        return found
