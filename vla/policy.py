"""What every flow policy offers to the sampler, the trainer and the server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class PolicyInput:
    """A batch of observations as a model takes them.

    Attributes:
        images: Per camera, uint8 RGB of all its lags. Shape (B, lags, h, w, 3).
        state: Normalised state at the chunk's beginning. Shape (B, S).
        tokens: Instruction token ids, 0 for padding. Shape (B, W), int64.
        start: The chunk's beginning, in steps after the images. Shape (B,), int64.
    """

    images: dict[str, Tensor]
    state: Tensor
    tokens: Tensor
    start: Tensor

    def to(self, device: torch.device) -> PolicyInput:
        return PolicyInput(
            {name: image.to(device) for name, image in self.images.items()},
            self.state.to(device),
            self.tokens.to(device),
            self.start.to(device),
        )


@dataclass(frozen=True)
class Context:
    """What one encoding of an observation leaves for every expert step.

    Attributes:
        keys_values: Keys, then values, one per layer. Shape (B, 2, heads, N, D / heads).
        summary: State and readouts, added to every action token. Shape (B, D).
        image_rows: How many of the N rows are image tokens; they come first.
    """

    keys_values: tuple[Tensor, ...]
    summary: Tensor
    image_rows: int


class FlowPolicy(Protocol):
    """A policy whose chunk is the end of a flow.

    Attributes:
        horizon: H, actions in a chunk.
        action_dim: A.
    """

    @property
    def horizon(self) -> int: ...

    @property
    def action_dim(self) -> int: ...

    def encode(self, inputs: PolicyInput) -> Context:
        """Runs vision and prefix once."""
        ...

    def velocity(self, x: Tensor, tau: Tensor, context: Context) -> Tensor:
        """One expert step.

        Args:
            x: Normalised noisy chunk. Shape (B, H, A).
            tau: Flow time of each action index. Shape (B, H).
            context: From ``encode``.

        Returns:
            Velocity. Shape (B, H, A).
        """
        ...


class MeanFlowPolicy(FlowPolicy, Protocol):
    """A flow policy that also knows average velocities (MeanFlow, arXiv 2507.10543)."""

    def average_velocity(self, x: Tensor, start: Tensor, end: Tensor, context: Context) -> Tensor:
        """The velocity averaged from ``start`` down to ``end``, along the flow through x.

        With ``end`` equal to ``start`` it is ``velocity``.

        Args:
            x: Normalised noisy chunk at ``start``. Shape (B, H, A).
            start: Flow time of each action index. Shape (B, H).
            end: Where the jump ends, at most ``start``. Shape (B, H).
            context: From ``encode``.

        Returns:
            Velocity. Shape (B, H, A).
        """
        ...
