"""Which flow times a training sample has: a mixture of the schedules that will be walked.

With H = 7, d = 2 and the global time rho = .7::

    z = 0    0  0  .7  .7  .7  .7  .7    every free index at rho
    z = 1    0  0   0  .4  .6  .65 .7    each where the horizon-aware table has it at rho
                                         (FASTER, arXiv 2603.19199)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from controller.bounds import check_range
from vla.flow import sample_time
from vla.schedule import check_alpha


@dataclass(frozen=True)
class Mixture:
    """How the times of training samples are drawn.

    Attributes:
        p: Share of samples with the horizon-aware schedule's times.
        alpha: Exponent of that schedule.
        steps: Expert steps N of the schedules that will be walked.
    """

    p: float = 0.5
    alpha: float = 0.6
    steps: int = 10

    def __post_init__(self) -> None:
        check_alpha(self.alpha)
        check_range("mixture.steps", self.steps, 1, 1000)
        check_range("mixture.p", self.p, 0, 1)


CONSTANT = Mixture(p=0.0)


@dataclass(frozen=True)
class Times:
    """Flow times of a batch, and of the ends of its jumps.

    Attributes:
        start: Before the jump. Shape (B, H).
        end: After it, at most ``start``. Shape (B, H).
        rate: d start / d rho: how fast an index's time runs with the global one; 0 where it has
            ended. Shape (B, H).
        free: False where the action is committed: time 0, clean, not in the loss. Shape (B, H).
    """

    start: Tensor
    end: Tensor
    rate: Tensor
    free: Tensor

    def to(self, other: Tensor) -> Times:
        """On the device of ``other``."""
        parts = (self.start, self.end, self.rate, self.free)
        return Times(*(part.to(other.device) for part in parts))


def draw_points(
    prefix: Tensor, horizon: int, mixture: Mixture, generator: torch.Generator
) -> Times:
    """Times for flow matching: every jump has length 0.

    Args:
        prefix: Committed actions of each sample. Shape (B,), int64.
        horizon: H.
        mixture: How they are drawn.
        generator: Draws them.
    """
    hit, free = _draw_tables(prefix, horizon, mixture, generator)
    return _times(sample_time(len(prefix), generator), None, hit, free)


def draw_jumps(prefix: Tensor, horizon: int, mixture: Mixture, generator: torch.Generator) -> Times:
    """Times for average velocities.

    With the horizon-aware schedule, part of one of its N steps, the first as likely as any other.
    Else a jump from ``sample_time``, half of them down to 0, as the one step from noise that it
    is for. Arguments as in ``draw_points``.
    """
    batch = len(prefix)
    hit, free = _draw_tables(prefix, horizon, mixture, generator)
    n = mixture.steps
    below = torch.randint(n, (batch, 1), generator=generator) / n
    within = (1.0 - torch.rand(batch, 1, generator=generator)) / n
    start = sample_time(batch, generator)
    share = torch.rand(batch, 1, generator=generator)
    share = share * (torch.rand(batch, 1, generator=generator) < 0.5)
    flat = (hit == 0).all(1, keepdim=True)
    rho = torch.where(flat, start, below + within)
    return _times(rho, torch.where(flat, start * share, below), hit, free)


def hit_times(horizon: int, delay: Tensor, mixture: Mixture) -> Tensor:
    """``u_i`` of ``vla.schedule.horizon_aware`` for several delays. Shape (B, 1) to (B, H)."""
    last = (horizon - 1 - delay).clamp(min=1)
    place = ((torch.arange(horizon) - delay) / last).clamp(0, 1)
    return (1 - place**mixture.alpha) * (mixture.steps - 1) / mixture.steps


def _draw_tables(
    prefix: Tensor, horizon: int, mixture: Mixture, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Hit times, 0 for the constant schedule, and which indices are free. Shapes (B, H)."""
    delay = prefix[:, None]
    aware = torch.rand(len(prefix), 1, generator=generator) < mixture.p
    hit = hit_times(horizon, delay, mixture) * aware
    return hit, torch.arange(horizon) >= delay


def _times(rho: Tensor, rho_end: Tensor | None, hit: Tensor, free: Tensor) -> Times:
    def local(at: Tensor) -> Tensor:
        return ((at - hit) / (1 - hit)).clamp(min=0) * free

    start = local(rho)
    end = start if rho_end is None else local(rho_end)
    return Times(start, end, (start > 0) / (1 - hit), free)
