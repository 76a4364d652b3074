"""pi0 and pi0.5 behind ``FlowPolicy``."""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from lerobot.policies.common.vla_utils import make_att_2d_masks, prepare_attention_masks_4d
from lerobot.policies.pi0.modeling_pi0 import PI0Policy
from lerobot.policies.pi05.modeling_pi05 import PI05Policy
from lerobot.policies.pi_gemma import PiGemmaRMSNorm
from lerobot.utils.constants import OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS
from torch import Tensor, nn
from transformers import DynamicCache

from vla.adapters.capabilities import Capabilities
from vla.adapters.flow import Batch, replace_tail, time_rows
from vla.adapters.kv import FrozenCache, PrefixContext, leave_frozen_uncopied
from vla.adapters.prefix import Prefix, PrefixAdapter, picked
from vla.adapters.tower import Slot, Tower


class _PiAdapter(PrefixAdapter):
    """What pi0 and pi0.5 share: images and words in the prefix, bidirectional action tokens."""

    capabilities = Capabilities(
        per_index_time=True,
        prefix=True,
        guidance=("vjp", "identity"),
        cache=("tower", "rows"),
        one_step_head=False,
    )
    centred = True

    def __init__(self, policy: PI0Policy | PI05Policy) -> None:
        super().__init__(policy)
        backbone = self.model.paligemma_with_expert
        self.tower = backbone.embed_image = Tower(backbone.embed_image)
        leave_frozen_uncopied(sys.modules[type(policy).__module__])

    @property
    def prefix_modules(self) -> tuple[nn.Module, ...]:
        return (self.model.paligemma_with_expert.paligemma.model,)

    @property
    def grid(self) -> int | None:
        vision = self.model.paligemma_with_expert.paligemma.config.vision_config
        return self.config.image_resolution[0] // int(vision.patch_size)

    @property
    def width(self) -> int:
        text = self.model.paligemma_with_expert.paligemma.config.text_config
        return int(text.hidden_size)

    def embed(self, batch: Batch, slots: Sequence[Slot] | None = None) -> Prefix:
        images, image_masks = self.policy._preprocess_images(batch)
        words, word_mask = batch[OBS_LANGUAGE_TOKENS], batch[OBS_LANGUAGE_ATTENTION_MASK]
        with self.tower.using(slots):
            rows, pad, marks = self.model.embed_prefix(images, image_masks, words, word_mask)
        count = words.shape[1]
        return Prefix(rows, pad, marks, self._state(batch, pad), pad.shape[1] - count, count)

    def run_layers(
        self, prefix: Prefix, cache: DynamicCache | None = None, active: Tensor | None = None
    ) -> DynamicCache:
        mask = make_att_2d_masks(prefix.pad, prefix.marks)
        rows, mask, positions = picked(prefix, mask, active)
        backbone = self.model.paligemma_with_expert
        # As LeRobot does before its prefix: its masks are made for this attention only.
        backbone.paligemma.model.language_model.config._attn_implementation = "eager"
        _, filled = backbone.forward(
            attention_mask=prepare_attention_masks_4d(mask),
            position_ids=positions,
            past_key_values=cache,
            inputs_embeds=[rows, None],
            use_cache=True,
        )
        return filled

    @abstractmethod
    def _state(self, batch: Batch, pad: Tensor) -> Tensor:
        """What the expert sees of the state. Shape (B, S)."""

    def _inputs(self, context: PrefixContext) -> dict[str, Tensor]:
        """What an expert step takes besides cache, noisy actions and time."""
        return {"prefix_pad_masks": context.pad}

    def velocity(self, x: Tensor, tau: Tensor, context: PrefixContext) -> Tensor:
        with self._with_times(tau):
            return self.model.denoise_step(
                past_key_values=FrozenCache(context),
                x_t=x,
                timestep=tau[:, 0],
                **self._inputs(context),
            )

    def _times_for(self, width: int, times: Tensor) -> Tensor:
        return time_rows(times, width, self.config.min_period, self.config.max_period)


class PI0Adapter(_PiAdapter):
    """pi0: the state is a token of the expert."""

    def __init__(self, policy: PI0Policy) -> None:
        super().__init__(policy)
        self.model.action_time_mlp_in.register_forward_pre_hook(self._before_time)

    def _state(self, batch: Batch, pad: Tensor) -> Tensor:
        return self.policy.prepare_state(batch)

    def _inputs(self, context: PrefixContext) -> dict[str, Tensor]:
        return {"state": context.state, **super()._inputs(context)}

    def _before_time(self, module: torch.nn.Module, inputs: tuple[Tensor]) -> Any:
        if self._times is None:
            return None
        times = self._times_for(inputs[0].shape[-1] // 2, self._times)
        return (replace_tail(inputs[0], times),)


class PI05Adapter(_PiAdapter):
    """pi0.5: the state is text in the prefix; the time modulates the expert's norms."""

    def __init__(self, policy: PI05Policy) -> None:
        super().__init__(policy)
        self.model.time_mlp_in.register_forward_pre_hook(self._before_time)
        for module in self.model.paligemma_with_expert.gemma_expert.modules():
            if isinstance(module, PiGemmaRMSNorm) and module.dense is not None:
                module.__class__ = _PerIndexNorm

    def _state(self, batch: Batch, pad: Tensor) -> Tensor:
        return torch.zeros(len(pad), 0, device=pad.device)

    def _before_time(self, module: torch.nn.Module, inputs: tuple[Tensor]) -> Any:
        if self._times is None:
            return None
        return (self._times_for(inputs[0].shape[-1], self._times).to(inputs[0].dtype),)


class _PerIndexNorm(PiGemmaRMSNorm):
    """The expert's norm with a condition per action index, (B, H, D), besides (B, D)."""

    def forward(self, x: Tensor, cond: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        if cond is None or cond.ndim == 2:
            return super().forward(x, cond)
        out, gate = super().forward(x.flatten(0, 1), cond.flatten(0, 1))
        return out.view_as(x), None if gate is None else gate.view_as(x)
