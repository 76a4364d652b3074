"""The training loop: seeded, resumable, with an averaged copy of the weights."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from controller.bounds import check_range
from vla.checkpoint import PolicyMeta, save_checkpoint
from vla.models.small import SmallVLA
from vla.train.data import Demonstrations
from vla.train.losses import Draws, PlaceHead, losses
from vla.train.offsets import PRESENT, Offsets
from vla.train.times import CONSTANT, Mixture
from vla.transforms import Normaliser, Tokeniser


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
        steps: Optimiser steps in all.
        batch: Frames per step.
        draws: How often a frame's encoding is used.
        mixture: How flow times are drawn; the constant schedule's alone by default.
        offsets: How long after its frames a chunk begins; with them by default.
        rate: Peak learning rate.
        perception: Factor on the rate of patches and readout.
        warmup: Steps of linear warm-up; a cosine to zero follows.
        decay: Weight decay.
        clip: Largest norm of the gradient.
        average: Decay of the averaged weights.
        seed: Seeds initial weights, batches and noise.
        save_every: Steps between checkpoints.
    """

    steps: int = 5000
    batch: int = 48
    draws: Draws = Draws()
    mixture: Mixture = CONSTANT
    offsets: Offsets = PRESENT
    rate: float = 1e-3
    perception: float = 2.0
    warmup: int = 100
    decay: float = 0.01
    clip: float = 1.0
    average: float = 0.998
    seed: int = 0
    save_every: int = 100

    def __post_init__(self) -> None:
        check_range("train.draws.jump", self.draws.jump, 0, self.offsets.count)


class Trainer:
    """Model, optimiser and average, saved and restored together."""

    def __init__(
        self,
        meta: PolicyMeta,
        config: TrainConfig,
        data: Demonstrations,
        normaliser: Normaliser,
        folder: Path,
        device: torch.device,
    ) -> None:
        self.meta, self.config, self.data = meta, config, data
        self.normaliser, self.folder, self.device = normaliser, folder, device
        self.tokeniser = Tokeniser.of(meta.prompts)
        torch.manual_seed(config.seed)
        self.model = SmallVLA(meta.model).to(device)
        self.head = PlaceHead(meta.model.width).to(device)
        self.average = copy.deepcopy(self.model).requires_grad_(False).eval()
        fast = {id(p) for m in (self.model.patches, self.model.readout) for p in m.parameters()}
        everything = [*self.model.parameters(), *self.head.parameters()]
        groups = [
            {"params": [p for p in everything if id(p) in fast], "factor": config.perception},
            {"params": [p for p in everything if id(p) not in fast], "factor": 1.0},
        ]
        self.optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=config.decay)
        self.step = 0

    def run(self, until: int, report: Callable[[int, dict[str, float]], None]) -> None:
        """Trains up to step ``until``; ``report`` gets the step and smoothed figures."""
        smooth: dict[str, float] = {}
        began = time.perf_counter()
        while self.step < min(until, self.config.steps):
            figures = self._step()
            now = time.perf_counter()
            figures["seconds"], began = now - began, now
            for name, value in figures.items():
                smooth[name] = 0.95 * smooth.get(name, value) + 0.05 * value
            report(self.step, smooth)
            if self.step % self.config.save_every == 0 or self.step == self.config.steps:
                self.save()
                with (self.folder / "log.jsonl").open("a") as log:
                    log.write(json.dumps({"step": self.step, **smooth}) + "\n")

    def _step(self) -> dict[str, float]:
        config = self.config
        # Seeded by the step, so that a resumed run draws what an unbroken one would have drawn.
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + self.step)
        batch = self.data.batch(
            config.batch, config.offsets, self.normaliser, self.tokeniser, generator
        ).to(self.device)
        rate = config.rate * learning_rate(self.step, config)
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["factor"]
        parts = losses(
            self.model,
            self.average,
            self.head,
            batch,
            config.draws,
            config.mixture,
            generator,
        )
        self.optimiser.zero_grad(set_to_none=True)
        parts.total.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
        if not math.isfinite(norm):
            raise FloatingPointError(f"gradient norm {norm} at step {self.step}")
        self.optimiser.step()
        keep = min(config.average, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for mean, value in zip(self.average.parameters(), self.model.parameters(), strict=True):
                mean.lerp_(value, 1 - keep)
        self.step += 1
        return {
            "loss": parts.total.item(),
            "flow": parts.flow,
            "jump": parts.jump,
            "cell": parts.cell,
            "pixel": parts.pixel,
            "place_mm": 1e3 * parts.place,
        }

    def save(self) -> None:
        """Writes the run's state and the averaged policy."""
        tensors = {f"model.{n}": t for n, t in self.model.state_dict().items()}
        tensors |= {f"head.{n}": t for n, t in self.head.state_dict().items()}
        tensors |= {f"average.{n}": t for n, t in self.average.state_dict().items()}
        for index, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{index}.{n}": t for n, t in state.items()}
        tensors["step"] = torch.tensor(self.step)
        self.folder.mkdir(parents=True, exist_ok=True)
        fresh = self.folder / "state.tmp"
        save_file({n: t.contiguous() for n, t in tensors.items()}, fresh)
        fresh.replace(self.folder / "state.safetensors")
        save_checkpoint(
            self.folder / "policy.safetensors", self.meta, self.average, self.normaliser
        )

    def resume(self) -> bool:
        """Restores the run's state when there is one."""
        path = self.folder / "state.safetensors"
        if not path.is_file():
            return False
        tensors = load_file(path)
        self.model.load_state_dict(_part(tensors, "model"))
        self.head.load_state_dict(_part(tensors, "head"))
        self.average.load_state_dict(_part(tensors, "average"))
        states: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in _part(tensors, "optimiser").items():
            index, key = name.split(".", 1)
            states.setdefault(int(index), {})[key] = tensor
        whole = self.optimiser.state_dict()
        self.optimiser.load_state_dict({"state": states, "param_groups": whole["param_groups"]})
        self.step = int(tensors["step"])
        return True

    def start_from(self, folder: Path) -> None:
        """Takes the averaged weights of another run; what they lack stays as it was made."""
        tensors = load_file(folder / "state.safetensors")
        self.start_at(_part(tensors, "average"))
        self.head.load_state_dict(_part(tensors, "head"))

    def start_at(self, weights: dict[str, torch.Tensor]) -> None:
        """Takes a model's weights; what they lack stays as it was made."""
        for model in (self.model, self.average):
            model.load_state_dict(model.state_dict() | weights)


def _part(tensors: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    return {n[len(name) + 1 :]: t for n, t in tensors.items() if n.startswith(f"{name}.")}


def learning_rate(step: int, config: TrainConfig) -> float:
    """Share of the peak rate: linear warm-up, then a cosine to zero."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
