"""One Euler loop over any schedule. Indices are yielded as they ripen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from controller.errors import ErrorCode, OnsetError
from vla.guidance import Guide, for_autograd, guided_velocity
from vla.policy import Context, FlowPolicy, MeanFlowPolicy
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


@dataclass(frozen=True)
class _Step:
    """A row of the table, as tensors.

    Attributes:
        start: Times before the step. Shape (1, H).
        end: Times after it. Shape (1, H).
        change: ``end - start``. Shape (H, 1).
        ripe: Indices finished by it. Shape (n,).
        rows: The same, to index a tensor with.
    """

    start: Tensor
    end: Tensor
    change: Tensor
    ripe: NDArray[np.int64]
    rows: Tensor


class Sampler:
    """Walks one schedule's table, again and again."""

    def __init__(
        self,
        policy: FlowPolicy,
        schedule: Schedule,
        executed: int | None = None,
        device: torch.device | None = None,
    ) -> None:
        """Args:
        policy: The flow policy; one with average velocities where the schedule asks for them.
        schedule: The table of times.
        executed: Free indices that will be executed, from the first on. Once they are finished
            the other steps are skipped, and what is unfinished is never yielded. All when None.
        device: Where the policy runs; the CPU by default.

        Raises:
            OnsetError: ``executed`` is not within the free indices.
        """
        self._policy, self._average = policy, schedule.average
        table = torch.from_numpy(schedule.tau).to(device)
        self._steps = []
        for number in range(schedule.steps_for(executed)):
            start, end = table[number], table[number + 1]
            ripe = np.flatnonzero(schedule.ready_at == number + 1)
            rows = torch.from_numpy(ripe).to(device)
            self._steps.append(_Step(start[None], end[None], (end - start)[:, None], ripe, rows))

    def run(
        self,
        context: Context,
        noise: Tensor,
        committed: Tensor | None = None,
        guide: Guide | None = None,
        velocity: Tensor | None = None,
    ) -> Iterator[Ripe]:
        """Runs the expert step by step.

        Args:
            context: From the policy's ``encode``.
            noise: Start of the flow. Shape (B, H, A).
            committed: Normalised actions of the committed indices, clean before every step.
                Shape (B, d, A).
            guide: What every step's velocity is turned towards; its target has the noise's shape.
            velocity: Of the first step, where somebody has asked for it already. Shape (B, H, A).

        Yields:
            Each index once, at the step at which the table says that it is finished.

        Raises:
            OnsetError: At the first step. BAD_VALUE: a guide with average velocities, which jump
                too far to be corrected on the way. BAD_SHAPE: its target has another shape.
        """
        if guide is not None:
            self._check(guide, noise)
            context = for_autograd(context)
        x, number = noise if committed is None else noise.clone(), 0
        while number < len(self._steps):
            # Not around the loop: a mode must not outlive a yield, which hands control back.
            with torch.inference_mode():
                ripe = False
                while not ripe and number < len(self._steps):
                    step = self._steps[number]
                    number += 1
                    if committed is not None:
                        x[:, : committed.shape[1]] = committed
                    if number > 1 or velocity is None:
                        velocity = self._velocity(x, step, context, guide)
                    x = torch.addcmul(x, velocity, step.change)
                    ripe = len(step.ripe) > 0
                values = x.index_select(1, step.rows)
            if ripe:
                yield Ripe(number, step.ripe, values, number == len(self._steps))

    def _check(self, guide: Guide, noise: Tensor) -> None:
        if self._average:
            raise OnsetError(
                ErrorCode.BAD_VALUE,
                "guide",
                "a guide, with a schedule of average velocities",
                "none: commit a prefix instead, or take another schedule",
            )
        if guide.target.shape != noise.shape:
            raise OnsetError(
                ErrorCode.BAD_SHAPE, "guide.target", tuple(guide.target.shape), tuple(noise.shape)
            )

    def _velocity(self, x: Tensor, step: _Step, context: Context, guide: Guide | None) -> Tensor:
        start, end = step.start, step.end
        if len(x) > 1:
            start, end = start.expand(len(x), -1), end.expand(len(x), -1)
        if self._average:
            return cast(MeanFlowPolicy, self._policy).average_velocity(x, start, end, context)
        if guide is not None:
            return guided_velocity(self._policy, x, start, context, guide)
        return self._policy.velocity(x, start, context)
