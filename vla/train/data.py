"""Demonstrations in memory: training from scratch wants frames faster than a video decodes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from controller.errors import ErrorCode, OnsetError
from vla.policy import PolicyInput
from vla.transforms import Normaliser, Tokeniser


@dataclass(frozen=True)
class Batch:
    """What one training step sees.

    Attributes:
        inputs: Frames, normalised state, instruction.
        chunk: Normalised expert chunk. Shape (B, H, A).
        uv: Where the targets are in each picture, 0..1. Shape (B, C, R, 2).
        inside: Whether they are in the picture. Shape (B, C, R).
        place: Position and velocity of the targets, in decimetres. Shape (B, R, 6).
        visible: Whether they are on the table. Shape (B, R).
    """

    inputs: PolicyInput
    chunk: Tensor
    uv: Tensor
    inside: Tensor
    place: Tensor
    visible: Tensor


class Demonstrations:
    """All steps of all shards, as arrays."""

    def __init__(self, cameras: tuple[str, ...], lags: dict[str, tuple[int, ...]]) -> None:
        """Args:
        cameras: Camera names, in the model's order.
        lags: Per camera, the frames that an input holds, as steps before now.
        """
        self._cameras, self._lags = cameras, lags
        self._parts: dict[str, list[np.ndarray]] = {}
        self._prompts: list[str] = []
        self._steps = 0
        self._known: set[str] = set()
        self._arrays: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return self._steps

    def add(self, shard: Path) -> None:
        """Reads a shard once; the same file again is passed over.

        Raises:
            OnsetError: The shard lacks an array.
        """
        if shard.name in self._known:
            return
        with np.load(shard, allow_pickle=False) as arrays:
            needed = ["state", "chunk", "uv", "inside", "position", "velocity", "visible"]
            needed += [f"frames_{c}" for c in self._cameras] + ["length", "prompt"]
            if missing := [name for name in needed if name not in arrays]:
                raise OnsetError(ErrorCode.BAD_NAMES, f"shard[{shard.name}]", missing, needed)
            length = arrays["length"]
            begin = np.repeat(np.cumsum(length) - length, length) + self._steps
            prompt = np.repeat(len(self._prompts) + np.arange(len(length)), length)
            self._prompts += [str(p) for p in arrays["prompt"]]
            rows = {name: arrays[name] for name in needed[:-2]}
        for name, value in {**rows, "begin": begin, "episode": prompt}.items():
            self._parts.setdefault(name, []).append(value)
        self._steps += int(length.sum())
        self._known.add(shard.name)
        self._arrays = {}

    def _array(self, name: str) -> np.ndarray:
        if name not in self._arrays:
            parts = self._parts[name]
            # Joined once and kept as one part, so that memory is not held twice.
            self._arrays[name] = np.concatenate(parts) if len(parts) > 1 else parts[0]
            self._parts[name] = [self._arrays[name]]
        return self._arrays[name]

    def fit(self, relative: Tensor) -> Normaliser:
        """Scales of states and chunks over everything read so far."""
        state = torch.from_numpy(self._array("state"))
        return Normaliser.fit(state, torch.from_numpy(self._array("chunk")), relative)

    def batch(
        self, size: int, normaliser: Normaliser, tokeniser: Tokeniser, generator: torch.Generator
    ) -> Batch:
        """Draws steps uniformly."""
        rows = torch.randint(self._steps, (size,), generator=generator).numpy()
        return self.rows(rows, normaliser, tokeniser)

    def rows(self, rows: np.ndarray, normaliser: Normaliser, tokeniser: Tokeniser) -> Batch:
        """The steps at these indices. Shape (B,)."""
        begin = self._array("begin")[rows]
        images = {}
        for camera in self._cameras:
            frames = self._array(f"frames_{camera}")
            past = [np.maximum(rows - lag, begin) for lag in self._lags[camera]]
            images[camera] = torch.from_numpy(np.stack([frames[p] for p in past], axis=1))
        take = {n: torch.from_numpy(self._array(n)[rows]) for n in ("state", "chunk", "visible")}
        place = np.concatenate([self._array(n)[rows] for n in ("position", "velocity")], -1) * 10
        tokens = [tokeniser.encode(self._prompts[e]) for e in self._array("episode")[rows]]
        inputs = PolicyInput(images, normaliser.state(take["state"]), torch.stack(tokens))
        return Batch(
            inputs,
            normaliser.chunk(take["chunk"], take["state"]),
            torch.from_numpy(self._array("uv")[rows]),
            torch.from_numpy(self._array("inside")[rows]),
            torch.from_numpy(place),
            take["visible"],
        )
