"""Observations of a slowly changing scene, and encoders for them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from controller.types import Observation
from tests.vla.helpers import PROMPTS, ROBOT, observation
from vla.cache.asked import Asked, Beginning, Whose
from vla.cache.config import CacheConfig, CacheMode
from vla.cache.encoder import CachedEncoder
from vla.cache.heads import CacheHeads
from vla.cache.selector import Selector, SelectorMeta
from vla.policy import PolicyInput
from vla.transforms import frames_to_tensor

HERE = Whose("a", "e0")
ROWS = 8  # two cameras of four patches


def scene(id: int, moved: int = 1, seed: int = 0, **changes) -> Observation:
    """Frame ``id`` of a scene in which so many patches change with each frame."""
    frames = {}
    for number, camera in enumerate(ROBOT.cameras):
        shape = (len(camera.lags), 24, 24, 3)
        frame = np.random.default_rng([seed, number]).integers(0, 256, shape, dtype=np.uint8)
        for patch in range(moved):
            y, x = divmod((id + patch + number) % 4, 2)
            rng = np.random.default_rng([seed, number, id, patch])
            frame[:, 12 * y : 12 * y + 12, 12 * x : 12 * x + 12] = rng.integers(0, 256, 3)
        frames[camera.name] = frame
    return replace(observation(id, seed=seed), **({"frames": frames} | changes))


def learned(checkpoint, seed: int = 0) -> Selector:
    """A selector with arbitrary weights."""
    torch.manual_seed(seed)
    heads = CacheHeads(ROWS, checkpoint.meta.model.width)
    torch.nn.init.normal_(heads.position)
    return heads.selector(SelectorMeta(checkpoint.meta.name, checkpoint.digest, ROWS, 0.5))


def encoder(checkpoint, mode: str = "pixel", rows: float | None = 0.5, **settings) -> CachedEncoder:
    config = CacheConfig(CacheMode(mode), rows, **({"cut_share": 1.0, "slack": False} | settings))
    return CachedEncoder(checkpoint, config, learned(checkpoint))


def encode(cached: CachedEncoder, observation, whose=HERE, prompt: str = PROMPTS[0]):
    """Context and figures; the context is a copy."""
    inputs = model_inputs(cached, observation, prompt)
    with torch.inference_mode():
        asked = Asked(observation, prompt, Beginning(inputs.state, inputs.start))
        context, figures = cached.encode(whose, asked)
        return tensors(context), figures


def model_inputs(cached: CachedEncoder, observation, prompt: str = PROMPTS[0]):
    checkpoint = cached._checkpoint
    state = torch.from_numpy(observation.state)[None]
    return PolicyInput(
        {n: frames_to_tensor(f) for n, f in observation.frames.items()},
        checkpoint.normaliser.state(state),
        checkpoint.tokeniser.encode(prompt)[None],
        torch.zeros(1, dtype=torch.int64),
    )


def dense(cached: CachedEncoder, observation, prompt: str = PROMPTS[0]) -> list[torch.Tensor]:
    """What the model itself says."""
    with torch.inference_mode():
        return tensors(cached._checkpoint.model.encode(model_inputs(cached, observation, prompt)))


def tensors(context) -> list[torch.Tensor]:
    return [t.clone() for t in (*context.keys_values, context.summary)]


def apart(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    """Greatest difference."""
    return max((a - b).abs().max().item() for a, b in zip(one, other, strict=True))
