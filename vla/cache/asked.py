"""What is asked of the cache, and on whose behalf."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from controller.types import Observation


@dataclass(frozen=True)
class Whose:
    """Whose cache a request may use.

    Attributes:
        session: Tells sessions apart.
        episode: Tells the episodes of a session apart.
    """

    session: Hashable
    episode: str


class Beginning(NamedTuple):
    """Where a chunk begins.

    Attributes:
        state: Normalised state there. Shape (1, S).
        start: In steps after the images. Shape (1,), int64.
    """

    state: Tensor
    start: Tensor


@dataclass(frozen=True)
class Asked:
    """What is to be encoded.

    Attributes:
        observation: What the robot sees.
        prompt: The instruction.
        begins: Where the chunk does.
    """

    observation: Observation
    prompt: str
    begins: Beginning
