"""A frame as a policy's tower sees it, small, to be compared patch by patch."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

SIDE = 16  # height and width of a patch [px]; only to compare, so finer than this tells no more


def fit(frame: NDArray[np.uint8], grid: int, centred: bool) -> NDArray[np.uint8]:
    """A frame in a square, its shape kept, black around it, as LeRobot's ``resize_with_pad``.

    Args:
        frame: uint8 RGB. Shape (h, w, 3).
        grid: Patches per row and column; each is an image token's.
        centred: Whether the frame stands in the middle; else at the lower right.

    Returns:
        Shape (1, grid * SIDE, grid * SIDE, 3).
    """
    side, (height, width) = grid * SIDE, frame.shape[:2]
    ratio = max(height, width) / side
    inner = max(1, int(height / ratio)), max(1, int(width / ratio))
    top, left = ((side - length) // (2 if centred else 1) for length in inner)
    square = np.zeros((1, side, side, 3), np.uint8)
    small = cv2.resize(frame, inner[::-1], interpolation=cv2.INTER_AREA)
    square[0, top : top + inner[0], left : left + inner[1]] = small
    return square
