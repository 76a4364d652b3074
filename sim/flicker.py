"""Light that flickers on a part of the picture: pixels that change and mean nothing.

The nearest part of the table, the bottom of the fixed camera's picture, is lit by something outside
of the scene: blinds, passers-by, a screen. Blocks of it are brighter or darker in each frame; no
colour changes, and nothing of what a task is about lies there for long.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from controller.errors import ErrorCode, OnsetError
from controller.types import Image

BLOCK = 12  # [px]
CAMERA = "front"


@dataclass(frozen=True)
class Flicker:
    """The light.

    Attributes:
        share: Share of the picture's height that it reaches, from below.
        size: Standard deviation of a block's brightness [of full scale].
    """

    share: float
    size: float = 0.06

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            OnsetError: BAD_VALUE, with what is allowed.
        """
        if not 0 < self.share <= 1:
            raise OnsetError(ErrorCode.BAD_VALUE, "flicker.share", self.share, "above 0, up to 1")
        if not 0 < self.size <= 1:
            raise OnsetError(ErrorCode.BAD_VALUE, "flicker.size", self.size, "above 0, up to 1")

    def light(self, frame: Image, seed: int, frame_number: int) -> Image:
        """A frame under it. uint8 RGB, shape (h, w, 3), as the result.

        Args:
            frame: Without it.
            seed: Of the episode.
            frame_number: Tells frames of an episode apart; the same number gives the same light.
        """
        height, width, _ = frame.shape
        rows = round(self.share * height)
        rng = np.random.default_rng([seed, frame_number, 3])
        blocks = rng.normal(0.0, 255 * self.size, (-(-rows // BLOCK), -(-width // BLOCK)))
        bright = blocks.repeat(BLOCK, 0)[-rows:].repeat(BLOCK, 1)[:, :width, None]
        lit = frame.copy()
        lit[-rows:] = np.clip(np.rint(frame[-rows:] + bright), 0, 255)
        return lit
