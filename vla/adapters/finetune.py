"""Fine-tunes a LeRobot policy for what serving needs: mixed times, late beginnings, prefixes.

    sample    frame k, state s_{k+o}, actions a_{k+o} .. a_{k+o+H-1}     o drawn, 0 half of the time
              the first d of them clean, and not in the loss             d drawn, 0 half of the time
              flow times of the constant or of the horizon-aware table   ``vla.train.times``

LeRobot's preprocessor runs behind the shift, so that relative actions are relative to s_{k+o}.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lerobot.utils.constants import ACTION, OBS_STATE
from torch import Tensor

from controller.bounds import check_range
from controller.errors import ErrorCode, OnsetError
from vla.adapters.capabilities import Tuning
from vla.adapters.load import TUNING, LeRobotPolicy
from vla.adapters.lora import LoraConfig
from vla.adapters.lora import save as save_lora
from vla.adapters.run_state import Origin, begun_with, load_run, save_run
from vla.flow import interpolate
from vla.train.times import Mixture, draw_points

PAD = f"{ACTION}_is_pad"


@dataclass(frozen=True)
class FinetuneConfig:
    """How to fine-tune.

    Attributes:
        steps: Optimiser steps in all.
        batch: Samples per step.
        rate: Learning rate; low-rank adapters take about ten times as much.
        decay: Weight decay.
        clip: Largest norm of the gradient.
        mixture: How flow times are drawn.
        max_delay: Longest committed prefix [steps]; 0 for none.
        max_start: Latest beginning after the frame [steps]; 0 for none.
        lora: Low-rank adapters, which are trained in place of the weights.
        seed: Seeds batches, noise and draws, each step anew.
        save_every: Steps between checkpoints.
    """

    steps: int = 1000
    batch: int = 8
    rate: float = 1e-5
    decay: float = 1e-10
    clip: float = 10.0
    mixture: Mixture = Mixture()
    max_delay: int = 8
    max_start: int = 0
    lora: LoraConfig = LoraConfig()
    seed: int = 0
    save_every: int = 100

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "save_every"):
            check_range(f"finetune.{name}", getattr(self, name), 1, 10**9)
        for name in ("max_delay", "max_start"):
            check_range(f"finetune.{name}", getattr(self, name), 0, 1000)
        if self.rate <= 0:
            raise OnsetError(ErrorCode.BAD_VALUE, "finetune.rate", self.rate, "more than 0")


class Finetuner:
    """Policy and optimiser, saved and restored together.

    Attributes:
        step: Optimiser steps done.
    """

    def __init__(
        self,
        policy: LeRobotPolicy,
        dataset: Any,
        config: FinetuneConfig,
        folder: Path,
        origin: Origin,
    ) -> None:
        """Args:
        policy: Just loaded, and not served; from the folder where that holds a run.
        dataset: A LeRobotDataset with ``delta_timestamps`` of ``delta_steps``.
        config: How.
        folder: Where checkpoints go; what is there is gone on from.
        origin: What the run is begun with.

        Raises:
            OnsetError: The prefix is as long as the chunk, or the folder holds another run: the
                first field that differs.
        """
        self.policy, self.data, self.config, self.folder = policy, dataset, config, folder
        check_range("finetune.max_delay", config.max_delay, 0, policy.adapter.horizon - 1)
        self.step = 0
        model = policy.adapter.policy
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._optimiser = torch.optim.AdamW(
            self._parameters, config.rate, weight_decay=config.decay
        )
        self._begun = begun_with(config, origin)
        progress = load_run(folder, self._optimiser, self._begun)
        if progress is not None:
            self.step = int(progress["step"])

    @property
    def trained(self) -> tuple[int, int]:
        """Parameters that are trained, and all [count]."""
        every = sum(p.numel() for p in self.policy.adapter.policy.parameters())
        return sum(p.numel() for p in self._parameters), every

    def run(self, until: int, report: Any = None) -> None:
        """Runs up to a step; saves on the way and at the end.

        Args:
            until: Step to stop at.
            report: Called with each step's number and loss.
        """
        self.policy.adapter.policy.train()
        while self.step < until:
            loss = self._once()
            self.step += 1
            if report is not None:
                report(self.step, loss)
            if self.step % self.config.save_every == 0 or self.step == until:
                self.save()
        self.policy.adapter.policy.eval()

    def _once(self) -> float:
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + self.step)
        torch.manual_seed(
            self.config.seed * 1_000_003 + self.step
        )  # dropout, where a policy has some
        picked = torch.randint(len(self.data), (self.config.batch,), generator=generator)
        rows = [self.data[int(index)] for index in picked]
        loss = self.loss(torch.utils.data.default_collate(rows), generator)
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._parameters, self.config.clip)
        self._optimiser.step()
        return float(loss.detach())

    def loss(self, rows: Mapping[str, Any], generator: torch.Generator) -> Tensor:
        """The loss of some samples of the dataset. A scalar."""
        adapter, config = self.policy.adapter, self.config
        start, prefix = (
            drawn(len(rows["task"]), most, generator)
            for most in (config.max_start, config.max_delay)
        )
        shifted = shift(rows, start, adapter.horizon)
        pad = shifted.pop(PAD)
        batch = self.policy.pre(shifted)
        actions = adapter.fill(batch[ACTION])
        times = draw_points(prefix, adapter.horizon, config.mixture, generator).to(actions)
        noise = torch.randn(actions.shape, generator=generator).to(actions)
        x = interpolate(actions, noise, times.start)
        # Where the table has finished an index, x is the action, and says nothing of the noise.
        counts = times.free & (times.start > 0) & ~pad.to(actions.device)
        return adapter.training_loss(batch, x, times.start, actions, noise, counts)

    def save(self) -> None:
        """Writes a checkpoint that LeRobot loads, what it was tuned for, and the run's state."""
        progress = {"step": self.step, **self._begun}
        save_run(self.folder, self._write_policy, self._optimiser, progress)

    def _write_policy(self, path: Path) -> None:
        policy = self.policy
        if policy.lora is not None:
            save_lora(policy.lora, path)
        else:
            policy.adapter.policy.save_pretrained(path)
        for part in (policy.pre, policy.post):
            part.save_pretrained(path)
        tuning = Tuning(self.config.max_delay, self.config.max_start)
        (path / TUNING).write_text(json.dumps(asdict(tuning)) + "\n")


