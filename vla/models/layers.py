"""Transformer pieces that the prefix and the expert share."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """A pre-norm transformer block whose queries may also read given keys and values.

    Who calls it normalises the rows for attention (``norm_attention``) once, and makes of them keys
    and values (``keys_values``) and what is done with those (``forward``, or ``attend`` and then
    ``feed_forward``).
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def projection(self) -> tuple[Tensor, Tensor]:
        """Bias and matrix that make query, key and value of normalised rows in one product."""
        parts = self.query, self.key_value
        weight = torch.cat([p.weight.detach() for p in parts])
        return torch.cat([p.bias.detach() for p in parts]), weight.t().contiguous()

    def keys_values(self, rows: Tensor) -> Tensor:
        """Keys, then values, of normalised rows. (B, N, D) to (B, 2, heads, N, D / heads)."""
        return by_head(self.key_value(rows), self.heads)

    def forward(
        self, x: Tensor, rows: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Attends from x to the keys and values, then through the MLP.

        Args:
            x: Shape (B, M, D).
            rows: x, normalised for attention. Shape (B, M, D).
            keys: Shape (B, heads, N, D / heads); x's own rows are included where wanted.
            values: Shape (B, heads, N, D / heads).
            mask: True where attention is allowed, broadcast to (B, heads, M, N).
        """
        return self.feed_forward(x, self.attend(rows, keys, values, mask))

    def attend(
        self, rows: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """What the rows read. Arguments as in ``forward``, shape (B, M, D)."""
        query = self.query(rows).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        read = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
        return read.transpose(1, 2).flatten(2)

    def feed_forward(self, x: Tensor, read: Tensor) -> Tensor:
        """Adds what x read, and the MLP of both, each row by itself. Shapes (..., D)."""
        x = x + self.out(read)
        return x + self.mlp(self.norm_mlp(x))


def by_head(both: Tensor, heads: int) -> Tensor:
    """Keys and values side by side, apart. (..., N, 2 D) to (..., 2, heads, N, D / heads)."""
    # Attention is faster over rows of a head that stand together.
    return both.unflatten(-1, (2, heads, -1)).movedim(-4, -2)


def time_embedding(tau: Tensor, width: int, shortest: float) -> Tensor:
    """Sines and cosines of a flow time, periods from ``shortest`` to 4.

    Shape (...) to (..., width).
    """
    angle = tau[..., None] * frequencies(width, shortest, tau)
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def frequencies(width: int, shortest: float, like: Tensor) -> Tensor:
    """Angular frequencies of periods from ``shortest`` to 4, where another tensor is.

    Shape (width / 2,).
    """
    fraction = torch.linspace(0, 1, width // 2, device=like.device, dtype=like.dtype)
    return 2 * math.pi / (shortest * (4.0 / shortest) ** fraction)
