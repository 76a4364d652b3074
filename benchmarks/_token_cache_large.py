"""The cache of a larger build, whose scene is a still picture in which a few squares move."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from benchmarks._large_policy import SIZE, large_checkpoint
from controller.types import Observation, RobotSpec
from vla.cache.asked import Whose
from vla.cache.config import CacheConfig
from vla.cache.heads import CacheHeads
from vla.cache.prefix import PrefixEncoder
from vla.cache.selector import Selector, SelectorMeta
from vla.checkpoint import Checkpoint
from vla.chunking import Condition
from vla.engine import Engine
from vla.serve.runner import blank_observation

SQUARES = 3


def large_selector(checkpoint: Checkpoint) -> Selector:
    """A selector of the right size, untrained."""
    model = checkpoint.meta.model
    rows = model.grid**2 * len(model.cameras)
    torch.manual_seed(0)
    heads = CacheHeads(rows, model.width)
    return heads.selector(SelectorMeta("large", "large", rows, 0.25, model.cameras))


def moving_squares(robot: RobotSpec, count: int) -> Iterator[Observation]:
    """Observations of a still scene in which squares move, four steps apart."""
    rng = np.random.default_rng(0)
    blank = blank_observation(robot)
    still = {c.name: rng.integers(0, 256, c.frames_shape, dtype=np.uint8) for c in robot.cameras}
    places = rng.uniform(0, SIZE - 48, (SQUARES, 2))
    speeds = rng.uniform(-9, 9, (SQUARES, 2))
    for number in range(count):
        frames = {name: frame.copy() for name, frame in still.items()}
        for place in places:
            y, x = (place % (SIZE - 48)).astype(int)
            for frame in frames.values():
                frame[:, y : y + 48, x : x + 48] = 200
        places += speeds
        yield replace(blank, id=number, step=4 * number, frames=frames)


@dataclass(frozen=True)
class LargeTimes:
    """What one encoding took [ms]; attributes as in ``_token_cache_methods.Reply``."""

    encode_ms: float
    choice_ms: float = 0.0
    scoring_ms: float = 0.0


def measure_large(
    like: Checkpoint, methods: dict[str, CacheConfig], rounds: int
) -> dict[str, list[LargeTimes]]:
    """Times of encoding, and of the choice of rows in it, by method.

    Slack time is used, and not counted. "module" is the model's own ``encode``, whose gains the
    others have taken.
    """
    checkpoint = large_checkpoint(like)
    selector = large_selector(checkpoint)
    prefix = PrefixEncoder(checkpoint.model)
    engines = {
        n: Engine(checkpoint, cache=c, selector=selector, prefix=prefix) for n, c in methods.items()
    }
    prompt = checkpoint.meta.prompts[0]
    times: dict[str, list[LargeTimes]] = {name: [] for name in (*methods, "module")}
    order = np.random.default_rng(0)
    for number, observation in enumerate(moving_squares(checkpoint.meta.robot, rounds + 3)):
        for index in order.permutation(len(engines)):
            name = list(engines)[index]
            pieces = engines[name].stream(observation, prompt, whose=Whose("robot", "e"))
            encode_ms = next(pieces).encode_ns * 1e-6
            for _ in pieces:
                pass
            engines[name].settle()
            if number >= 3:
                made = engines[name].encoder
                found = LargeTimes(encode_ms, made.choice_ns * 1e-6, made.scoring_ns * 1e-6)
                times[name].append(found)
        if number >= 3:
            times["module"].append(LargeTimes(_module_ms(checkpoint, observation, prompt)))
    return times


def _module_ms(checkpoint: Checkpoint, observation: Observation, prompt: str) -> float:
    inputs = Engine(checkpoint).inputs(observation, prompt, Condition(0, observation.state))
    with torch.inference_mode():
        began = time.perf_counter_ns()
        checkpoint.model.encode(inputs)
        return (time.perf_counter_ns() - began) * 1e-6


def quantiles(values: list[float]) -> tuple[float, float, float]:
    """p50, p95, p99."""
    p50, p95, p99 = np.quantile(values, [0.5, 0.95, 0.99]).tolist()
    return p50, p95, p99
