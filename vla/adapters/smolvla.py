"""SmolVLA behind ``FlowPolicy``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from lerobot.policies.common.vla_utils import make_att_2d_masks
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from lerobot.utils.constants import OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS
from torch import Tensor, nn
from transformers import DynamicCache

from vla.adapters.capabilities import Capabilities
from vla.adapters.flow import Batch, replace_tail, time_rows
from vla.adapters.kv import FrozenCache, PrefixContext
from vla.adapters.prefix import Prefix, PrefixAdapter, picked
from vla.adapters.tower import Slot, Tower


class SmolVLAAdapter(PrefixAdapter):
    """SmolVLA: images, words and the state in the prefix; causal action tokens."""

    capabilities = Capabilities(
        per_index_time=True,
        prefix=True,
        guidance=("vjp", "identity"),
        cache=("tower", "rows"),
        one_step_head=False,
    )
    centred = False

    def __init__(self, policy: SmolVLAPolicy) -> None:
        super().__init__(policy)
        backbone = self.model.vlm_with_expert
        self.tower = backbone.embed_image = Tower(backbone.embed_image)
        self.model.action_time_mlp_in.register_forward_pre_hook(self._before_time)
        # Markers around each picture, blanks behind the state, pictures of any shape: image tokens
        # are not where they are looked for.
        marked = self.config.add_image_special_tokens or self.config.prefix_length > 0
        if marked or self.grid is None:
            self.capabilities = replace(self.capabilities, cache=("tower",))

    @property
    def expert_steps(self) -> int:
        return int(self.config.num_steps)

    @property
    def image_size(self) -> tuple[int, int] | None:
        size = self.config.resize_imgs_with_padding  # (width, height)
        return None if size is None else (size[1], size[0])

    @property
    def prefix_modules(self) -> tuple[nn.Module, ...]:
        vlm = self.model.vlm_with_expert.get_vlm_model()
        return vlm.vision_model, vlm.connector, vlm.text_model

    @property
    def grid(self) -> int | None:
        size = self.image_size
        if size is None or size[0] != size[1]:
            return None
        config = self.model.vlm_with_expert.config
        # The connector joins so many patches, across and down, to a token.
        return size[0] // int(config.vision_config.patch_size) // int(config.scale_factor)

    @property
    def width(self) -> int:
        return int(self.model.vlm_with_expert.config.text_config.hidden_size)

    def embed(self, batch: Batch, slots: Sequence[Slot] | None = None) -> Prefix:
        batch = self.policy._prepare_batch(dict(batch))
        images, image_masks = self.policy.prepare_images(batch)
        state = self.policy.prepare_state(batch)
        words, word_mask = batch[OBS_LANGUAGE_TOKENS], batch[OBS_LANGUAGE_ATTENTION_MASK]
        with self.tower.using(slots):
            rows, pad, marks = self.model.embed_prefix(
                images, image_masks, words, word_mask, state=state
            )
        count = words.shape[1]
        return Prefix(rows, pad, marks, state[:, :0], max(0, pad.shape[1] - count - 1), count)

    def run_layers(
        self, prefix: Prefix, cache: DynamicCache | None = None, active: Tensor | None = None
    ) -> DynamicCache:
        mask = make_att_2d_masks(prefix.pad, prefix.marks)
        rows, mask, positions = picked(prefix, mask, active)
        backbone = self.model.vlm_with_expert
        mode = backbone.attention_mode
        if cache is not None:
            # A cache that is given has been filled, LeRobot thinks: its layers would let the
            # expert look at it. Filling one of its own it goes this way.
            backbone.attention_mode = "self_attn"
        try:
            _, filled = backbone.forward(
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                inputs_embeds=[rows, None],
                use_cache=True,
            )
        finally:
            backbone.attention_mode = mode
        return filled

    def velocity(self, x: Tensor, tau: Tensor, context: PrefixContext) -> Tensor:
        with self._with_times(tau):
            return self.model.denoise_step(
                prefix_pad_masks=context.pad,
                past_key_values=FrozenCache(context),
                x_t=x,
                timestep=tau[:, 0],
            )

    def _before_time(self, module: torch.nn.Module, inputs: tuple[Tensor]) -> Any:
        if self._times is None:
            return None
        low, high = self.config.min_period, self.config.max_period
        times = time_rows(self._times, inputs[0].shape[-1] // 2, low, high)
        return (replace_tail(inputs[0], times),)

    def finish(self, values: Tensor) -> Tensor:
        actions = super().finish(values)
        if self.config.adapt_to_pi_aloha:
            actions = self.policy._pi_aloha_encode_actions(actions.clone())
        return actions

    def fill(self, actions: Tensor) -> Tensor:
        if self.config.adapt_to_pi_aloha:
            actions = self.policy._pi_aloha_encode_actions_inv(actions.clone())
        return super().fill(actions)
