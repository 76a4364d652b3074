"""A policy as the training of its cache sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vla.cache.blend import Past, blended_encode, measured_effect
from vla.cache.patches import Bytes, Patcher
from vla.checkpoint import Checkpoint
from vla.policy import Context, PolicyInput


@dataclass(frozen=True)
class Rollout:
    """Observations of one episode, in order.

    Attributes:
        prompt: The instruction.
        state: Measured state, robot's units. Shape (T, S).
        frames: Per camera. Shape (T, lags, h, w, 3), uint8.
    """

    prompt: str
    state: NDArray[np.float32]
    frames: Mapping[str, NDArray[np.uint8]]


class BlendedPolicy[I, C](Protocol):
    """A frozen policy that encodes with a mask of rows. I is its batch, C its context.

    Attributes:
        patcher: Cuts its frames, a patch per image token.
        width: D, of an instruction.
        shape: H and A of its chunk, as its expert sees them.
        arm: Dimensions of the state that are joints. Shape (n,), int64.
        grippers: Those that are grippers. Shape (n,), int64.
    """

    patcher: Patcher
    width: int
    shape: tuple[int, int]
    arm: NDArray[np.int64]
    grippers: NDArray[np.int64]

    def cut(self, rollout: Rollout, at: int) -> list[Bytes]:
        """Per camera the patches of a frame. Shape (P, K)."""
        ...

    def inputs(self, drawn: Sequence[Rollout], places: Sequence[int]) -> I:
        """A batch: of each rollout the frame at its place."""
        ...

    def instruction(self, inputs: I) -> Tensor:
        """Embeddings of the instructions. Shape (B, D)."""
        ...

    def encode(
        self, inputs: I, past: Past | None = None, mask: Tensor | None = None
    ) -> tuple[C, Past]:
        """As ``vla.cache.blend.blended_encode``."""
        ...

    def effect(self, inputs: I, past: Past, generator: torch.Generator) -> Tensor:
        """As ``vla.cache.blend.measured_effect``. Shape (B, N)."""
        ...

    def clean(self, x: Tensor, tau: Tensor, context: C) -> Tensor:
        """The clean chunk expected at a noisy one, (B, H, A), and times, (B, H)."""
        ...


class BlendedBuiltIn:
    """The built-in policy, as a ``BlendedPolicy``."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Args:
        checkpoint: The policy; it is frozen.
        """
        self._checkpoint = checkpoint
        self._model = checkpoint.model.requires_grad_(False)
        model, robot = checkpoint.meta.model, checkpoint.meta.robot
        self.patcher = Patcher(model.cameras, model.patch, model.grid)
        self.width, self.shape = model.width, (model.horizon, model.action_dim)
        self.grippers = np.flatnonzero([d.unit == "1" for d in robot.state])
        self.arm = np.flatnonzero([d.unit == "rad" for d in robot.state])

    def cut(self, rollout: Rollout, at: int) -> list[Bytes]:
        return self.patcher.cut({name: frames[at] for name, frames in rollout.frames.items()})

    def inputs(self, drawn: Sequence[Rollout], places: Sequence[int]) -> PolicyInput:
        scales, tokeniser = self._checkpoint.normaliser, self._checkpoint.tokeniser
        pairs = list(zip(drawn, places, strict=True))
        images = {
            name: torch.from_numpy(np.stack([r.frames[name][at] for r, at in pairs]))
            for name in self.patcher.cameras
        }
        state = torch.from_numpy(np.stack([r.state[at] for r, at in pairs]))
        tokens = torch.stack([tokeniser.encode(r.prompt) for r in drawn])
        start = torch.zeros(len(drawn), dtype=torch.int64)
        return PolicyInput(images, scales.state(state), tokens, start)

    def instruction(self, inputs: PolicyInput) -> Tensor:
        with torch.no_grad():
            return self._model.instruct(inputs.tokens)[1]

    def encode(
        self, inputs: PolicyInput, past: Past | None = None, mask: Tensor | None = None
    ) -> tuple[Context, Past]:
        return blended_encode(self._model, inputs, past, mask)

    def effect(self, inputs: PolicyInput, past: Past, generator: torch.Generator) -> Tensor:
        return measured_effect(self._model, inputs, past, generator)

    def clean(self, x: Tensor, tau: Tensor, context: Context) -> Tensor:
        return self._model.clean(x, tau, context)
