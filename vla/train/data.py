"""Demonstrations in memory: training from scratch wants frames faster than a video decodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from controller.errors import ErrorCode, OnsetError
from controller.forecast import ServoModel
from vla.policy import PolicyInput
from vla.train.offsets import Offsets
from vla.transforms import Normaliser, Tokeniser

Array = NDArray[np.float32]

# Targets' positions and velocities (N, R, 3) and visibility (N, R), age of what is known of them
# [s] (N,), and the arm's state (N, S), to the expert's chunks (N, H, A).
Replan = Callable[[NDArray, NDArray, NDArray, NDArray, NDArray], NDArray]


@dataclass(frozen=True)
class Branches:
    """Chunks to learn, several of each frame; see ``vla.train.offsets``. N = B * count.

    Attributes:
        state: Normalised forecast state at each chunk's beginning. Shape (N, S).
        start: The beginning, in steps after the frame. Shape (N,), int64.
        prefix: Committed actions of each chunk. Shape (N,), int64.
        chunk: Normalised: executed actions, then the expert's plan. Shape (N, H, A).
        valid: False where the episode ends before the labels begin: not in the loss. Shape (N,).
        count: Branches of each frame, next to each other.
    """

    state: Tensor
    start: Tensor
    prefix: Tensor
    chunk: Tensor
    valid: Tensor
    count: int

    def repeat(self, times: int) -> Branches:
        """Each branch several times, for several noise draws."""
        return self._map(lambda t: t.repeat_interleave(times, dim=0), self.count * times)

    def first(self, count: int) -> Branches:
        """The first branches of each frame."""
        return self._map(lambda t: t.unflatten(0, (-1, self.count))[:, :count].flatten(0, 1), count)

    def to(self, device: torch.device) -> Branches:
        return self._map(lambda t: t.to(device), self.count)

    def _map(self, change: Callable[[Tensor], Tensor], count: int) -> Branches:
        tensors = {n: change(t) for n, t in vars(self).items() if n != "count"}
        return Branches(**tensors, count=count)


@dataclass(frozen=True)
class Batch:
    """What one training step sees.

    Attributes:
        inputs: Frames, normalised measured state, instruction.
        branches: The chunks to learn.
        uv: Where the targets are in each picture, 0..1. Shape (B, C, R, 2).
        inside: Whether they are in the picture. Shape (B, C, R).
        place: Position and velocity of the targets, in decimetres. Shape (B, R, 6).
        visible: Whether they are on the table. Shape (B, R).
    """

    inputs: PolicyInput
    branches: Branches
    uv: Tensor
    inside: Tensor
    place: Tensor
    visible: Tensor

    def to(self, device: torch.device) -> Batch:
        return Batch(**{name: value.to(device) for name, value in vars(self).items()})


class Demonstrations:
    """All steps of all shards, as arrays."""

    def __init__(
        self,
        cameras: tuple[str, ...],
        lags: dict[str, tuple[int, ...]],
        period_s: float,
        servo: ServoModel | None = None,
        replan: Replan | None = None,
    ) -> None:
        """Args:
        cameras: Camera names, in the model's order.
        lags: Per camera, the frames that an input holds, as steps before now.
        period_s: Policy period [s].
        servo: Forecasts the arm's state, as the robot will at run time; the measured state of
            the later step where there is none.
        replan: Plans a later chunk from the scene of the frame. Without it a later chunk is the
            one that the expert planned then, from the scene as it had become.
        """
        self._cameras, self._lags = cameras, lags
        self._period_s, self._servo, self._replan = period_s, servo, replan
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
            needed = ["state", "action", "chunk", "uv", "inside"]
            needed += ["position", "velocity", "visible"]
            needed += [f"frames_{c}" for c in self._cameras] + ["length", "prompt"]
            if missing := [name for name in needed if name not in arrays]:
                raise OnsetError(ErrorCode.BAD_NAMES, f"shard[{shard.name}]", missing, needed)
            length = arrays["length"]
            begin = np.repeat(np.cumsum(length) - length, length) + self._steps
            end = begin + np.repeat(length, length)
            prompt = np.repeat(len(self._prompts) + np.arange(len(length)), length)
            self._prompts += [str(p) for p in arrays["prompt"]]
            rows = {name: arrays[name] for name in needed[:-2]}
        for name, value in {**rows, "begin": begin, "end": end, "episode": prompt}.items():
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
        self,
        size: int,
        offsets: Offsets,
        normaliser: Normaliser,
        tokeniser: Tokeniser,
        generator: torch.Generator,
    ) -> Batch:
        """Draws steps uniformly, and their branches."""
        rows = torch.randint(self._steps, (size,), generator=generator).numpy()
        start, prefix = offsets.draw(size, generator)
        return self.rows(rows, start.numpy(), prefix.numpy(), normaliser, tokeniser)

    def rows(
        self,
        rows: np.ndarray,
        start: np.ndarray,
        prefix: np.ndarray,
        normaliser: Normaliser,
        tokeniser: Tokeniser,
    ) -> Batch:
        """The steps at some indices.

        Args:
            rows: Shape (B,).
            start: Per branch, its beginning in steps after the frame. Shape (B, count).
            prefix: Per branch, its committed actions. Shape (B, count).
            normaliser: Scales.
            tokeniser: Instructions to ids.
        """
        begin = self._array("begin")[rows]
        images = {}
        for camera in self._cameras:
            frames = self._array(f"frames_{camera}")
            past = [np.maximum(rows - lag, begin) for lag in self._lags[camera]]
            images[camera] = torch.from_numpy(np.stack([frames[p] for p in past], axis=1))
        state, visible = (torch.from_numpy(self._array(n)[rows]) for n in ("state", "visible"))
        place = np.concatenate([self._array(n)[rows] for n in ("position", "velocity")], -1) * 10
        tokens = [tokeniser.encode(self._prompts[e]) for e in self._array("episode")[rows]]
        now = torch.zeros(len(rows), dtype=torch.int64)
        inputs = PolicyInput(images, normaliser.state(state), torch.stack(tokens), now)
        return Batch(
            inputs,
            self._branches(rows, start, prefix, normaliser),
            torch.from_numpy(self._array("uv")[rows]),
            torch.from_numpy(self._array("inside")[rows]),
            torch.from_numpy(place),
            visible,
        )

    def _branches(
        self, rows: np.ndarray, start: np.ndarray, prefix: np.ndarray, normaliser: Normaliser
    ) -> Branches:
        count = start.shape[1]
        rows, start, prefix = np.repeat(rows, count), start.ravel(), prefix.ravel()
        end = self._array("end")[rows]
        valid = rows + start + prefix < end
        last = end - 1  # where a row past the end would be read: such a branch is not valid
        state = self._forecast(rows, start, last)
        chunk = self._plan(rows, start + prefix, last)
        horizon = np.arange(chunk.shape[1])
        # Behind the prefix the plan goes on from its own first action.
        behind = np.maximum(horizon - prefix[:, None], 0)
        labels = np.take_along_axis(chunk, behind[..., None], axis=1)
        at = np.minimum((rows + start)[:, None] + horizon, last[:, None])
        executed = self._array("action")[at]
        labels = np.where((horizon < prefix[:, None])[..., None], executed, labels)
        states = torch.from_numpy(state)
        return Branches(
            normaliser.state(states),
            torch.from_numpy(start),
            torch.from_numpy(prefix),
            normaliser.chunk(torch.from_numpy(labels), states),
            torch.from_numpy(valid),
            count,
        )

    def _forecast(self, rows: np.ndarray, start: np.ndarray, last: np.ndarray) -> Array:
        """The state at each branch's beginning. Shape (N, S)."""
        states, actions = self._array("state"), self._array("action")
        if self._servo is None:
            return states[np.minimum(rows + start, last)]
        width = actions.shape[1]
        now = states[rows]
        first = rows == self._array("begin")[rows]
        before = np.where(first[:, None], now[:, :width], actions[rows - 1])
        ahead = np.minimum(rows[:, None] + np.arange(start.max(initial=0)), last[:, None])
        position, velocity = self._servo.roll(
            now[:, :width], now[:, width:], before, actions[ahead], self._period_s
        )
        path = np.concatenate([position, velocity], axis=-1)
        path = np.concatenate([now[:, None], path], axis=1)
        return path[np.arange(len(rows)), start].astype(np.float32)

    def _plan(self, rows: np.ndarray, later: np.ndarray, last: np.ndarray) -> Array:
        """The expert's chunk so many steps later, from the scene of now. Shape (N, H, A)."""
        at = np.minimum(rows + later, last)
        if self._replan is None:
            return self._array("chunk")[at]
        position, velocity, visible = (
            self._array(n)[rows] for n in ("position", "velocity", "visible")
        )
        age_s = later * self._period_s
        plan = self._replan(position, velocity, visible, age_s, self._array("state")[at])
        return plan.astype(np.float32)
