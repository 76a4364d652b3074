"""A checkpoint at work: one observation in, finished actions out as they ripen.

The server and in-process rollouts run the same engine, so that a figure measured in virtual time
is about the policy that is served.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from controller.errors import ErrorCode, OnsetError
from controller.types import Observation
from vla.checkpoint import Checkpoint
from vla.policy import PolicyInput
from vla.sampler import sample
from vla.schedule import Schedule, make_schedule
from vla.transforms import frames_to_tensor


@dataclass(frozen=True)
class Finished:
    """Actions that are done.

    Attributes:
        steps: Absolute steps. Shape (n,), int64.
        actions: In the robot's units. Shape (n, A), float32.
        final: Whether the chunk is complete.
        encode_ns: Time that vision and prefix took [ns].
        expert_ns: Time of the expert steps so far [ns].
        expert_steps: Expert steps so far.
        image_rows: Image tokens in the prefix.
    """

    steps: NDArray[np.int64]
    actions: NDArray[np.float32]
    final: bool
    encode_ns: int
    expert_ns: int
    expert_steps: int
    image_rows: int


class Engine:
    """Runs a checkpoint on one device. Not thread-safe: one thread owns it."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        schedule: str = "constant",
        expert_steps: int | None = None,
        seed: int = 0,
        device: torch.device | None = None,
    ) -> None:
        """Args:
        checkpoint: The policy.
        schedule: One of ``vla.schedule.SCHEDULES``.
        expert_steps: Steps of the schedule; the checkpoint's own by default.
        seed: Seeds the noise, with the observation's id.
        device: The CPU by default.
        """
        self.checkpoint = checkpoint
        self.device = device or torch.device("cpu")
        self._model = checkpoint.model.to(self.device).eval()
        self._seed = seed
        steps = expert_steps or checkpoint.meta.expert_steps
        self._schedule = make_schedule(schedule, self._model.horizon, 0, steps)

    @property
    def schedule(self) -> Schedule:
        return self._schedule

    def inputs(self, observation: Observation, prompt: str) -> PolicyInput:
        """A batch of one for the model."""
        scales = self.checkpoint.normaliser
        state = torch.from_numpy(np.array(observation.state, dtype=np.float32))[None]
        images = {n: frames_to_tensor(f) for n, f in observation.frames.items()}
        tokens = self.checkpoint.tokeniser.encode(prompt)[None]
        return PolicyInput(images, scales.state(state), tokens)

    def stream(self, observation: Observation, prompt: str) -> Iterator[Finished]:
        """Runs one inference; yields actions as they ripen.

        Raises:
            OnsetError: The instruction is unknown, or an action came out non-finite.
        """
        began = time.perf_counter_ns()
        inputs = self.inputs(observation, prompt).to(self.device)
        with torch.inference_mode():
            context = self._model.encode(inputs)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)  # so that its time is its own
        encoded = time.perf_counter_ns()
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + observation.id)
        shape = (1, self._model.horizon, self._model.action_dim)
        noise = torch.randn(shape, generator=generator).to(self.device)
        state = torch.from_numpy(np.array(observation.state, dtype=np.float32))[None]
        for ripe in sample(self._model, context, self._schedule, noise):
            indices = torch.from_numpy(ripe.indices)
            actions = self.checkpoint.normaliser.actions(ripe.values.cpu(), state, indices)
            if not torch.isfinite(actions).all():
                raise OnsetError(ErrorCode.INTERNAL, "actions", "non-finite", "finite actions")
            yield Finished(
                observation.step + ripe.indices,
                actions[0].numpy(),
                ripe.final,
                encoded - began,
                time.perf_counter_ns() - encoded,
                ripe.step,
                context.image_rows,
            )

    def chunk(self, observation: Observation, prompt: str) -> NDArray[np.float32]:
        """The whole chunk at once. Shape (H, A), in the robot's units."""
        parts = list(self.stream(observation, prompt))
        order = np.argsort(np.concatenate([p.steps for p in parts]))
        return np.concatenate([p.actions for p in parts])[order]
