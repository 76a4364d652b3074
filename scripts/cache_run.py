"""One run of the token cache's training, whichever policy it is for: goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from vla.cache.selector import SelectorMeta
from vla.train.blended import BlendedPolicy, Rollout
from vla.train.cache import CacheTrainer, CacheTraining, moving_cameras

CONSOLE = Console()
LOG_EVERY, SAVE_EVERY = 10, 25
LOOKED_AT = 20  # rollouts that tell which cameras move


def fit(
    policy: BlendedPolicy[Any, Any],
    name: str,
    digest: str,
    config: CacheTraining,
    rollouts: Sequence[Rollout],
    folder: Path,
) -> tuple[CacheTrainer, SelectorMeta, list[dict[str, float]]]:
    """Trains to the end, and saves on the way.

    Args:
        policy: The frozen policy.
        name: Its name.
        digest: SHA-256 of its weights, hexadecimal.
        config: Settings.
        rollouts: Observations of it.
        folder: Of the run.

    Returns:
        The trainer, what its selector is for, and the log.
    """
    trainer = CacheTrainer(policy, config, rollouts)
    if trainer.resume(folder):
        CONSOLE.print(f"resumed {folder} at step {trainer.step}")
    moving, quantiles = moving_cameras(policy, rollouts[:LOOKED_AT])
    for camera, shares in quantiles.items():
        text = "/".join(f"{share:.2f}" for share in shares)
        CONSOLE.print(f"{camera}: changed patches, p50/p99/max {text}")
    rows = policy.patcher.per_camera * len(policy.patcher.cameras)
    meta = SelectorMeta(name, digest, rows, config.budget, moving)
    path = folder / "log.json"
    log = json.loads(path.read_text()) if trainer.step and path.is_file() else []
    log = [row for row in log if row["step"] <= trainer.step]
    while trainer.step < config.steps:
        row = trainer.train_step()
        if trainer.step % LOG_EVERY == 0 or trainer.step == config.steps:
            log.append({"step": trainer.step, **row})
            text = "  ".join(f"{k} {v:.4f}" for k, v in row.items())
            CONSOLE.print(f"{name} {trainer.step:5d}  {text}")
        if trainer.step % SAVE_EVERY == 0 or trainer.step == config.steps:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(log))
            trainer.save(folder, meta)
    return trainer, meta, log
