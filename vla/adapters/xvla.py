"""X-VLA behind ``FlowPolicy``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from lerobot.policies.xvla.modeling_xvla import XVLAPolicy
from lerobot.policies.xvla.soft_transformer import timestep_embedding
from torch import Tensor, nn

from controller.errors import ErrorCode, OnsetError
from vla.adapters.capabilities import Capabilities
from vla.adapters.flow import Batch, FlowAdapter, replace_tail
from vla.adapters.tower import Slot, Tower


@dataclass(frozen=True)
class XVLAContext:
    """What one encoding of X-VLA leaves for every step. It has no key-value cache.

    Attributes:
        features: Of the first camera and the words. Shape (B, N, D).
        others: Of the other cameras. Shape (B, M, D).
        state: Shape (B, S).
        domain: Which robot's projections are used. Shape (B,), int64.
        image_rows: Image tokens.
        noise: Where the flow began; None before ``begin``. Shape (B, H, A).
    """

    features: Tensor
    others: Tensor
    state: Tensor
    domain: Tensor
    image_rows: int
    noise: Tensor | None = None


class XVLAAdapter(FlowAdapter[XVLAContext]):
    """X-VLA predicts the clean actions; its sampler puts the same noise on them again.

    After a step that ends at time t' it has ``x' = t' noise + (1 - t') clean``, which is not
    Euler's step. ``average_velocity`` is the velocity whose step over the same time ends there.
    """

    capabilities = Capabilities(
        per_index_time=True, prefix=True, guidance=(), cache=("tower",), one_step_head=False
    )
    average = True

    def __init__(self, policy: XVLAPolicy) -> None:
        super().__init__(policy)
        vlm = self.model.vlm
        run = vlm.get_image_features
        self.tower = Tower(lambda image: run(image).pooler_output)
        vlm.get_image_features = self._features
        self.model.transformer.action_encoder.register_forward_pre_hook(self._before_time)

    @property
    def action_dim(self) -> int:
        return int(self.model.dim_action)

    @property
    def expert_steps(self) -> int:
        return max(1, int(self.config.num_denoising_steps))

    @property
    def image_size(self) -> tuple[int, int] | None:
        size = self.config.resize_imgs_with_padding
        return None if size is None else tuple(size)

    def _features(self, images: Tensor) -> Any:
        """In the place of the tower of all cameras at once. Shape (n, 3, h, w)."""
        if not self.tower.busy:
            return SimpleNamespace(pooler_output=self.tower(images))
        return SimpleNamespace(pooler_output=torch.cat([self.tower(i[None]) for i in images]))

    @property
    def prefix_modules(self) -> tuple[nn.Module, ...]:
        return (self.model.vlm,)

    def encode(self, batch: Batch, slots: Sequence[Slot] | None = None) -> XVLAContext:
        inputs = self.policy._build_model_inputs(batch)
        dtype = self.model._get_target_dtype()
        with self.tower.using(slots):
            found = self.model.forward_vlm(
                inputs["input_ids"], inputs["image_input"].to(dtype), inputs["image_mask"]
            )
        features, others = found["vlm_features"], found["aux_visual_inputs"]
        image_rows = features.shape[1] - inputs["input_ids"].shape[1] + others.shape[1]
        return XVLAContext(
            features, others, inputs["proprio"].to(dtype), inputs["domain_id"], image_rows
        )

    def begin(self, context: XVLAContext, noise: Tensor) -> XVLAContext:
        return replace(context, noise=noise)

    def clean(self, x: Tensor, tau: Tensor, context: XVLAContext) -> Tensor:
        """The clean chunk that the model expects. Shapes as ``velocity``."""
        state, noisy = self.model.action_space.preprocess(context.state, x)
        with self._with_times(tau):
            return self.model.transformer(
                domain_id=context.domain,
                vlm_features=context.features,
                aux_visual_inputs=context.others,
                action_with_noise=noisy,
                proprio=state,
                t=tau[:, 0],
            )

    def velocity(self, x: Tensor, tau: Tensor, context: XVLAContext) -> Tensor:
        """As ``FlowPolicy``'s; 0 where an index is finished."""
        time = tau[..., None]
        away = x - self.clean(x, tau, context)
        return torch.where(time > 0, away / time.clamp(min=1e-6), 0.0)

    def average_velocity(
        self, x: Tensor, start: Tensor, end: Tensor, context: XVLAContext
    ) -> Tensor:
        """The velocity whose step from ``start`` to ``end`` ends where X-VLA's sampler would.

        Args:
            x: Noisy chunk at ``start``. Shape (B, H, A).
            start: Flow time of each action index. Shape (B, H).
            end: Flow time after the step. Shape (B, H).
            context: From ``begin``.

        Raises:
            OnsetError: INTERNAL: the context has no noise.
        """
        if context.noise is None:
            raise OnsetError(ErrorCode.INTERNAL, "context.noise", "none", "a context of begin()")
        ends, change = end[..., None], (end - start)[..., None]
        after = context.noise * ends + self.clean(x, start, context) * (1 - ends)
        moving = change < 0
        return torch.where(moving, (after - x) / torch.where(moving, change, 1.0), 0.0)

    def training_loss(
        self, batch: Batch, x: Tensor, tau: Tensor, actions: Tensor, noise: Tensor, counts: Tensor
    ) -> Tensor:
        """X-VLA's own loss of the clean chunk; what does not count is taken as met."""
        clean = self.clean(x, tau, self.encode(batch))
        met = torch.where(counts[..., None], clean, actions)
        losses = self.model.action_space.compute_loss(met, actions)
        return torch.stack(list(losses.values())).sum()

    def _before_time(self, module: torch.nn.Module, inputs: tuple[Tensor, Tensor]) -> Any:
        if self._times is None:
            return None
        tokens, domain = inputs
        flat = timestep_embedding(self._times.flatten(), self.config.dim_time)
        return replace_tail(tokens, flat.view(*self._times.shape, -1)), domain

    @staticmethod
    def stack(contexts: Sequence[XVLAContext]) -> XVLAContext:
        noises = [c.noise for c in contexts if c.noise is not None]
        return XVLAContext(
            torch.cat([c.features for c in contexts]),
            torch.cat([c.others for c in contexts]),
            torch.cat([c.state for c in contexts]),
            torch.cat([c.domain for c in contexts]),
            contexts[0].image_rows,
            torch.cat(noises) if noises else None,
        )

    def finish(self, values: Tensor) -> Tensor:
        return self.model.action_space.postprocess(values.clone())  # it writes in place

    def fill(self, actions: Tensor) -> Tensor:
        missing = self.action_dim - actions.shape[-1]
        return torch.nn.functional.pad(actions, (0, max(0, missing)))
