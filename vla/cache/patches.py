"""Frames as patches, and how they differ from what was computed last. On the host, in numpy.

Frames arrive on the host, so the choice of rows is made there: a device gets the chosen patches and
their numbers, and is never waited for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from controller.types import Image

Float = NDArray[np.float32]
Bytes = NDArray[np.uint8]

CHANGES = 6  # of each patch, see ``Patcher.changes``


def patchify(frames: Image, patch: int) -> Bytes:
    """Frames (lags, h, w, 3) to patches (P, lags * patch * patch * 3), newest frame first."""
    lags, h, w, _ = frames.shape
    # A patch's line is moved as one thing of its size.
    lines = np.ascontiguousarray(frames).reshape(lags, h, w * 3).view(f"V{patch * 3}")
    grid = lines.reshape(lags, h // patch, patch, w // patch).transpose(1, 3, 0, 2)
    whole = np.ascontiguousarray(grid).reshape((h // patch) * (w // patch), -1)
    return whole.view(np.uint8)


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
        self._means, self._words = [], []
        for count in lags:
            # A product with these takes the means that numpy would take ten times as long for.
            means = np.zeros((count, pixels * 3, 2), np.float32)
            means[0, :, 0], means[..., 1] = 1 / (3 * pixels), 1 / (3 * pixels * count)
            self._means.append(means.reshape(-1, 2) / 255)
            # Bytes are compared so many at a time.
            size = math.gcd(8, count * pixels * 3)
            self._words.append(np.dtype(f"u{size}"))
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
            word = self._words[i]
            differ = (new.view(word) != old.view(word)).any(1).nonzero()[0]
            if not len(differ):
                continue
            apart = np.subtract(new.take(differ, 0), old.take(differ, 0), dtype=np.float32)
            rows = np.empty((len(differ), CHANGES), np.float32)
            np.matmul(apart[:, : self._newest], self._colours, out=rows[:, :3])
            np.abs(apart, out=apart)
            np.matmul(apart, self._means[i], out=rows[:, 3:5])
            np.multiply(apart.max(1), 1 / 255, out=rows[:, 5])
            found[differ + i * self.per_camera] = rows
        return found
