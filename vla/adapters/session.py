"""One robot's session with a LeRobot policy: its own processors and its newest frames."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from lerobot.utils.constants import ACTION, OBS_STATE
from numpy.typing import NDArray
from torch import Tensor

from controller.types import Float, Observation
from vla.adapters.load import LeRobotPolicy
from vla.adapters.tower import FrameMemory, Slot


class AdapterSession:
    """LeRobot's processors keep the last state between them, so each session has its own pair.

    As ``vla.chunking.Scales`` it takes a robot's actions to the policy's normalised ones.
    """

    def __init__(self, policy: LeRobotPolicy, cameras: Mapping[str, str]) -> None:
        """Args:
        policy: What is served; its weights are shared.
        cameras: Robot's camera to the key that the preprocessor takes, as ``in_order`` gives them.
        """
        # Together: the post-processor holds on to a step of the preprocessor.
        self._pre, self._post = copy.deepcopy((policy.pre, policy.post))
        self._adapter = policy.adapter
        self._cameras = dict(cameras)
        self._frames = FrameMemory()
        features = tuple(self._adapter.config.image_features)
        self._blank = tuple(key for key in features if key not in self._adapter.cameras)

    @property
    def chunk_shape(self) -> tuple[int, int]:
        """H and D."""
        return self._adapter.horizon, self._adapter.action_dim

    def batch(
        self, observation: Observation, state: Float, prompt: str, device: torch.device
    ) -> tuple[dict[str, Any], list[Slot]]:
        """What the policy takes, by LeRobot's preprocessor, and the towers' slots.

        An unchanged frame is not even converted: zeros stand for it, which nothing looks at.

        Args:
            observation: With the newest frame of each camera.
            state: State at the chunk's beginning. Shape (S,), robot's units.
            prompt: The instruction.
            device: The policy's.
        """
        given: dict[str, Any] = {"task": [prompt]}
        if self._adapter.state_dim:
            given[OBS_STATE] = _row(state)
        slots: list[Slot] = []
        for camera, key in self._cameras.items():
            frame = observation.frames[camera][0]
            slots.append(self._frames.slot(key, frame))
            given[key] = self._image(frame, slots[-1]).to(device)
        batch = self._pre(given)
        return batch, [*slots, *(self._frames.slot(key, None) for key in self._blank)]

    def _image(self, frame: NDArray[np.uint8], slot: Slot) -> Tensor:
        """float32 in 0..1. Shape (1, 3, h, w)."""
        if slot.features is not None:
            height, width = self._adapter.image_size or frame.shape[:2]
            return torch.zeros(1).expand(1, 3, height, width)
        return torch.from_numpy(frame).permute(2, 0, 1)[None].contiguous().float().div_(255)

    def forget_frames(self) -> None:
        """The next observation runs every tower."""
        self._frames.clear()

    def chunk(self, chunk: Tensor, state: Tensor) -> Tensor:
        """A robot's actions (1, n, A), at a state (1, S), as the model takes them: (1, n, D)."""
        given = {OBS_STATE: state, ACTION: chunk, "task": [""]}
        return self._adapter.fill(self._pre(given)[ACTION])

    def actions(self, values: Tensor) -> NDArray[np.float32]:
        """A model's actions (n, D) in the robot's units, by LeRobot's post-processor: (n, A)."""
        return self._post(self._adapter.finish(values[None])[0]).numpy().astype(np.float32)


def in_order(policy: LeRobotPolicy, cameras: Mapping[str, str]) -> dict[str, str]:
    """Cameras as ``AdapterSession`` takes them, in the order in which the policy looks at them."""
    order = {feature: i for i, feature in enumerate(policy.adapter.cameras)}
    renamed = {old: new for step in policy.pre.steps for old, new in renames(step).items()}
    pairs = sorted(cameras.items(), key=lambda pair: order[renamed.get(pair[1], pair[1])])
    return dict(pairs)


def renames(step: Any) -> dict[str, str]:
    """Keys that a step of a preprocessor renames, old to new."""
    return getattr(step, "rename_map", None) or {}


def _row(values: Float) -> Tensor:
    return torch.from_numpy(np.array(values, dtype=np.float32))[None]
