"""Training of the cache's selector and ratio predictor; the policy is frozen.

On rollouts of K frames over the policy's own detached caches: what a choice leaves stale stays so
for the frames behind it, as at run time, but no gradient goes back through time::

    frame 0   all rows
    frame 1   features --heads--> mask --blended encode--> clean chunk --- compared with the chunk
    frame 2   ...                                                          of all rows, same noise

Stage 1 fits scores to the measured effect of each row on the first expert step. Stage 2 minimises
``E |v_mixed - v_dense|^2 t^2 + weight (r - budget)^2``, with r the mean share of rows; the factor
t^2 makes it the error of the clean chunk, as in the policy's own training. Rows that recovery
computes are computed here too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vla.cache.blend import Past
from vla.cache.compiled import frame_changes, token_features
from vla.cache.config import SHARES, CacheConfig
from vla.cache.heads import CacheHeads, blended_mask
from vla.cache.selector import SelectorMeta
from vla.train.blended import BlendedPolicy, Rollout

SHARE = torch.tensor(SHARES)
ON_THE_ARM = 0.99  # quantile of a camera's changed patches that tells whether it moves
FLOOR = 1e-3  # effects below are alike [standard deviations of an action]


@dataclass(frozen=True)
class CacheTraining:
    """Settings.

    Attributes:
        align: Steps of stage 1.
        steps: Steps of both stages.
        batch: Rollouts a step.
        frames: K, frames of a rollout behind the first.
        budget: Share of the image tokens to compute on average.
        budget_weight: Of the budget in the loss of stage 2.
        softness: Width of the soft masks, in units of score.
        temperature: Of the ratio's Gumbel noise.
        settled: Share of the rollouts in which slack time makes each frame whole behind its chunk.
        rate: Peak of the learning rate; it falls to zero as a cosine within each stage.
        max_age: As at run time.
        seed: Seeds everything, with the step.
    """

    align: int = 150
    steps: int = 450
    batch: int = 16
    frames: int = 4
    budget: float = 0.35
    budget_weight: float = 1.0
    softness: float = 0.5
    temperature: float = 1.0
    settled: float = 0.5
    rate: float = 3e-3
    max_age: int = 16
    seed: int = 0


@dataclass
class _Caches:
    """The caches of a batch; attributes as in ``SessionCache``, with a leading B."""

    past: Past
    reference: list[list[NDArray[np.uint8]]]
    ages: NDArray[np.int64]
    state: NDArray[np.float32]


class CacheTrainer:
    """Trains the heads of one policy.

    Attributes:
        heads: What is trained.
        step: Steps done.
    """

    def __init__(
        self, policy: BlendedPolicy[Any, Any], config: CacheTraining, rollouts: Sequence[Rollout]
    ) -> None:
        self.config, self._policy = config, policy
        self._rollouts = [r for r in rollouts if len(r.state) > config.frames]
        self._patcher = policy.patcher
        self._rows = self._patcher.per_camera * len(self._patcher.cameras)
        torch.manual_seed(config.seed)
        self.heads = CacheHeads(self._rows, policy.width)
        self._optimiser = torch.optim.AdamW(self.heads.parameters(), lr=1.0, weight_decay=1e-3)
        self.step = 0

    def train_step(self) -> dict[str, float]:
        """One step; what it measured."""
        aligning = self.step < self.config.align
        rng = np.random.default_rng([self.config.seed, self.step])
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + self.step)
        found = [*self._rollout(rng, generator, aligning=aligning)]
        losses = torch.stack([loss for loss, _ in found])
        self._optimiser.zero_grad(set_to_none=True)
        losses.mean().backward()
        nn.utils.clip_grad_norm_(self.heads.parameters(), 1.0)
        for group in self._optimiser.param_groups:
            group["lr"] = self.config.rate * self._rate()
        self._optimiser.step()
        self.step += 1
        parts = [part for _, part in found]
        return {name: float(np.mean([p[name] for p in parts])) for name in parts[0]}

    def _rate(self) -> float:
        config, first, last = self.config, 0, self.config.align
        if self.step >= config.align:
            first, last = config.align, config.steps
        done = (self.step - first) / max(1, last - first)
        return 0.5 * (1 + np.cos(np.pi * done)) * min(1.0, (self.step - first + 1) / 10)

    def _rollout(self, rng: np.random.Generator, generator: torch.Generator, *, aligning: bool):
        """Losses and figures of each frame of a batch of rollouts."""
        config, policy = self.config, self._policy
        drawn = [self._rollouts[i] for i in rng.integers(len(self._rollouts), size=config.batch)]
        begins = [int(rng.integers(len(r.state) - config.frames)) for r in drawn]
        settled = torch.from_numpy(rng.random(config.batch) < config.settled)
        with torch.no_grad():
            _, past = policy.encode(policy.inputs(drawn, begins))
        caches = _Caches(
            past,
            [policy.cut(r, at) for r, at in zip(drawn, begins, strict=True)],
            np.zeros((config.batch, self._rows), np.int64),
            np.stack([r.state[at] for r, at in zip(drawn, begins, strict=True)]),
        )
        for number in range(1, config.frames + 1):
            places = [at + number for at in begins]
            inputs = policy.inputs(drawn, places)
            cuts = [policy.cut(r, at) for r, at in zip(drawn, places, strict=True)]
            tokens = self._tokens(caches, cuts, drawn, places)
            instruction = policy.instruction(inputs)
            scores = self.heads.scores(tokens, instruction)
            forced = self._forced(caches.ages)
            if aligning:
                found = self._align(inputs, caches, scores, rng, generator)
            else:
                found = self._distil(inputs, caches, scores, tokens, forced, generator)
            loss, figures, mask, whole = found
            yield loss, figures
            self._keep(caches, inputs, cuts, mask, whole, settled)

    def _align(
        self,
        inputs: Any,
        caches: _Caches,
        scores: Tensor,
        rng: np.random.Generator,
        generator: torch.Generator,
    ) -> tuple[Tensor, dict[str, float], Tensor, Past]:
        effect = self._policy.effect(inputs, caches.past, generator)
        # Of each frame by itself: a ranking is wanted, and frames differ in how much happens.
        target = torch.log(effect + FLOOR)
        target = 2 * (target - target.mean(-1, keepdim=True)) / (target.std(-1, keepdim=True) + 0.1)
        loss = (scores - target).square().mean()
        # The best quarter of the rows by what is known so far, or by chance: both are met later.
        noise = torch.from_numpy(rng.gumbel(size=scores.shape).astype(np.float32))
        top = (scores.detach() + noise).topk(self._rows // 4, dim=-1).indices
        mask = torch.zeros_like(scores).scatter(1, top, 1.0)
        kept = effect.gather(1, scores.detach().topk(self._rows // 4, dim=-1).indices).sum(-1)
        caught = (kept / effect.sum(-1).clamp(min=1e-9)).mean()
        with torch.no_grad():
            _, whole = self._policy.encode(inputs)
        return loss, {"loss": loss.item(), "caught": caught.item()}, mask, whole

    def _distil(
        self,
        inputs: Any,
        caches: _Caches,
        scores: Tensor,
        tokens: Tensor,
        forced: Tensor,
        generator: torch.Generator,
    ) -> tuple[Tensor, dict[str, float], Tensor, Past]:
        config = self.config
        logits = self.heads.logits(tokens, scores)
        uniform = torch.rand(logits.shape, generator=generator).clamp(1e-6, 1 - 1e-6)
        gumbel = -torch.log(-torch.log(uniform))
        soft = torch.softmax((logits + gumbel) / config.temperature, dim=-1)
        hard = nn.functional.one_hot(soft.argmax(-1), len(SHARES)).float()
        choice = hard + (soft - soft.detach())
        mask = blended_mask(scores, choice, config.softness, forced)
        mixed, _ = self._policy.encode(inputs, caches.past, mask)
        with torch.no_grad():
            dense, whole = self._policy.encode(inputs)
        error = self._error(mixed, dense, generator)
        rows = (logits.softmax(-1) @ SHARE).mean()
        loss = error.mean() + config.budget_weight * (rows - config.budget).square()
        figures = {
            "loss": loss.item(),
            "error": error.mean().item(),
            "worst": error.max().item(),
            "rows": mask.mean().item(),
            "spread": logits.softmax(-1)[:, -1].std().item(),
        }
        return loss, figures, mask.detach(), whole

    def _error(self, mixed: Any, dense: Any, generator: torch.Generator) -> Tensor:
        """Mean square error of the clean chunk, at noise and at a random time. Shape (B,)."""
        model, batch = self._policy, self.config.batch
        shape = (batch, *model.shape)
        noise = torch.randn(shape, generator=generator)
        ones = torch.ones(shape[:2])
        with torch.no_grad():
            target = model.clean(noise, ones, dense)
            tau = torch.rand(batch, 1, generator=generator).clamp(min=0.05).expand(shape[:2])
            x = tau[..., None] * noise + (1 - tau[..., None]) * target
            later = model.clean(x, tau, dense)
        first = (model.clean(noise, ones, mixed) - target).square()
        return (first + (model.clean(x, tau, mixed) - later).square()).mean((1, 2)) / 2

    def _keep(
        self,
        caches: _Caches,
        inputs: Any,
        cuts: list[list[NDArray[np.uint8]]],
        mask: Tensor,
        whole: Past,
        settled: Tensor,
    ) -> None:
        """Moves the caches on by a frame."""
        with torch.no_grad():
            _, past = self._policy.encode(inputs, caches.past, mask)

        def moved_on(new: Tensor, old: Tensor) -> Tensor:
            return torch.where(settled.view(-1, *[1] * (new.dim() - 1)), new, old)

        pairs = zip(whole.keys_values, past.keys_values, strict=True)
        caches.past = Past(
            tuple(moved_on(new, old) for new, old in pairs), moved_on(whole.images, past.images)
        )
        each = self._patcher.per_camera
        fresh = (mask > 0.5) | settled[:, None]
        caches.ages = np.where(fresh.numpy(), 0, caches.ages + 1)
        for row, (kept, new) in enumerate(zip(caches.reference, cuts, strict=True)):
            for camera, (old, now) in enumerate(zip(kept, new, strict=True)):
                rows = fresh[row, camera * each : (camera + 1) * each].numpy()
                old[rows] = now[rows]

    def _tokens(
        self,
        caches: _Caches,
        cuts: list[list[NDArray[np.uint8]]],
        drawn: list[Rollout],
        places: list[int],
    ) -> Tensor:
        state = np.stack([r.state[at] for r, at in zip(drawn, places, strict=True)])
        moved = np.abs(state - caches.state)
        caches.state = state
        found = [
            token_features(
                frame_changes(cut, reference, self._patcher.newest),
                ages + 1,
                float(far[self._policy.arm].max(initial=0)),
                float(far[self._policy.grippers].max(initial=0)),
            )
            for cut, reference, ages, far in zip(
                cuts, caches.reference, caches.ages, moved, strict=True
            )
        ]
        return torch.from_numpy(np.stack(found))

    def _forced(self, ages: NDArray[np.int64]) -> Tensor:
        """Rows of recovery, as ``CachedEncoder`` has them. Shape (B, N), bool."""
        count = CacheConfig(max_age=self.config.max_age).recovered(self._rows)
        oldest = np.argsort(-(ages + 1), axis=1, kind="stable")[:, :count]
        forced = np.zeros(ages.shape, bool)
        np.put_along_axis(forced, oldest, True, axis=1)
        return torch.from_numpy(forced & (ages.max(1, keepdims=True) >= 1))

    def save(self, folder: Path, meta: SelectorMeta) -> None:
        """Writes the run's state, and the selector as it is."""
        tensors = {f"heads.{n}": t for n, t in self.heads.state_dict().items()}
        for index, state in self._optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{index}.{n}": t for n, t in state.items()}
        folder.mkdir(parents=True, exist_ok=True)
        fresh = folder / "state.tmp"
        save_file({n: t.contiguous() for n, t in tensors.items()}, fresh)
        fresh.replace(folder / "state.safetensors")
        self.heads.selector(meta).save(folder / "selector.safetensors")
        (folder / "step.json").write_text(json.dumps({"step": self.step}))

    def resume(self, folder: Path) -> bool:
        """Restores the run's state when there is one."""
        path, number = folder / "state.safetensors", folder / "step.json"
        if not path.is_file() or not number.is_file():
            return False
        tensors = load_file(path)
        heads = {n[6:]: t for n, t in tensors.items() if n.startswith("heads.")}
        self.heads.load_state_dict(heads)
        states: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimiser."):
                _, index, key = name.split(".", 2)
                states.setdefault(int(index), {})[key] = tensor
        whole = self._optimiser.state_dict()
        self._optimiser.load_state_dict({"state": states, "param_groups": whole["param_groups"]})
        self.step = int(json.loads(number.read_text())["step"])
        return True


def moving_cameras(
    policy: BlendedPolicy[Any, Any], rollouts: Sequence[Rollout]
) -> tuple[tuple[str, ...], dict[str, tuple[float, ...]]]:
    """Cameras on the arm: ordinary motion changes as much of their picture as a cut would.

    Args:
        policy: Whose frames.
        rollouts: Of it.

    Returns:
        Their names; and of each camera the median, the 99th percentile and the greatest of the
        shares of its patches that change from frame to frame.
    """
    patcher, limits = policy.patcher, CacheConfig()
    shares = []
    for rollout in rollouts:
        cuts = [policy.cut(rollout, at) for at in range(len(rollout.state))]
        for before, after in zip(cuts, cuts[1:], strict=False):
            changed = frame_changes(after, before, patcher.newest)[:, 3] > limits.cut_level
            shares.append(changed.reshape(-1, patcher.per_camera).mean(1))
    found = np.quantile(shares, [0.5, ON_THE_ARM, 1], axis=0)
    quantiles = {name: tuple(found[:, i].tolist()) for i, name in enumerate(patcher.cameras)}
    moving = tuple(name for name, (_, high, _) in quantiles.items() if high > limits.cut_share)
    return moving, quantiles
