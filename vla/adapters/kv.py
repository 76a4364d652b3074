"""Keys and values of a prefix: made once, read by every expert step, written by none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache


@dataclass(frozen=True)
class PrefixContext:
    """What one encoding leaves for every expert step of a policy with a key-value cache.

    Attributes:
        keys: One per layer. Shape (B, heads, N, head width).
        values: One per layer. Shape (B, heads, N, head width).
        pad: Whether a row is really there. Shape (B, N), bool.
        state: State for policies whose expert sees it, else without columns. Shape (B, S).
        image_rows: Image tokens in the prefix.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    pad: Tensor
    state: Tensor
    image_rows: int

    @staticmethod
    def of(cache: DynamicCache, pad: Tensor, state: Tensor, image_rows: int) -> PrefixContext:
        """The context that a policy's own cache holds after its prefix."""
        rows: list[Any] = cache.layers
        keys, values = tuple(r.keys for r in rows), tuple(r.values for r in rows)
        return PrefixContext(keys, values, pad, state, image_rows)

    @staticmethod
    def stack(contexts: Sequence[PrefixContext]) -> PrefixContext:
        """Rows of different requests as one batch; shorter prefixes are padded behind."""
        longest = max(c.pad.shape[1] for c in contexts)

        def join(parts: tuple[Tensor, ...]) -> Tensor:
            return torch.cat([functional.pad(p, (0, 0, 0, longest - p.shape[2])) for p in parts])

        return PrefixContext(
            tuple(join(layer) for layer in zip(*(c.keys for c in contexts), strict=True)),
            tuple(join(layer) for layer in zip(*(c.values for c in contexts), strict=True)),
            torch.cat([functional.pad(c.pad, (0, longest - c.pad.shape[1])) for c in contexts]),
            torch.cat([c.state for c in contexts]),
            max(c.image_rows for c in contexts),
        )


class FrozenCache(DynamicCache):
    """A cache that an expert step reads. What it would append is only returned to it.

    LeRobot's own cache grows in every step: SmolVLA cuts it again, pi0 copies it before. Neither
    is needed here, and two requests may share one context.
    """

    def __init__(self, context: PrefixContext) -> None:
        super().__init__(zip(context.keys, context.values, strict=True))

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        layer: Any = self.layers[layer_idx]
        return (
            torch.cat([layer.keys, key_states], dim=-2),
            torch.cat([layer.values, value_states], dim=-2),
        )

    def crop(self, max_length: int) -> None:
        """Nothing was appended, so there is nothing to cut."""


def leave_frozen_uncopied(module: Any) -> None:
    """Lets a modeling module's ``clone_past_key_values`` pass a frozen cache as it is.

    It copies the whole prefix before every step, 36 ms at pi0's size on a CPU. Other caches,
    which are LeRobot's own, are copied as ever.
    """
    clone = module.clone_past_key_values
    if getattr(clone, "leaves_frozen", False):
        return

    def pass_frozen(cache: DynamicCache) -> DynamicCache:
        return cache if isinstance(cache, FrozenCache) else clone(cache)

    pass_frozen.leaves_frozen = True
    module.clone_past_key_values = pass_frozen
