"""Policies whose prefix leaves keys and values behind: SmolVLA, pi0 and pi0.5."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from transformers import DynamicCache

from vla.adapters.flow import Batch, FlowAdapter
from vla.adapters.kv import PrefixContext, laid
from vla.adapters.tower import Slot


@dataclass(frozen=True)
class Prefix:
    """A prefix before its first layer: image tokens, then words, then what else there is.

    Attributes:
        rows: Embeddings. Shape (B, N, D).
        pad: Whether a row is really there. Shape (B, N), bool.
        marks: Where a block begins, True: rows see their own block and those before it.
            Shape (B, N), bool.
        state: State for policies whose expert sees it, else without columns. Shape (B, S).
        images: Image tokens.
        words: Tokens of the instruction.
    """

    rows: Tensor
    pad: Tensor
    marks: Tensor
    state: Tensor
    images: int
    words: int

    @property
    def later(self) -> Tensor:
        """Rows that no image and no word sees: they alone change with the state. Shape (n,)."""
        return torch.cumsum(self.marks[0], dim=0).nonzero()[:, 0]

    @property
    def instruction(self) -> Tensor:
        """The mean embedding of the words. Shape (B, D)."""
        words = slice(self.images, self.images + self.words)
        there = self.pad[:, words, None]
        return (self.rows[:, words] * there).sum(1) / there.sum(1).clamp(min=1)

    def context(self, keys: tuple[Tensor, ...], values: tuple[Tensor, ...]) -> PrefixContext:
        """What the expert reads, with the layers' keys and values."""
        return PrefixContext(keys, values, self.pad, self.state, self.images)


class PrefixAdapter(FlowAdapter[PrefixContext]):
    """A policy whose prefix is run once, over all rows or over some.

    Attributes:
        centred: Whether a frame of another shape stands in the middle of the picture that the
            tower sees; else at its lower right.
    """

    centred: ClassVar[bool]

    @property
    @abstractmethod
    def grid(self) -> int | None:
        """Image tokens per row and column of a picture; None where they are laid out otherwise."""

    @property
    @abstractmethod
    def width(self) -> int:
        """D, of a row of the prefix."""

    @abstractmethod
    def embed(self, batch: Batch, slots: Sequence[Slot] | None = None) -> Prefix:
        """Runs the image tower, and embeds everything else. Arguments as ``encode``."""

    @abstractmethod
    def run_layers(
        self, prefix: Prefix, cache: DynamicCache | None = None, active: Tensor | None = None
    ) -> DynamicCache:
        """Runs the prefix's layers.

        Args:
            prefix: From ``embed``.
            cache: Takes and gives keys and values; LeRobot's own when None.
            active: Rows to compute; they see all rows that the cache gives. Shape (M,), int64.
                All when None.

        Returns:
            The cache.
        """

    def encode(self, batch: Batch, slots: Sequence[Slot] | None = None) -> PrefixContext:
        prefix = self.embed(batch, slots)
        return prefix.context(*laid(self.run_layers(prefix)))

    @staticmethod
    def stack(contexts: Sequence[PrefixContext]) -> PrefixContext:
        return PrefixContext.stack(contexts)


def picked(prefix: Prefix, mask: Tensor, active: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings, mask and positions of the active rows.

    Args:
        prefix: The whole.
        mask: Which rows see which. Shape (B, N, N), bool.
        active: As for ``run_layers``.

    Returns:
        Shapes (B, M, D), (B, M, N) and (B, M).
    """
    positions = torch.cumsum(prefix.pad, dim=1) - 1
    if active is None:
        return prefix.rows, mask, positions
    return prefix.rows[:, active], mask[:, active], positions[:, active]
