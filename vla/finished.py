"""Actions as they leave an engine: of a chunk what is ripe and free, in the robot's units."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from controller.errors import ErrorCode, OnsetError
from controller.types import CacheFigures, Float, Observation
from vla.catch_up import Paced
from vla.chunking import ChunkMemory, Condition
from vla.sampler import Ripe


@dataclass(frozen=True)
class Finished:
    """Actions that are done.

    Attributes:
        start_step: The absolute step with which the chunk begins.
        steps: Absolute steps. Shape (n,), int64.
        actions: In the robot's units. Shape (n, A), float32.
        final: Whether the chunk is complete.
        encode_ns: Time that inputs, vision and prefix took [ns].
        expert_ns: Time of the expert steps so far [ns].
        expert_steps: Expert steps so far.
        image_rows: Image tokens in the prefix.
        cache: How many of them were computed anew; None where the engine has no cache.
    """

    start_step: int
    steps: NDArray[np.int64]
    actions: NDArray[np.float32]
    final: bool
    encode_ns: int
    expert_ns: int
    expert_steps: int
    image_rows: int
    cache: CacheFigures | None = None


@dataclass(frozen=True)
class Encoding:
    """How the images of a chunk were encoded.

    Attributes:
        began_ns: When inputs were begun with [ns], ``time.perf_counter_ns``.
        ended_ns: When the prefix was there [ns].
        image_rows: Image tokens in it.
        cache: How many of them were computed anew; None where the engine has no cache.
    """

    began_ns: int
    ended_ns: int
    image_rows: int
    cache: CacheFigures | None


class NonFinite(OnsetError):
    """An action came out as no finite number."""

    def __init__(self) -> None:
        super().__init__(ErrorCode.INTERNAL, "actions", "non-finite", "finite actions")


def finish(
    ripening: Iterable[Ripe],
    actions_of: Callable[[Ripe], Float],
    observation: Observation,
    condition: Condition,
    encoding: Encoding,
    memory: ChunkMemory | None,
    paced: Paced | None = None,
) -> Iterator[Finished]:
    """Yields a chunk's free actions as they ripen, and notes them.

    Args:
        ripening: From the sampler.
        actions_of: Values to actions in the robot's units. Shape (n, A).
        observation: What the chunk answers.
        condition: What it was generated from. What is committed or not used is not yielded.
        encoding: Of its images.
        memory: Of the robot's session.
        paced: Draws out a chunk that catches up.

    Raises:
        NonFinite: An action is no finite number; those before it were yielded.
    """
    start_step = observation.step + condition.start
    first = condition.prefix_length + condition.unused
    for ripe in ripening:
        actions, indices = actions_of(ripe), ripe.indices
        if first:
            used = indices >= first
            if not used.any():
                continue
            actions, indices = actions[used], indices[used]
        if not np.isfinite(actions).all():
            raise NonFinite
        if paced is not None:
            actions = paced.follow(actions)
        steps = start_step + indices
        if memory is not None:
            memory.note(observation.id, steps, actions)
        yield Finished(
            start_step,
            steps,
            actions,
            ripe.final,
            encoding.ended_ns - encoding.began_ns,
            time.perf_counter_ns() - encoding.ended_ns,
            ripe.step,
            encoding.image_rows,
            encoding.cache,
        )
