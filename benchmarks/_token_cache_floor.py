"""A floor for the cache's errors: the same policy in half precision."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from controller.types import Observation
from vla.chunking import Condition
from vla.engine import Engine
from vla.sampler import Sampler


def half_precision(engine: Engine, observation: Observation, prompt: str) -> NDArray[np.float32]:
    """The chunk that the model's own modules make in bfloat16, from the engine's noise.

    Shape (H, A), robot's units.
    """
    checkpoint, model = engine.checkpoint, engine.checkpoint.model
    inputs = engine.inputs(observation, prompt, Condition(0, observation.state))
    generator = torch.Generator().manual_seed(observation.id)
    noise = torch.randn((1, model.horizon, model.action_dim), generator=generator)
    values = np.empty((model.horizon, model.action_dim), np.float32)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.inference_mode():
            context = model.encode(inputs)
        for ripe in Sampler(model, engine.schedule).run(context, noise):
            values[ripe.indices] = ripe.values[0].float().numpy()
    return checkpoint.normaliser.actions(values, observation.state, np.arange(model.horizon))
