"""Keys and values of a prefix: made once, read by every expert step, written by none."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from vla.cache.prefix import Cancelled


def laid(cache: DynamicCache) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Keys and values of each layer. Shape (B, heads, N, head width)."""
    layers: list[Any] = cache.layers
    return tuple(layer.keys for layer in layers), tuple(layer.values for layer in layers)


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


class _Laid(DynamicCache):
    """A cache over keys and values as they lie. LeRobot's own would copy them to begin with."""

    def __init__(self, keys: Iterable[Tensor], values: Iterable[Tensor]) -> None:
        super().__init__()
        for k, v in zip(keys, values, strict=True):
            layer: Any = DynamicLayer()
            layer.lazy_initialization(k, v)
            layer.keys, layer.values = k, v
            self.layers.append(layer)


class FrozenCache(_Laid):
    """A cache that an expert step reads. What it would append is only returned to it.

    LeRobot's own cache grows in every step: SmolVLA cuts it again, pi0 copies it before. Neither
    is needed here, and two requests may share one context.
    """

    def __init__(self, context: PrefixContext) -> None:
        super().__init__(context.keys, context.values)

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


class RowCache(_Laid):
    """Keys and values of a prefix of which some rows are computed again, in place.

    In each layer the active rows' keys and values are written, and all rows' are read.
    """

    def __init__(self, keys: Iterable[Tensor], values: Iterable[Tensor], active: Tensor) -> None:
        """Args:
        keys: Of each layer; written. Shape (1, heads, N, head width).
        values: Of each layer, as ``keys``.
        active: Which rows. Shape (M,), int64.
        """
        super().__init__(keys, values)
        self._active = active

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        layer: Any = self.layers[layer_idx]
        layer.keys.index_copy_(2, self._active, key_states)
        layer.values.index_copy_(2, self._active, value_states)
        return layer.keys, layer.values


class BlendCache(_Laid):
    """Keys and values of a prefix that is wholly computed, drawn back to older ones row by row.

    What ``RowCache`` does with a mask in place of indices, so that gradients pass the choice. With
    a mask of 0 and 1 both give the same rows (tested).

    Attributes:
        blended: Keys and values of each layer so far.
    """

    def __init__(self, keys: Iterable[Tensor], values: Iterable[Tensor], share: Tensor) -> None:
        """Args:
        keys: The older ones of each layer. Shape (B, heads, N, head width).
        values: As ``keys``.
        share: 1 where a row is new. Shape (B, N).
        """
        super().__init__(keys, values)
        self._share = share[:, None, :, None]
        self.blended: list[tuple[Tensor, Tensor]] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        layer: Any = self.layers[layer_idx]
        keys = torch.lerp(layer.keys, key_states, self._share)
        values = torch.lerp(layer.values, value_states, self._share)
        self.blended.append((keys, values))
        return keys, values


class CancellableCache(DynamicCache):
    """LeRobot's own cache, filled unless something more urgent comes."""

    def __init__(self, cancelled: Callable[[], bool]) -> None:
        """Args:
        cancelled: Asked before each layer.
        """
        super().__init__()
        self._cancelled = cancelled

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """As its parent's.

        Raises:
            Cancelled: By ``cancelled``.
        """
        if self._cancelled():
            raise Cancelled
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)


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
