"""The image tower of a policy, run for the cameras whose frame has changed.

    observation k      front: frame A -> tower      wrist: frame B -> tower
    observation k + 1  front: frame A -> kept       wrist: frame C -> tower

A frame is the same when its bytes are. To compare two frames of 480x640 takes a twentieth of a
millisecond, less than a hash of one, and cannot err.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


@dataclass
class Slot:
    """The tower's output for one frame.

    Attributes:
        features: Shape (1, n, D); None until the tower has run.
    """

    features: Tensor | None = None


class FrameMemory:
    """One session's newest frames and what the tower made of them."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[NDArray[np.uint8] | None, Slot]] = {}

    def slot(self, camera: str, frame: NDArray[np.uint8] | None) -> Slot:
        """The slot of a camera's frame: the one before where the frame has not changed.

        Args:
            camera: Its name.
            frame: uint8 RGB. Shape (h, w, 3). None for a camera that is always blank.
        """
        kept = self._kept.get(camera)
        if kept is not None and _same(kept[0], frame):
            return kept[1]
        slot = Slot()
        self._kept[camera] = (frame, slot)
        return slot

    def clear(self) -> None:
        """Forgets every frame."""
        self._kept.clear()


def _same(old: NDArray[np.uint8] | None, new: NDArray[np.uint8] | None) -> bool:
    if old is None or new is None:
        return old is new
    return np.array_equal(old, new)


class Tower:
    """Stands in a policy's place for its image tower. One thread at a time.

    Attributes:
        runs: Frames that the tower has been run for [count].
    """

    def __init__(self, run: Callable[[Tensor], Tensor]) -> None:
        """Args:
        run: The policy's own: images of shape (n, 3, h, w) to features of shape (n, N, D).
        """
        self._run = run
        self._slots: Iterator[Slot] | None = None
        self.runs = 0

    def __call__(self, image: Tensor) -> Tensor:
        slot = None if self._slots is None else next(self._slots)
        if slot is not None and slot.features is not None:
            return slot.features
        features = self._run(image)
        self.runs += len(image)
        if slot is not None:
            slot.features = features
        return features

    @property
    def busy(self) -> bool:
        """Whether calls are for slots."""
        return self._slots is not None

    @contextmanager
    def using(self, slots: Sequence[Slot] | None) -> Iterator[None]:
        """Within it, the n-th call is for the n-th slot; without slots nothing is kept."""
        self._slots = None if slots is None else iter(slots)
        try:
            yield
        finally:
            self._slots = None