def delta_steps(horizon: int, config: FinetuneConfig) -> dict[str, list[int]]:
    """What each sample needs around its frame, in steps."""
    late = config.max_start
    return {ACTION: list(range(horizon + late)), OBS_STATE: list(range(late + 1))}


def drawn(count: int, most: int, generator: torch.Generator) -> Tensor:
    """Integers in 0..most, half of them 0. Shape (count,)."""
    value = torch.randint(most + 1, (count,), generator=generator)
    return value * (torch.rand(count, generator=generator) < 0.5)


def shift(rows: Mapping[str, Any], start: Tensor, horizon: int) -> dict[str, Any]:
    """Each sample from its own beginning on.

    Args:
        rows: With actions (B, H + o, A), their padding (B, H + o), and states (B, o + 1, S).
        start: Steps from the frame to the beginning. Shape (B,).
        horizon: H.

    Returns:
        With actions (B, H, A), their padding (B, H), and states (B, S).
    """
    each = torch.arange(len(start))
    window = start[:, None] + torch.arange(horizon)
    shifted = {n: v for n, v in rows.items() if n == "task" or n.startswith("observation.image")}
    shifted[ACTION] = rows[ACTION][each[:, None], window]
    shifted[PAD] = rows[PAD][each[:, None], window]
    shifted[OBS_STATE] = rows[OBS_STATE][each, start]
    return shifted
