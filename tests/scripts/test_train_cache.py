"""The command line of the cache's training, from rollouts to a selector that an engine takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from scripts.train_cache import Args, main
from vla.cache.config import CacheConfig, CacheMode
from vla.cache.encoder import CachedEncoder
from vla.cache.selector import load_selector
from vla.checkpoint import load_checkpoint
from vla.train.blended import BlendedBuiltIn, Rollout
from vla.train.cache import CacheTraining, moving_cameras

BRIEF = CacheTraining(align=1, steps=2, batch=2, frames=2)


def test_an_interrupted_run_goes_on_and_gives_a_selector(tmp_path) -> None:
    args = Args("intercept", episodes=1, out=tmp_path, ship=False, train=BRIEF)
    main(args)
    folder = tmp_path / "intercept"
    rollout = folder / "rollouts" / "0000.npz"
    written = rollout.stat().st_mtime_ns
    main(args)  # nothing is left to do
    assert rollout.stat().st_mtime_ns == written
    selector = load_selector(folder / "selector.safetensors")
    checkpoint = load_checkpoint(Path("intercept"))
    assert selector.meta.model == checkpoint.digest
    CachedEncoder(checkpoint, CacheConfig(CacheMode.LEARNED), selector)


def test_a_camera_on_the_arm_is_told_by_how_much_changes() -> None:
    checkpoint = load_checkpoint(Path("pick_place"))
    rng = np.random.default_rng(0)
    frames = {
        "front": np.repeat(rng.integers(0, 256, (1, 1, 96, 96, 3), dtype=np.uint8), 6, 0),
        "wrist": rng.integers(0, 256, (6, 1, 96, 96, 3), dtype=np.uint8),
    }
    rollout = Rollout("any", np.zeros((6, 12), np.float32), frames)
    moving, quantiles = moving_cameras(BlendedBuiltIn(checkpoint), [rollout])
    assert moving == ("wrist",)
    assert quantiles["front"] == (0.0, 0.0, 0.0)
