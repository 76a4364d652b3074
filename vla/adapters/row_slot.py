"""What is kept of a session's last encoding of a LeRobot policy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vla.adapters.prefix import Prefix


@dataclass(frozen=True)
class Sight:
    """What an observation gave before the prefix's layers.

    Attributes:
        prefix: Embeddings.
        tokens: Of the instruction. Shape (1, W), int64.
        towers: The tower's output for each camera: the same object where a frame is the same.
    """

    prefix: Prefix
    tokens: Tensor
    towers: tuple[Tensor | None, ...]

    def same(self, other: Sight) -> bool:
        """Whether pictures and words are the same."""
        pairs = zip(self.towers, other.towers, strict=True)
        return all(mine is theirs for mine, theirs in pairs) and torch.equal(
            self.tokens, other.tokens
        )


@dataclass
class RowSlot:
    """One encoding: in a ``SessionCache`` what the built-in model's ``Slot`` is.

    Attributes:
        sight: The newest.
        later: Rows that no image sees. Shape (n,), int64.
        keys: Of each layer; chosen rows are written in place. Shape (1, heads, N, head width).
        values: Of each layer, as ``keys``.
    """

    sight: Sight
    later: Tensor
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @property
    def nbytes(self) -> int:
        """Size [bytes]."""
        return sum(t.nbytes for t in (*self.keys, *self.values, self.sight.prefix.rows))
