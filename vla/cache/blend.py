"""The prefix of a batch with some rows of an earlier frame, so that gradients pass the choice.

What ``prefix`` does for one robot, done for a batch and with a mask in place of indices: every row
is computed, and a mask of 0 puts the old keys and values in its place. With masks of 0 and 1 both
give the same (tested).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from vla.models.layers import Block
from vla.models.small import SmallVLA
from vla.policy import Context, PolicyInput


@dataclass(frozen=True)
class Past:
    """What an encoding leaves for the next one.

    Attributes:
        keys_values: Keys and values of all layers, laid out as the policy wants them. Each of shape
            (B, ...).
        images: Image rows as the readout sees them, normalised. Shape (B, N, D).
    """

    keys_values: tuple[Tensor, ...]
    images: Tensor

    def detach(self) -> Past:
        """The same, out of the graph."""
        return Past(tuple(kv.detach() for kv in self.keys_values), self.images.detach())


def blended_encode(
    model: SmallVLA, inputs: PolicyInput, past: Past | None = None, mask: Tensor | None = None
) -> tuple[Context, Past]:
    """Encodes a batch, with the rows of ``past`` where the mask is 0.

    Args:
        model: The policy.
        inputs: The batch.
        past: Of an earlier frame; all rows are computed when None.
        mask: 1 where a row is computed. Shape (B, N).
    """
    x, images = model.embed(inputs)
    share = None
    if past is not None and mask is not None:
        texts = mask.new_ones(len(mask), x.shape[1] - images)
        share = torch.cat([mask, texts], dim=1)[:, None, None, :, None]
    keys_values: list[Tensor] = []
    for i, block in enumerate(cast(list[Block], model.prefix)):
        normed = block.norm_attention(x)
        both = block.keys_values(normed)
        if past is not None and share is not None:
            both = torch.lerp(past.keys_values[i], both, share)
        keys_values.append(both)
        if i + 1 < len(model.prefix):
            x = block(x, normed, *both.unbind(1))
    rows = model.readout.norm_image(x[:, :images])
    if past is not None and mask is not None:
        rows = torch.lerp(past.images, rows, mask[..., None])
    readout = model.readout.look(rows, x[:, -model.config.readouts :])
    summary = model.summarise(readout.feature, inputs.state, inputs.start)
    return Context(tuple(keys_values), summary, images), Past(tuple(keys_values), rows)


def measured_effect(
    model: SmallVLA, inputs: PolicyInput, past: Past, generator: torch.Generator, draws: int = 2
) -> Tensor:
    """How much the first expert step would change if a row were left as it was.

    To first order, around a frame that is wholly computed: the norm of the derivative of the clean
    chunk with respect to the row's mask, estimated with random projections.

    Args:
        model: The policy.
        inputs: The batch.
        past: Of an earlier frame.
        generator: For noise and projections.
        draws: Projections.

    Returns:
        Shape (B, N), at least 0, in standard deviations of an action.
    """
    past, config = past.detach(), model.config

    def encode(mask: Tensor) -> Context:
        return blended_encode(model, inputs, past, mask)[0]

    shape = len(inputs.state), config.horizon, config.action_dim
    every = past.images.new_ones(past.images.shape[:2])
    return effect_of_rows(encode, model.clean, every, shape, generator, draws)


def effect_of_rows[C](
    encode: Callable[[Tensor], C],
    clean: Callable[[Tensor, Tensor, C], Tensor],
    every: Tensor,
    shape: tuple[int, int, int],
    generator: torch.Generator,
    draws: int = 2,
) -> Tensor:
    """``measured_effect`` for any policy.

    Args:
        encode: A mask, shape (B, N), to a context.
        clean: The clean chunk expected at a noisy one, (B, H, A), times, (B, H), and a context.
        every: The mask of all rows: ones. Shape (B, N).
        shape: B, H and A.
        generator: For noise and projections.
        draws: Projections.
    """
    with torch.enable_grad():
        mask = every.clone().requires_grad_()
        context = encode(mask)
        noise = torch.randn(shape, generator=generator)
        expected = clean(noise, torch.ones(shape[:2]), context)
        total = torch.zeros_like(mask)
        for number in range(draws):
            direction = torch.randn(shape, generator=generator)
            along = (expected * direction).sum() / (shape[1] * shape[2]) ** 0.5
            grad = torch.autograd.grad(along, mask, retain_graph=number + 1 < draws)[0]
            total = total + grad.square()
    return (total / draws).sqrt().detach()
