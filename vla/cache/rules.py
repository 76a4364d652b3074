"""When everything is computed again. Any doubt is a reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from controller.types import Image, Observation
from vla.cache.config import CacheConfig, DenseReason


@dataclass(frozen=True)
class Identity:
    """What must be the same for anything to be reused.

    Attributes:
        episode: The episode under way.
        prompt: The instruction in force.
        model: Hash of the weights.
        cameras: Names and shapes of the frames.
    """

    episode: str
    prompt: str
    model: str
    cameras: tuple[tuple[str, tuple[int, ...]], ...]

    @staticmethod
    def of(
        episode: str, prompt: str, model: str, frames: Mapping[str, Image], names: tuple[str, ...]
    ) -> Identity:
        """The identity of a request whose frames are from cameras of these names."""
        cameras = tuple((name, frames[name].shape) for name in names)
        return Identity(episode, " ".join(prompt.lower().split()), model, cameras)

    def differs(self, other: Identity) -> DenseReason | None:
        """What is not the same, if anything."""
        for mine, theirs, reason in (
            (self.model, other.model, DenseReason.WEIGHTS),
            (self.cameras, other.cameras, DenseReason.CAMERAS),
            (self.episode, other.episode, DenseReason.EPISODE),
            (self.prompt, other.prompt, DenseReason.PROMPT),
        ):
            if mine != theirs:
                return reason
        return None


@dataclass
class Seen:
    """The robot as it was when its frames were last encoded, in whole or in part.

    Attributes:
        observation_id: Of the last observation.
        step: Its step.
        state: Its measured state. Shape (S,), robot's units.
        grippers: The grippers at the last full computation. Shape (G,).
    """

    observation_id: int
    step: int
    state: NDArray[np.float32]
    grippers: NDArray[np.float32]


def order_reason(
    observation: Observation, seen: Seen, grippers: Sequence[int], config: CacheConfig
) -> DenseReason | None:
    """What the robot's word alone says against reuse.

    Args:
        observation: The new one.
        seen: The last one.
        grippers: Which state dimensions are grippers. G of them.
        config: The limits.
    """
    if observation.step <= seen.step or observation.id <= seen.observation_id:
        return DenseReason.ORDER
    if observation.step - seen.step > config.gap:
        return DenseReason.GAP
    for index, held in zip(grippers, seen.grippers.tolist(), strict=True):
        if abs(float(observation.state[index]) - held) > config.gripper:
            return DenseReason.GRIPPER
    return None


def is_cut(
    changes: NDArray[np.float32], per_camera: int, shares: Sequence[float], level: float
) -> bool:
    """Whether most of a camera's picture has changed.

    Args:
        changes: As ``Patcher.changes``. Shape (N, 6).
        per_camera: P, patches of a camera.
        shares: Share of a camera's patches that makes a cut; above 1 where the camera is on the
            arm and its whole picture moves with it. C of them.
        level: Mean difference of a patch that is wholly changed, of full scale.
    """
    changed = (changes[:, 3] > level).reshape(-1, per_camera)
    return any(
        np.count_nonzero(camera) > share * per_camera
        for camera, share in zip(changed, shares, strict=True)
    )
