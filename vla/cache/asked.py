"""What is asked of the cache, and on whose behalf."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import torch

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


@dataclass(frozen=True)
class Asked:
    """What is to be encoded.

    Attributes:
        observation: What the robot sees.
        prompt: The instruction.
        state: Normalised state at the chunk's beginning. Shape (1, S).
        start: The chunk's beginning, in steps after the images. Shape (1,), int64.
    """

    observation: Observation
    prompt: str
    state: torch.Tensor
    start: torch.Tensor
