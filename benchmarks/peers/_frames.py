"""Frames like a camera's: a table, things on it that move, cloth, and a little sensor noise."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

HEIGHT, WIDTH = 480, 640


class Scene:
    """Draws frame after frame of one camera."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        # Texture at several scales, as wood and cloth have it.
        table = np.zeros((HEIGHT, WIDTH, 3), np.float32)
        for cells, weight in ((4, 60.0), (16, 24.0), (64, 10.0)):
            small = self._random.normal(0, 1, (cells * 3 // 4, cells, 3)).astype(np.float32)
            table += weight * cv2.resize(small, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
        self._table = np.clip(128 + table, 0, 255).astype(np.uint8)

    def frame(self, number: int) -> NDArray[np.uint8]:
        """uint8 RGB. Shape (480, 640, 3)."""
        picture = self._table.copy()
        for i in range(6):
            x = int(60 + 95 * i + 20 * np.sin(0.3 * number + i))
            y = int(240 + 140 * np.cos(0.2 * number + 2 * i))
            colour = (40 * i, 255 - 40 * i, (90 * i) % 255)
            cv2.circle(picture, (x, y), 22 + 3 * i, colour, -1, cv2.LINE_AA)
            cv2.line(picture, (x, y), (WIDTH // 2, 0), (30, 30, 30), 5, cv2.LINE_AA)
        noise = self._random.normal(0, 1.5, picture.shape)
        return np.clip(picture + noise, 0, 255).astype(np.uint8)
