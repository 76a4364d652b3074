r"""Real-time chunking at inference time: a new chunk is guided to agree with the previous one.

After RTC (Physical Intelligence, arXiv 2506.07339). What the previous chunk says of this one's
indices is the target; indices that the robot executes before this chunk arrives count fully, later
ones less and less:

    H = 8, s = 3, d = 2
    previous   |a0  a1  a2  a3  a4  a5  a6  a7 |
    this                   | 0   1   2   3   4   5   6   7 |
    target                   a3  a4  a5  a6  a7  0   0   0
    weight                   1   1  .49 .19 .04  0   0   0
                             \_d__/               \___s___/
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from controller.errors import ErrorCode, OnsetError
from vla.policy import Context, FlowPolicy

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Rule = Literal["vjp", "identity"]


def rtc_weights(horizon: int, delay: int, executed: int) -> Tensor:
    """How much each index should agree with the previous chunk (RTC, arXiv 2506.07339).

    1 for i < d, then ``c (e^c - 1) / (e - 1)`` with ``c = (H - s - i) / (H - s - d + 1)``, and 0
    from H - s on, where the previous chunk has ended. The paper asks for d <= s as well, so that
    one inference ends before the next begins. Here several may be under way: d > s is allowed, by
    the same formula.

    Args:
        horizon: H, length of the chunk.
        delay: d, steps from the observation to the first action of its chunk.
        executed: s, steps by which this chunk begins later than the previous one.

    Returns:
        Shape (H,), float32, within 0..1, never rising.

    Raises:
        OnsetError: BAD_VALUE: not 1 <= s <= H, or not 0 <= d <= H - s.
    """
    if not 1 <= executed <= horizon:
        raise OnsetError(ErrorCode.BAD_VALUE, "rtc.executed", executed, f"1..{horizon}")
    end = horizon - executed
    if not 0 <= delay <= end:
        raise OnsetError(ErrorCode.BAD_VALUE, "rtc.delay", delay, f"0..{end}")
    index = torch.arange(horizon, dtype=torch.float64)
    c = ((end - index) / (end - delay + 1)).clamp(0, 1)
    fading = c * torch.expm1(c) / (math.e - 1)
    return torch.where(index < delay, 1.0, fading).float()


@dataclass(frozen=True)
class Guide:
    """What a chunk is guided to, and how. Tensors are on the policy's device.

    With the rule of the paper, "vjp", the error goes back through the policy: its Jacobian knows
    which of its inputs the clean estimate depends on. "identity" leaves the Jacobian out. That is
    what LeRobot 0.6.1 computes, which evaluates the velocity before x asks for a gradient.

    A step of length dt moves x by up to ``beta dt`` times the error, 1 for five equal steps.
    With fewer steps, or where a schedule lets an index ripen in longer ones, "identity"
    overshoots the target unless beta is lowered.

    Attributes:
        target: Y, normalised actions of the previous chunk at this chunk's indices; 0 where it
            has none. Shape (B, H, A).
        weights: W, from ``rtc_weights``; 0 where the target has nothing. Shape (H,) or (B, H).
        rule: "vjp" or "identity".
        beta: The greatest guidance weight, greater than 0.

    Raises:
        OnsetError: BAD_SHAPE: a shape is not as above. BAD_VALUE: unknown rule, or bad beta.
    """

    target: Tensor
    weights: Tensor
    rule: Rule = "vjp"
    beta: float = 5.0

    def __post_init__(self) -> None:
        if self.target.ndim != 3:
            raise OnsetError(
                ErrorCode.BAD_SHAPE, "guide.target", tuple(self.target.shape), "(B, H, A)"
            )
        batch, horizon, _ = self.target.shape
        if self.weights.shape not in ((horizon,), (batch, horizon)):
            raise OnsetError(
                ErrorCode.BAD_SHAPE,
                "guide.weights",
                tuple(self.weights.shape),
                f"({horizon},) or ({batch}, {horizon})",
            )
        if self.rule not in get_args(Rule):
            raise OnsetError(ErrorCode.BAD_VALUE, "guide.rule", self.rule, list(get_args(Rule)))
        if not (math.isfinite(self.beta) and self.beta > 0):
            raise OnsetError(ErrorCode.BAD_VALUE, "guide.beta", self.beta, "greater than 0")

    def to(self, device: torch.device) -> Guide:
        return replace(self, target=self.target.to(device), weights=self.weights.to(device))

    def error(self, clean: Tensor) -> Tensor:
        """The weighted error of a clean estimate, ``W (Y - clean)``. Shapes (B, H, A)."""
        return self.weights[..., None] * (self.target - clean)


def guidance_weight(tau: Tensor, beta: float) -> Tensor:
    """How strongly an index is guided at its flow time (RTC, arXiv 2506.07339).

    ``min(beta, (1 - t') / (t' r^2))`` with ``r^2 = (1 - t')^2 / (t'^2 + (1 - t')^2)`` in the
    paper's time t', which is 1 at the action. Without the limit it is 2 in the middle and grows
    without bound to both ends.

    Args:
        tau: Flow times, in this code base's convention. Shape (B, H).
        beta: The greatest weight.

    Returns:
        Shape (B, H); 0 at t = 0, where an index is finished.
    """
    forward = 1 - tau  # the paper's time
    r2 = tau**2 / (forward**2 + tau**2)
    # Infinite at pure noise, where the limit is beta.
    weight = (tau / (forward * r2)).clamp(max=beta)
    return torch.where(tau > 0, weight, 0.0)


def guided_velocity(
    policy: FlowPolicy, x: Tensor, tau: Tensor, context: Context, guide: Guide
) -> Tensor:
    """The policy's velocity, turned towards the guide's target.

    ``v - w(t) J^T [W (Y - clean)]`` with the clean estimate ``clean = x - t v`` and
    ``J = d clean / dx``. The paper adds the correction to a velocity that points from noise to
    action; ours points the other way, so it is subtracted. Each index is guided by its own time's
    weight, and one at t = 0 has the policy's velocity. No parameter's gradient is touched.

    May be called in inference mode; with "vjp", the context must then be from ``for_autograd``.

    Args:
        policy: Its velocity must be differentiable for "vjp".
        x: Normalised noisy chunk. Shape (B, H, A).
        tau: Flow time of each action index. Shape (B, H).
        context: From the policy's ``encode``.
        guide: Target, weights and rule.

    Returns:
        Velocity. Shape (B, H, A).

    Raises:
        OnsetError: BAD_VALUE: the rule is "vjp" and the velocity carries no gradient.
    """
    if guide.rule == "identity":
        velocity = policy.velocity(x, tau, context)
        correction = guide.error(x - tau[..., None] * velocity)
    else:
        velocity, correction = _through_policy(policy, x, tau, context, guide)
    return velocity - guidance_weight(tau, guide.beta)[..., None] * correction


def _through_policy(
    policy: FlowPolicy, x: Tensor, tau: Tensor, context: Context, guide: Guide
) -> tuple[Tensor, Tensor]:
    """The velocity, and the error taken back to x by a vector-Jacobian product."""
    with torch.inference_mode(False), torch.enable_grad():
        # Copies, because a tensor made in inference mode can't be saved for the way back.
        x, tau = x.detach().clone().requires_grad_(), tau.detach().clone()
        velocity = policy.velocity(x, tau, context)
        # Without this the rule would quietly become "identity".
        if not velocity.requires_grad:
            raise OnsetError(
                ErrorCode.BAD_VALUE,
                "guide.rule",
                guide.rule,
                "identity: this policy's velocity carries no gradient",
            )
        clean = x - tau[..., None] * velocity
        (correction,) = torch.autograd.grad(clean, x, guide.error(clean.detach()))
    return velocity.detach(), correction


def for_autograd[C: DataclassInstance](context: C) -> C:
    """A copy of a context that autograd may use, wherever the context was made.

    Its fields may be tensors, tuples of tensors, and what holds no tensor.
    """

    def copy(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(copy, value))
        return value.detach().clone() if isinstance(value, Tensor) else value

    with torch.inference_mode(False):
        return replace(context, **{f.name: copy(getattr(context, f.name)) for f in fields(context)})
