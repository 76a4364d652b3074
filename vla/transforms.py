"""From observations to model inputs and back: tokenise, normalise, and their inverses."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from controller.errors import ErrorCode, OnsetError


@dataclass(frozen=True)
class Tokeniser:
    """Words of an instruction to ids; 0 is padding.

    Attributes:
        prompts: Every instruction the policy was trained on.
        vocabulary: Words in id order, from id 1.
        max_words: W.
    """

    prompts: tuple[str, ...]
    vocabulary: tuple[str, ...]
    max_words: int

    @staticmethod
    def of(prompts: tuple[str, ...]) -> Tokeniser:
        """Builds the vocabulary of some prompts."""
        words = sorted({word for prompt in prompts for word in prompt.split()})
        return Tokeniser(prompts, tuple(words), max(len(p.split()) for p in prompts))

    def encode(self, prompt: str) -> Tensor:
        """Token ids. Shape (W,), int64.

        Raises:
            OnsetError: The policy was not trained on this instruction.
        """
        tidy = " ".join(prompt.lower().split())
        if tidy not in self.prompts:
            raise OnsetError(ErrorCode.UNKNOWN_PROMPT, "prompt", repr(prompt), list(self.prompts))
        ids = [1 + self.vocabulary.index(word) for word in tidy.split()]
        return torch.tensor(ids + [0] * (self.max_words - len(ids)))


@dataclass(frozen=True)
class Normaliser:
    """State and chunk to zero mean and unit spread, and back.

    Arm actions are taken relative to the measured joints at the chunk's start, then normalised
    per index and dimension: the spread of the first action is a small part of the last one's.

    Attributes:
        state_mean: Shape (S,).
        state_std: Shape (S,).
        chunk_mean: Shape (H, A).
        chunk_std: Shape (H, A).
        relative: 1 for action dimensions taken relative to the state of the same index, 0 for
            absolute ones. Shape (A,).
    """

    state_mean: Tensor
    state_std: Tensor
    chunk_mean: Tensor
    chunk_std: Tensor
    relative: Tensor

    @staticmethod
    def fit(state: Tensor, chunk: Tensor, relative: Tensor, floor: float = 0.02) -> Normaliser:
        """Measures mean and spread.

        Args:
            state: Shape (N, S).
            chunk: Absolute actions. Shape (N, H, A).
            relative: Shape (A,).
            floor: Least spread, in each dimension's unit: what hardly varies is not magnified.
        """
        offset = state[:, None, : chunk.shape[2]] * relative
        moved = chunk - offset
        return Normaliser(
            state.mean(0),
            state.std(0).clamp(min=floor),
            moved.mean(0),
            moved.std(0).clamp(min=floor),
            relative,
        )

    @property
    def chunk_shape(self) -> tuple[int, int]:
        """H and A."""
        horizon, dims = self.chunk_mean.shape
        return horizon, dims

    def state(self, state: Tensor) -> Tensor:
        """Normalises states. Shape (B, S)."""
        return (state - self.state_mean) / self.state_std

    def one_state(self, state: NDArray[np.float32]) -> NDArray[np.float32]:
        """Normalises one state, in numpy as ``actions``. Shape (S,) to (1, S)."""
        mean, std, *_ = self._host
        return ((state - mean) / std)[None]

    def chunk(self, chunk: Tensor, state: Tensor) -> Tensor:
        """Absolute actions of the first n indices (B, n, A), with measured states (B, S)."""
        count = chunk.shape[1]
        moved = chunk - self._offset(state)
        return (moved - self.chunk_mean[:count]) / self.chunk_std[:count]

    def actions(
        self, values: NDArray[np.float32], state: NDArray[np.float32], indices: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """The inverse of ``chunk`` for some indices of one chunk.

        In numpy: these few numbers, which a robot waits for, do not repay the cost of calls into
        torch.

        Args:
            values: Normalised actions. Shape (n, A).
            state: Measured state. Shape (S,).
            indices: Their indices within the chunk. Shape (n,).
        """
        _, _, mean, std, relative = self._host
        offset = state[: values.shape[1]] * relative
        return values * std[indices] + mean[indices] + offset

    @cached_property
    def _host(self) -> tuple[Any, ...]:
        """The attributes in numpy, in their order."""
        return tuple(getattr(self, field.name).numpy() for field in fields(self))

    def _offset(self, state: Tensor) -> Tensor:
        return (state[:, : self.chunk_mean.shape[1]] * self.relative)[:, None]

    def tensors(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        return {name: getattr(self, name).contiguous() for name in self.__dataclass_fields__}


def frames_to_tensor(frames: np.ndarray) -> Tensor:
    """uint8 (lags, h, w, 3) to a batch of one, shape (1, lags, h, w, 3)."""
    return torch.from_numpy(np.ascontiguousarray(frames))[None]
