"""One Euler loop over any schedule. Indices are yielded as they ripen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vla.policy import Context, FlowPolicy
from vla.schedule import Schedule


@dataclass(frozen=True)
class Ripe:
    """Indices that are finished.

    Attributes:
        step: Expert steps run so far.
        indices: Indices within the chunk, increasing. Shape (n,).
        values: Their normalised actions. Shape (B, n, A).
        final: Whether nothing more follows.
    """

    step: int
    indices: NDArray[np.int64]
    values: Tensor
    final: bool


def sample(
    policy: FlowPolicy,
    context: Context,
    schedule: Schedule,
    noise: Tensor,
    committed: Tensor | None = None,
    executed: int | None = None,
) -> Iterator[Ripe]:
    """Walks the schedule's table.

    Args:
        policy: The flow policy.
        context: From its ``encode``.
        schedule: The table of times.
        noise: Start of the flow. Shape (B, H, A).
        committed: Normalised actions of the committed indices, clean before every step.
            Shape (B, d, A).
        executed: Free indices that will be executed, from the first on. Once they are finished
            the other steps are skipped, and what is unfinished is never yielded. All when None.

    Yields:
        Each index once, at the step at which the table says that it is finished.

    Raises:
        OnsetError: ``executed`` is not within the free indices.
    """
    last = schedule.steps_for(executed)
    x = noise.clone()
    free = schedule.ready_at > 0
    table = torch.from_numpy(schedule.tau).to(x)
    for step in range(last):
        # Not around the loop: a mode must not outlive a yield, which hands control back.
        with torch.inference_mode():
            if committed is not None:
                x[:, : committed.shape[1]] = committed
            tau = table[step].expand(x.shape[0], -1)
            velocity = policy.velocity(x, tau, context)
            x = x + velocity * (table[step + 1] - table[step])[:, None]
        ripe = np.flatnonzero(free & (schedule.ready_at == step + 1))
        if len(ripe):
            yield Ripe(step + 1, ripe, x[:, torch.from_numpy(ripe)], step + 1 == last)
