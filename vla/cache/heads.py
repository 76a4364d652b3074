"""The selector and the ratio predictor as torch modules, for training. See ``selector``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vla.cache.config import SHARES, row_counts
from vla.cache.selector import FEATURES, RANKS, Selector, SelectorMeta, ranks

HIDDEN = 24


class CacheHeads(nn.Module):
    """Scores tokens, and says how many of them are to be computed."""

    def __init__(self, rows: int, width: int, hidden: int = HIDDEN) -> None:
        """Args:
        rows: N, image tokens.
        width: D, of the instruction.
        hidden: Width of the hidden layers.
        """
        super().__init__()
        self.rows = rows
        self.enter = nn.Linear(FEATURES, hidden)
        self.position = nn.Parameter(torch.zeros(rows, hidden))
        self.prompt = nn.Linear(width, hidden, bias=False)
        self.leave = nn.Linear(hidden, 1, bias=False)
        self.ratio_enter = nn.Linear(2 * FEATURES + RANKS, hidden)
        self.ratio_leave = nn.Linear(hidden, len(SHARES))

    def scores(self, tokens: Tensor, instruction: Tensor) -> Tensor:
        """Features (B, N, FEATURES) and instructions (B, D) to scores (B, N)."""
        bias = self.position + self.prompt(instruction)[:, None]
        return self.leave(torch.relu(self.enter(tokens) + bias))[..., 0]

    def logits(self, tokens: Tensor, scores: Tensor) -> Tensor:
        """Of each share. Shape (B, len(SHARES))."""
        ordered = scores.sort(-1).values
        told = ordered[:, torch.from_numpy(ranks(scores.shape[1]))]
        pooled = torch.cat([tokens.mean(1), tokens.amax(1), told], dim=-1)
        return self.ratio_leave(torch.relu(self.ratio_enter(pooled)))

    def selector(self, meta: SelectorMeta) -> Selector:
        """As it is kept and served."""
        return Selector(meta, {n: t.detach().cpu().numpy() for n, t in self.state_dict().items()})


def blended_mask(scores: Tensor, choice: Tensor, softness: float, forced: Tensor) -> Tensor:
    """Which rows are computed: hard forwards, soft backwards.

    Backwards it is the mean, by the choice's probabilities, of soft masks around the threshold of
    each row count. So the predictor learns from the task too, and not from its budget alone: which
    count is chosen moves every row between its two thresholds.

    Args:
        scores: Shape (B, N).
        choice: One row count, hard forwards and soft backwards. Shape (B, len(SHARES)).
        softness: Width of the soft masks, in units of score.
        forced: Rows that are computed whatever their score. Shape (B, N), bool.

    Returns:
        Shape (B, N), 0 or 1.
    """
    # Forced rows take their places from the count.
    lifted = scores.masked_fill(forced, torch.inf)
    ordered = lifted.detach().sort(-1, descending=True).values
    soft, hard = torch.zeros_like(scores), torch.zeros_like(scores)
    for number, count in enumerate(row_counts(scores.shape[1])):
        weight = choice[:, number, None]
        if count == scores.shape[1]:
            soft, hard = soft + weight, hard + weight.detach()
            continue
        threshold = (ordered[:, count - 1, None] + ordered[:, count, None]) / 2
        threshold = torch.where(threshold.isinf(), ordered[:, count, None], threshold)
        within = torch.sigmoid((scores - threshold) / softness)
        soft = soft + weight * torch.where(forced, 1.0, within)
        top = torch.zeros_like(scores).scatter(1, lifted.topk(count, dim=-1).indices, 1.0)
        hard = hard + weight.detach() * top
    return hard + (soft - soft.detach())  # exactly 0 or 1
