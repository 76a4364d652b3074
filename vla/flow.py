"""The one time convention of the code base.

Flow time runs from 1 (noise) to 0 (action): ``x_t = t noise + (1 - t) action``. The velocity is
``noise - action``, and an Euler step from t to t' adds ``v (t' - t)``.
"""

from __future__ import annotations

import torch
from torch import Tensor

MIN_TIME = 0.05  # training draws no smaller time for a whole chunk, and weighs none more
NO_TIME = 1e-5  # a time that is 0 is divided by this


def interpolate(action: Tensor, noise: Tensor, tau: Tensor) -> Tensor:
    """Returns x_t. ``action`` and ``noise`` have shape (B, H, A), ``tau`` (B, H)."""
    tau = tau[..., None]
    return tau * noise + (1 - tau) * action


def velocity_from_clean(x: Tensor, clean: Tensor, tau: Tensor) -> Tensor:
    """The velocity at x that leads to a predicted clean action.

    ``v = (x - clean) / t``. A step to t = 0 ends at ``clean`` exactly, however small t is; at
    t = 0 itself there is no step left to take. Shapes (B, H, A), (B, H, A) and (B, H).
    """
    return (x - clean) / tau.clamp(min=NO_TIME)[..., None]


def sample_time(batch: int, generator: torch.Generator) -> Tensor:
    """Draws flow times, one per sample, denser towards noise.

    Returns:
        ``u^(2/3)`` with u uniform in (0, 1], at least ``MIN_TIME``. Shape (B, 1).
    """
    u = 1.0 - torch.rand(batch, 1, generator=generator)
    return u.pow(2 / 3).clamp(min=MIN_TIME)


def flow_matching_loss(clean: Tensor, action: Tensor, tau: Tensor, mask: Tensor) -> Tensor:
    """Masked flow-matching loss, weighted by t.

    The velocity's squared error is ``|clean - action|^2 / t^2``. The weight t offsets part of the
    magnification, which would otherwise spend the gradient on times at which x is nearly clean.
    An index whose time is 0 stays in the mean with weight 0: its answer is its input.

    Args:
        clean: Predicted clean chunk. Shape (B, H, A).
        action: Shape (B, H, A).
        tau: Shape (B, H).
        mask: True where the index counts. Shape (B, H).

    Returns:
        Scalar.
    """
    weight = (tau > 0) / tau.clamp(min=MIN_TIME)
    error = (clean - action).pow(2).mean(-1) * weight
    return (error * mask).sum() / mask.sum().clamp(min=1)
