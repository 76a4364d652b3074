"""What training minimises: the flow, and where the model looks while it learns."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla.flow import flow_matching_loss, interpolate
from vla.models.small import Readout, SmallVLA
from vla.policy import Context
from vla.train.data import Batch, Branches
from vla.train.mean_flow import distilled_target, jump_loss, mean_flow_target
from vla.train.times import Mixture, draw_jumps, draw_points


class PlaceHead(nn.Module):
    """Auxiliary regression of the targets' place; used in training only, never shipped."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 7))

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """(B, R, D) to position and velocity [dm] (B, R, 6) and a logit of visibility (B, R)."""
        out = self.net(feature)
        return out[..., :6], out[..., 6]


@dataclass(frozen=True)
class Losses:
    """Parts of the loss and the figures by which a stage is judged.

    Attributes:
        total: Weighted sum, scalar.
        flow: Flow-matching loss, scalar.
        jump: MeanFlow loss, scalar; 0 without a MeanFlow head.
        cell: Share of visible targets whose patch is found.
        pixel: Mean distance of the readout from the target [share of the picture].
        place: Mean error of the regressed position [m].
    """

    total: Tensor
    flow: float
    jump: float
    cell: float
    pixel: float
    place: float


@dataclass(frozen=True)
class Draws:
    """How often a frame's encoding is used.

    Attributes:
        flow: Noise draws of each branch, for flow matching.
        jump: Branches that learn average velocities too; 0 where the model has no MeanFlow head.
        head: What the MeanFlow head learns from: the MeanFlow identity, or the way that the
            averaged weights walk in small steps (self-distillation).
    """

    flow: int = 2
    jump: int = 0
    head: Literal["meanflow", "distil"] = "meanflow"


def losses(
    model: SmallVLA,
    teacher: SmallVLA,
    head: PlaceHead,
    batch: Batch,
    draws: Draws,
    mixture: Mixture,
    generator: torch.Generator,
) -> Losses:
    """One forward pass: the image is encoded once and shared by several noise draws.

    Args:
        model: What learns.
        teacher: Its averaged weights.
        head: Learns beside it.
        batch: Frames with their chunks.
        draws: How many noise draws share a frame.
        mixture: How their times are drawn.
        generator: Draws noise and times.
    """
    context, readout = model.encode_with_readout(batch.inputs)
    branches = batch.branches.repeat(draws.flow)
    flow = _flow(model, branch(model, context, readout, branches), branches, mixture, generator)
    jump = torch.zeros_like(flow)
    if draws.jump:
        jump = _jump(model, teacher, context, readout, batch, draws, mixture, generator)

    heat, cell = _heatmap(readout, batch, model.config.grid)
    inside = batch.inside
    gap = (readout.uv - batch.uv).norm(dim=-1)
    pixel = (gap * inside).sum() / inside.sum().clamp(min=1)
    place, seen = head(readout.feature)
    visible = batch.visible[..., None]
    # Position [dm] and velocity [dm/s] count alike: a target is led by a fraction of a second.
    error = F.smooth_l1_loss(place, batch.place, reduction="none", beta=0.1) * visible
    regression = error.sum() / (6 * visible.sum()).clamp(min=1)
    presence = F.binary_cross_entropy_with_logits(seen, batch.visible.float())
    total = flow + 0.2 * jump + 0.1 * heat + 2.0 * pixel + 0.5 * regression + 0.05 * presence
    away = ((place - batch.place)[..., :3].norm(dim=-1) * batch.visible).sum()
    metres = 0.1 * away / batch.visible.sum().clamp(min=1)
    figures = (flow.item(), jump.item(), cell, pixel.item(), metres.item())
    return Losses(total, *figures)


def _flow(
    model: SmallVLA,
    context: Context,
    branches: Branches,
    mixture: Mixture,
    generator: torch.Generator,
) -> Tensor:
    action, noise = branches.chunk, _noise(branches.chunk, generator)
    times = draw_points(branches.prefix.cpu(), model.horizon, mixture, generator).to(action)
    x = interpolate(action, noise, times.start)
    clean = model.clean(x, times.start, context)
    mask = times.free & branches.valid[:, None]
    return flow_matching_loss(clean, action, times.start, mask)


def _jump(
    model: SmallVLA,
    teacher: SmallVLA,
    context: Context,
    readout: Readout,
    batch: Batch,
    draws: Draws,
    mixture: Mixture,
    generator: torch.Generator,
) -> Tensor:
    branches = batch.branches.first(draws.jump)
    action, noise = branches.chunk, _noise(branches.chunk, generator)
    times = draw_jumps(branches.prefix.cpu(), model.horizon, mixture, generator).to(action)
    shared = branch(model, context, readout, branches)

    def field(x: Tensor, start: Tensor, end: Tensor) -> Tensor:
        return model.average_velocity(x, start, end, shared)

    if draws.head == "meanflow":
        aim = mean_flow_target(field, action, noise, times)
    else:
        with torch.no_grad():
            taught = branch(teacher, *teacher.encode_with_readout(batch.inputs), branches)
        aim = distilled_target(
            lambda x, tau: teacher.velocity(x, tau, taught), action, noise, times
        )
    return jump_loss(field, aim, action, noise, times, branches.valid)


def branch(model: SmallVLA, context: Context, readout: Readout, branches: Branches) -> Context:
    """One encoding for several branches of each frame, each with its own state and beginning."""
    count = len(branches.start) // len(context.summary)
    feature = readout.feature.repeat_interleave(count, dim=0)
    summary = model.summarise(feature, branches.state, branches.start)
    return replace(context, summary=summary)


def _noise(chunk: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(chunk.shape, generator=generator).to(chunk)


def _heatmap(readout: Readout, batch: Batch, grid: int) -> tuple[Tensor, float]:
    """Cross-entropy of the patch in which each target is, over those inside the picture."""
    place = (batch.uv.clamp(0, 1 - 1e-6) * grid).long()
    index = place[..., 1] * grid + place[..., 0]  # (B, C, R)
    entropy = F.cross_entropy(readout.scores.flatten(0, 2), index.flatten(), reduction="none")
    inside = batch.inside.flatten()
    count = inside.sum().clamp(min=1)
    found = (readout.scores.argmax(-1).flatten() == index.flatten()) & inside
    return (entropy * inside).sum() / count, (found.sum() / count).item()
