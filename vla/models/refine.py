"""A trained model's weights for one that sees more: finer patches, or more frames of the past.

Fine patches are embedded as if each were enlarged to the size that the model knows (as FlexiViT
resizes its embedding, arXiv 2212.08013, but without inverting it), at places in between. A frame
that is new counts for nothing at first. Training has to go on from there.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from controller.errors import ErrorCode, OnsetError
from vla.models.small import SmallVLAConfig


def refined(
    weights: dict[str, Tensor], old: SmallVLAConfig, new: SmallVLAConfig
) -> dict[str, Tensor]:
    """Weights of a model of the new configuration, out of those of the old one.

    Args:
        weights: As ``SmallVLA(old).state_dict()``.
        old: What they are for.
        new: The same but for its patches, which may be finer, and the frames per camera, of which
            there may be more; the first ones are the old ones.

    Raises:
        OnsetError: BAD_VALUE: something else differs, or the new model sees less.
    """
    _check(old, new)
    fresh = dict(weights)
    for number, (lags, more) in enumerate(zip(old.lags, new.lags, strict=True)):
        name = f"patches.{number}.pixels.weight"
        pixels = _enlarging(weights[name].unflatten(1, (lags, old.patch, old.patch, 3)), new.patch)
        # Behind the newest frame each column is a difference to it: zeros see none.
        fresh[name] = F.pad(pixels, (0, 0, 0, 0, 0, 0, 0, more - lags)).flatten(1)
        name = f"patches.{number}.position"
        fresh[name] = _between(weights[name], old.grid, new.grid)
    return fresh


def _check(old: SmallVLAConfig, new: SmallVLAConfig) -> None:
    if new.image_size % new.patch or new.patch > old.patch:
        allowed = [p for p in range(1, old.patch + 1) if old.image_size % p == 0]
        raise OnsetError(ErrorCode.BAD_VALUE, "patch", new.patch, allowed)
    if replace(new, patch=old.patch, lags=old.lags) != old or any(
        more < lags for lags, more in zip(old.lags, new.lags, strict=True)
    ):
        raise OnsetError(ErrorCode.BAD_VALUE, "model", new, f"{old} with smaller patches or lags")


def _enlarging(pixels: Tensor, patch: int) -> Tensor:
    """Matrices for patches that are enlarged first.

    (n, lags, P, P, 3) to (n, lags, p, p, 3).
    """
    old = pixels.shape[2]
    unit = torch.eye(patch * patch).reshape(-1, 1, patch, patch)
    enlarge = F.interpolate(unit, (old, old), mode="bilinear").flatten(1)  # (p p, P P)
    columns = pixels.movedim(-1, -3).flatten(-2) @ enlarge.T
    return columns.unflatten(-1, (patch, patch)).movedim(-3, -1)


def _between(position: Tensor, old: int, new: int) -> Tensor:
    """Embeddings of a grid's places, for a finer grid. (old old, D) to (new new, D)."""
    grid = position.T.unflatten(1, (old, old))[None]
    return F.interpolate(grid, (new, new), mode="bilinear")[0].flatten(1).T.contiguous()
