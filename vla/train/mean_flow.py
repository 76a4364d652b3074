"""MeanFlow: teaching a field its average velocities (arXiv 2507.10543).

The average velocity u from time r to t obeys ``u = v - (t - r) du/dt``, where du/dt follows the
flow. A network learns u by being drawn towards the right side, computed with itself. Here each
index of a chunk may run at a rate of its own, ``l_i = dt_i / drho``, along a global time rho, as
in the horizon-aware schedule:

    u_i = v_i - (t_i - r_i) / l_i  du_i/drho,    tangents of (x, t, r): (l v, l, 0)

The other way to the same quantity is distillation: walk the flow from t to r in small steps, and
divide by the way.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from vla.flow import interpolate
from vla.train.times import Times

# x (B, H, A), start (B, H) and end (B, H) to an average velocity (B, H, A).
Field = Callable[[Tensor, Tensor, Tensor], Tensor]
# x (B, H, A) and its time (B, H) to a velocity (B, H, A).
Velocity = Callable[[Tensor, Tensor], Tensor]


def mean_flow_target(field: Field, action: Tensor, noise: Tensor, times: Times) -> Tensor:
    """The right side of the identity for the network's own field, without gradient.

    Shapes (B, H, A). Where an index does not run (rate 0) it is the velocity.
    """
    rate = times.rate * times.free
    velocity = noise - action
    x = interpolate(action, noise, times.start)
    tangents = (rate[..., None] * velocity, rate, torch.zeros_like(rate))
    # Fused attention has no forward-mode derivative.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        along = jvp(field, (x, times.start, times.end), tangents)[1]
    length = torch.where(rate > 0, (times.start - times.end) / rate.clamp(min=1e-6), 0.0)
    return velocity - length[..., None] * along


def distilled_target(
    velocity: Velocity, action: Tensor, noise: Tensor, times: Times, steps: int = 5
) -> Tensor:
    """The average velocity of a teacher's own walk over the jump. Shapes (B, H, A).

    Where an index does not move it is 0.

    Args:
        velocity: The teacher's.
        action: Shape (B, H, A).
        noise: Shape (B, H, A).
        times: The jumps.
        steps: Euler steps of the walk.
    """
    rate, way = times.rate * times.free, times.start - times.end
    running = torch.where(rate > 0, way / rate.clamp(min=1e-6), 0.0).amax(1, keepdim=True)
    x = begin = interpolate(action, noise, times.start)
    at = times.start
    with torch.no_grad():
        for step in range(1, steps + 1):
            to = torch.maximum(times.end, times.start - rate * running * step / steps)
            x = x + velocity(x, at) * (to - at)[..., None]
            at = to
    return torch.where(way > 0, 1 / way.clamp(min=1e-6), 0.0)[..., None] * (begin - x)


def jump_loss(
    field: Field, aim: Tensor, action: Tensor, noise: Tensor, times: Times, valid: Tensor
) -> Tensor:
    """The squared error of u, weighted by t as in ``flow_matching_loss``, adaptively per sample.

    Each sample's error e is divided by ``sqrt(e + 1e-3)``, held constant: samples whose target is
    far off, early in training or where the field turns, do not drown the others.

    Args:
        field: The average velocity that learns.
        aim: What it is to be. Shape (B, H, A).
        action: Shape (B, H, A).
        noise: Shape (B, H, A).
        times: The jumps. Indices that have ended count as right.
        valid: Which samples count. Shape (B,), bool.

    Returns:
        Scalar.
    """
    predicted = field(interpolate(action, noise, times.start), times.start, times.end)
    error = (predicted - aim).pow(2).mean(-1) * times.start * times.free
    per_sample = error.sum(-1) / times.free.sum(-1)
    scaled = per_sample / (per_sample.detach() + 1e-3).sqrt()
    return (scaled * valid).sum() / valid.sum().clamp(min=1)
