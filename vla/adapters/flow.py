"""The base of the adapters: a LeRobot policy as a flow policy of this code base.

LeRobot's modules are called, not copied. What they lack, a flow time per action index, comes in
through a hook before the one layer that takes the time's embedding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, cast

import torch
from lerobot.policies.common.vla_utils import create_sinusoidal_pos_embedding
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import ACTION
from torch import Tensor, nn

from vla.adapters.capabilities import Capabilities
from vla.adapters.tower import Slot, Tower

Batch = dict[str, Any]


class FlowAdapter[C](ABC):
    """A LeRobot policy behind ``FlowPolicy``. One thread at a time.

    C is what an encoding leaves for the expert's steps. D below is the width of the model's
    actions, to which LeRobot pads; A is the robot's.

    Attributes:
        capabilities: What it supports.
        average: Whether its own sampler is one that knows where a step ends.
        tower: The image tower.
    """

    capabilities: Capabilities
    average: ClassVar[bool] = False
    tower: Tower

    def __init__(self, policy: PreTrainedPolicy) -> None:
        self.policy: Any = policy.eval()
        self.config: Any = policy.config
        self.model: Any = policy.model
        self._times: Tensor | None = None

    @property
    def horizon(self) -> int:
        """H, actions in a chunk."""
        return int(self.config.chunk_size)

    @property
    def action_dim(self) -> int:
        """D, with LeRobot's padding."""
        return int(self.config.max_action_dim)

    @property
    def expert_steps(self) -> int:
        """Steps that the checkpoint asks for."""
        return int(self.config.num_inference_steps)

    @property
    def cameras(self) -> tuple[str, ...]:
        """Image features that a robot gives, in the policy's order."""
        return tuple(k for k in self.config.image_features if ".empty_camera_" not in k)

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width that the policy resizes frames to [px]; None where it does not."""
        return tuple(self.config.image_resolution)

    @property
    def state_dim(self) -> int:
        """S, the robot's state; 0 where the policy takes none."""
        feature = self.config.robot_state_feature
        return 0 if feature is None else int(feature.shape[0])

    @property
    def _robot_dim(self) -> int:
        return int(self.config.output_features[ACTION].shape[0])

    @property
    @abstractmethod
    def prefix_modules(self) -> tuple[nn.Module, ...]:
        """Parts of the model that only ``encode`` runs."""

    @abstractmethod
    def encode(self, batch: Batch, slots: Sequence[Slot] | None = None) -> C:
        """Runs vision and prefix once.

        Args:
            batch: What the policy's preprocessor gives.
            slots: One per camera of the batch and then per blank one: their towers' outputs are
                taken from there, and kept there. Without, every tower is run.
        """

    @abstractmethod
    def velocity(self, x: Tensor, tau: Tensor, context: C) -> Tensor:
        """One expert step.

        Args:
            x: Noisy chunk in the policy's normalised units. Shape (B, H, D).
            tau: Flow time of each action index. Shape (B, H).
            context: From ``encode``.

        Returns:
            Velocity. Shape (B, H, D).
        """

    @staticmethod
    @abstractmethod
    def stack(contexts: Sequence[Any]) -> Any:
        """Contexts of different requests as one batch."""

    def begin(self, context: C, noise: Tensor) -> C:
        """The context for a flow that starts at a noise of shape (B, H, D)."""
        return context

    def finish(self, values: Tensor) -> Tensor:
        """Finished actions as LeRobot's own ``predict_action_chunk`` gives them.

        Args:
            values: Shape (B, n, D).

        Returns:
            Shape (B, n, A), still normalised.
        """
        return values[..., : self._robot_dim]

    def fill(self, actions: Tensor) -> Tensor:
        """Normalised actions of the robot, (B, n, A), as the model takes them, (B, n, D)."""
        return self.policy.prepare_action({ACTION: actions})

    def training_loss(
        self, batch: Batch, x: Tensor, tau: Tensor, actions: Tensor, noise: Tensor, counts: Tensor
    ) -> Tensor:
        """Flow matching: the squared error of the velocity, over the robot's own dimensions.

        Args:
            batch: As for ``encode``.
            x: Noisy chunk. Shape (B, H, D).
            tau: Flow time of each action index. Shape (B, H).
            actions: Clean chunk. Shape (B, H, D).
            noise: Shape (B, H, D).
            counts: Indices in the loss. Shape (B, H), bool.
        """
        error = self.velocity(x, tau, self.encode(batch)) - (noise - actions)
        squared = error[..., : self._robot_dim].pow(2).mean(-1)
        return (squared * counts).sum() / counts.sum().clamp(min=1)

    @contextmanager
    def _with_times(self, tau: Tensor) -> Iterator[None]:
        """Within it the hook gives each action index its own time. ``tau``: shape (B, H)."""
        self._times = tau
        try:
            yield
        finally:
            self._times = None


def time_rows(tau: Tensor, width: int, low: float, high: float) -> Tensor:
    """LeRobot's embedding of each index's flow time. Shape (B, H) to (B, H, width)."""
    flat = create_sinusoidal_pos_embedding(tau.flatten(), width, low, high, cast(Any, tau.device))
    return flat.view(*tau.shape, width)


def replace_tail(inputs: Tensor, tail: Tensor) -> Tensor:
    """The last channels of some inputs, replaced. Shapes (B, H, W) and (B, H, w)."""
    return torch.cat([inputs[..., : -tail.shape[-1]], tail.to(inputs.dtype)], dim=-1)
