"""A LeRobot policy as the training of its cache sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from lerobot.utils.constants import OBS_STATE
from torch import Tensor

from vla.adapters.kv import BlendCache, PrefixContext, laid
from vla.adapters.load import LeRobotPolicy
from vla.adapters.prefix import Prefix
from vla.adapters.rows import cut, rows_of
from vla.adapters.session import in_order
from vla.cache.blend import Past, effect_of_rows
from vla.cache.patches import Bytes
from vla.train.blended import Rollout


class BlendedLeRobot:
    """As a ``vla.train.blended.BlendedPolicy``, on a CPU.

    The tower is run once for a frame; what is masked are the rows behind it.
    """

    def __init__(self, policy: LeRobotPolicy, cameras: Mapping[str, str]) -> None:
        """Args:
        policy: The policy; it is frozen.
        cameras: Rollouts' camera to the key that the preprocessor takes.

        Raises:
            OnsetError: BAD_VALUE: the policy keeps no rows, with what it supports.
        """
        self._cameras = in_order(policy, cameras)
        self._adapter, self.patcher = rows_of(policy, tuple(self._cameras), "learned")
        self._policy, adapter = policy, self._adapter
        adapter.policy.requires_grad_(False)
        self._rows = self.patcher.per_camera * len(self._cameras)
        self.width, self.shape = adapter.width, (adapter.horizon, adapter.action_dim)
        self.arm, self.grippers = np.arange(adapter.state_dim), np.empty(0, np.int64)
        # What LeRobot pads actions with is nobody's.
        own = adapter.finish(torch.zeros(1, 1, adapter.action_dim)).shape[-1]
        self._own = (torch.arange(adapter.action_dim) < own).float()

    def cut(self, rollout: Rollout, at: int) -> list[Bytes]:
        frames = {name: frames[at] for name, frames in rollout.frames.items()}
        return cut(self.patcher, self._adapter, frames)

    def inputs(self, drawn: Sequence[Rollout], places: Sequence[int]) -> Prefix:
        pairs = list(zip(drawn, places, strict=True))
        given = {
            key: torch.from_numpy(np.stack([r.frames[name][at][0] for r, at in pairs]))
            .permute(0, 3, 1, 2)
            .float()
            .div(255)
            for name, key in self._cameras.items()
        }
        if self._adapter.state_dim:
            given[OBS_STATE] = torch.from_numpy(np.stack([r.state[at] for r, at in pairs]))
        with torch.no_grad():
            return self._adapter.embed(
                self._policy.pre({**given, "task": [r.prompt for r in drawn]})
            )

    def instruction(self, inputs: Prefix) -> Tensor:
        return inputs.instruction.float()

    def encode(
        self, inputs: Prefix, past: Past | None = None, mask: Tensor | None = None
    ) -> tuple[PrefixContext, Past]:
        if past is None or mask is None:
            keys, values = laid(self._adapter.run_layers(inputs))
        else:
            more = inputs.rows.shape[1] - self._rows  # words and state: always new
            share = torch.cat([mask, mask.new_ones(len(mask), more)], dim=1)
            layers = len(past.keys_values) // 2
            cache = BlendCache(past.keys_values[:layers], past.keys_values[layers:], share)
            self._adapter.run_layers(inputs, cache)
            keys, values = zip(*cache.blended, strict=True)
        images = inputs.rows.new_zeros(len(inputs.rows), self._rows, 0)  # no readout sees them
        return inputs.context(keys, values), Past((*keys, *values), images)

    def effect(self, inputs: Prefix, past: Past, generator: torch.Generator) -> Tensor:
        past = past.detach()
        every = inputs.rows.new_ones(len(inputs.rows), self._rows)

        def encode(mask: Tensor) -> PrefixContext:
            return self.encode(inputs, past, mask)[0]

        shape = len(inputs.rows), *self.shape
        return effect_of_rows(encode, self.clean, every, shape, generator)

    def clean(self, x: Tensor, tau: Tensor, context: PrefixContext) -> Tensor:
        velocity = self._adapter.velocity(x, tau, context)
        return (x - tau[..., None] * velocity) * self._own
