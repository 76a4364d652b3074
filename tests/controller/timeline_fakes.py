"""Slices for the tests of the timeline."""

import numpy as np

from controller.types import ActionSlice


def piece(observation_id: int, steps: list[int]) -> ActionSlice:
    """A slice whose actions say which observation and step they belong to."""
    return ActionSlice(
        observation_id=observation_id,
        start_step=steps[0],
        steps=np.array(steps, dtype=np.int64),
        actions=np.array([[observation_id, step] for step in steps], np.float32),
        final=True,
    )
