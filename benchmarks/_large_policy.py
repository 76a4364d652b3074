"""A larger build of the built-in model, for speed alone: its weights are random.

Two 224-pixel cameras with 16-pixel patches: 392 image tokens, 8 layers of width 384, sizes of the
smaller published policies.
"""

from __future__ import annotations

from dataclasses import replace

from controller.types import CameraSpec
from vla.checkpoint import Checkpoint, PolicyMeta, random_checkpoint
from vla.models.small import SmallVLAConfig
from vla.transforms import Normaliser

SIZE, PATCH, WIDTH, DEPTH, HEADS = 224, 16, 384, 8, 6


def large_checkpoint(like: Checkpoint) -> Checkpoint:
    """The larger build, for the robot and instructions of another policy."""
    cameras = tuple(CameraSpec(name, SIZE, SIZE) for name in ("front", "wrist"))
    robot = replace(like.meta.robot, cameras=cameras)
    small = like.meta.model
    model = SmallVLAConfig(
        cameras=("front", "wrist"),
        lags=(1, 1),
        image_size=SIZE,
        patch=PATCH,
        width=WIDTH,
        depth=DEPTH,
        heads=HEADS,
        horizon=small.horizon,
        state_dim=small.state_dim,
        action_dim=small.action_dim,
        words=small.words,
        max_words=small.max_words,
    )
    meta = PolicyMeta("large", model, like.meta.prompts, robot, like.meta.expert_steps)
    scales = Normaliser(**{n: t.clone() for n, t in like.normaliser.tensors().items()})
    return replace(random_checkpoint(meta, scales, seed=0), digest="large")
