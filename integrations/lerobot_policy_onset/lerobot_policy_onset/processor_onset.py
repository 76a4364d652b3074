"""LeRobot's pipelines around the remote policy: names and batch dimension, no numbers changed."""

from __future__ import annotations

from typing import Any

from lerobot.processor import (
    make_default_policy_processor_steps,
    make_policy_processor_pipelines,
)

from lerobot_policy_onset.configuration_onset import OnsetConfig


def make_onset_pre_post_processors(
    config: OnsetConfig, dataset_stats: dict[str, Any] | None = None
) -> tuple[Any, Any]:
    """The pair that LeRobot asks for. ``dataset_stats`` are the server's business."""
    steps = make_default_policy_processor_steps(config, dataset_stats)
    return make_policy_processor_pipelines(
        input_steps=[steps.rename_observations, steps.add_batch_dim, steps.to_device],
        output_steps=[steps.to_cpu],
    )
