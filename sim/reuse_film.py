"""What a token cache reused, for people: the frames that the policy saw, reused patches dimmed."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from controller.types import Image

DIM = 0.3  # brightness that is left of a reused patch
SCALE = 4


def dimmed(frame: Image, chosen: NDArray[np.int64], camera: int, patch: int) -> Image:
    """A frame whose reused patches are dark.

    Args:
        frame: Newest frame of a camera. Shape (h, w, 3), uint8.
        chosen: Rows that were computed, of all cameras. Shape (M,).
        camera: Which camera it is, counted from 0.
        patch: Height and width of a patch [px].
    """
    h, w, _ = frame.shape
    rows, columns = h // patch, w // patch
    fresh = np.zeros(rows * columns, bool)
    own = chosen - camera * rows * columns
    fresh[own[(own >= 0) & (own < rows * columns)]] = True
    mask = fresh.reshape(rows, columns).repeat(patch, 0).repeat(patch, 1)[..., None]
    return np.where(mask, frame, (frame * DIM).astype(np.uint8))


@dataclass
class ReuseFilm:
    """Pictures of one episode.

    Attributes:
        patch: Height and width of a patch [px].
        pictures: All cameras side by side, one an observation. Shape (h, w, 3), uint8.
    """

    patch: int
    pictures: list[Image] = field(default_factory=list)

    def add(self, frames: list[Image], chosen: NDArray[np.int64], caption: str) -> None:
        """Adds an observation.

        Args:
            frames: Newest frame of each camera.
            chosen: Rows that were computed. Shape (M,).
            caption: Written below.
        """
        sides = [dimmed(frame, chosen, i, self.patch) for i, frame in enumerate(frames)]
        picture = np.concatenate(sides, axis=1).repeat(SCALE, 0).repeat(SCALE, 1)
        bar = np.zeros((32, picture.shape[1], 3), np.uint8)
        cv2.putText(
            bar, caption, (8, 21), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (255, 255, 255), 1, cv2.LINE_AA
        )
        self.pictures.append(np.concatenate([picture, bar]))

    def write(self, path: Path, fps: float) -> None:
        """Writes a video as H.264."""
        path.parent.mkdir(parents=True, exist_ok=True)
        height, width, _ = self.pictures[0].shape
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for picture in self.pictures:
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
                for packet in stream.encode(frame):
                    container.mux(packet)
            for packet in stream.encode():
                container.mux(packet)

    def strip(self, path: Path, count: int = 5) -> None:
        """Writes a PNG of so many pictures spread over the episode."""
        places = np.linspace(0, len(self.pictures) - 1, count + 2)[1:-1].astype(int)
        image = np.concatenate([self.pictures[i] for i in places], axis=1)
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
