"""The one time convention of the code base.

Flow time runs from 1 (noise) to 0 (action): ``x_t = t noise + (1 - t) action``. The velocity is
``noise - action``, and an Euler step from t to t' adds ``v (t' - t)``.
"""

from __future__ import annotations

import torch
from torch import Tensor

MIN_TIME = 0.05


def interpolate(action: Tensor, noise: Tensor, tau: Tensor) -> Tensor:
    """Returns x_t. ``action`` and ``noise`` have shape (B, H, A), ``tau`` (B, H)."""
    tau = tau[..., None]
    return tau * noise + (1 - tau) * action


def velocity_from_clean(x: Tensor, clean: Tensor, tau: Tensor) -> Tensor:
    """The velocity at x that leads to a predicted clean action.

    ``v = (x - clean) / t``, with t kept away from 0, where the velocity is not used.
    Shapes (B, H, A), (B, H, A) and (B, H).
    """
    return (x - clean) / tau.clamp(min=MIN_TIME)[..., None]


def sample_time(batch: int, horizon: int, generator: torch.Generator) -> Tensor:
    """Draws flow times, one per sample and equal over the chunk, denser towards noise.

    Returns:
        ``u^(2/3)`` with u uniform in (0, 1], shape (B, H).
    """
    u = 1.0 - torch.rand(batch, 1, generator=generator)
    return u.pow(2 / 3).clamp(min=MIN_TIME).expand(batch, horizon)


def flow_matching_loss(
    predicted: Tensor, action: Tensor, noise: Tensor, tau: Tensor, mask: Tensor
) -> Tensor:
    """Masked flow-matching loss, weighted by t.

    The weight offsets the 1/t^2 by which an error of the predicted clean action is magnified in
    the velocity, which would otherwise spend the gradient on times at which x is nearly clean.

    Args:
        predicted: Velocity. Shape (B, H, A).
        action: Shape (B, H, A).
        noise: Shape (B, H, A).
        tau: Shape (B, H).
        mask: True where the index counts. Shape (B, H).

    Returns:
        Scalar.
    """
    error = (predicted - (noise - action)).pow(2).mean(-1) * tau
    return (error * mask).sum() / mask.sum().clamp(min=1)
