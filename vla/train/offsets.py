r"""Chunks that begin after their pictures, and continue what is committed.

A frame of step k is encoded once and serves several branches (shared observation, as in VLASH,
arXiv 2512.01031). A branch with delay d begins at step c = k + d - p, where the arm is forecast to
be, with p committed actions::

    images      k
    executed    |---a_k ..... a_{c-1}---|---a_c .. a_{k+d-1}---|
    forecast                            s_c
    chunk                               | p committed, clean   | labels, planned again at k + d

The committed actions are those that were executed, out of older plans and with disturbances. The
labels behind them are planned from where the arm then was, from the scene of step k.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from controller.bounds import check_range
from controller.errors import ErrorCode, OnsetError


@dataclass(frozen=True)
class Offsets:
    """How the branches of a frame are drawn.

    Attributes:
        count: Branches per frame.
        d_max: Greatest delay d [steps].
        present: Share of branches without delay; the others have 1..d_max, each as likely.
        late: Share of branches that begin at k + d, with no prefix: future-state conditioning.
        early: Share that begin at k, with a prefix of d actions: training-time RTC. The rest
            begins before k + d by a prefix of 1 to ``prefix`` actions, at most d.
        prefix: See ``early``.
    """

    count: int = 1
    d_max: int = 0
    present: float = 0.2
    late: float = 0.4
    early: float = 0.2
    prefix: int = 2

    def __post_init__(self) -> None:
        check_range("offsets.count", self.count, 1, 64)
        check_range("offsets.d_max", self.d_max, 0, 1000)
        check_range("offsets.prefix", self.prefix, 1, 1000)
        shares = (self.present, self.late, self.early, self.late + self.early)
        if not all(0 <= share <= 1 for share in shares):
            raise OnsetError(
                ErrorCode.BAD_VALUE,
                "offsets.present, late, early",
                shares[:3],
                "shares in 0..1, of which late and early sum up to at most 1",
            )

    def draw(self, frames: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws the branches of some frames.

        Returns:
            Start and prefix of each branch [steps]. Shapes (frames, count), int64.
        """
        shape = (frames, self.count)

        def uniform() -> Tensor:
            return torch.rand(shape, generator=generator)

        delay = 1 + (uniform() * self.d_max).long().clamp(max=max(0, self.d_max - 1))
        delay = delay * (uniform() >= self.present) if self.d_max else torch.zeros_like(delay)
        kind = uniform()
        few = torch.minimum(1 + (uniform() * self.prefix).long().clamp(max=self.prefix - 1), delay)
        none = torch.zeros_like(delay)
        prefix = torch.where(kind < self.late, none, few)
        prefix = torch.where((self.late <= kind) & (kind < self.late + self.early), delay, prefix)
        return delay - prefix, prefix


PRESENT = Offsets()
