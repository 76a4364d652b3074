"""Trains the token cache's selector for a LeRobot policy (SmolVLA, pi0, pi0.5), which is frozen.

The frames are a LeRobotDataset's. The selector is put beside the policy's weights, where
`scripts/serve.py --policy DIR --cache learned` finds it. Run again, the command goes on where it
stopped.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from rich.console import Console

from controller.errors import ErrorCode, OnsetError
from scripts.cache_run import fit
from vla.adapters.blended import BlendedLeRobot
from vla.adapters.load import SELECTOR, load_lerobot_policy
from vla.adapters.served import ServedLeRobot
from vla.train.blended import Rollout
from vla.train.cache import CacheTraining

CONSOLE = Console()


@dataclass(frozen=True)
class Args:
    """Settings.

    Attributes:
        policy: Directory of the policy.
        dataset: A LeRobotDataset's id, e.g. onset/whack.
        out: Folder of the run.
        root: The dataset's folder, where it is not in LeRobot's cache.
        language: Directory with the policy's tokeniser (and for SmolVLA the configuration of its
            vision-language model), where the hub is out of reach.
        episodes: Episodes to train on; their frames are held in memory.
        execute_steps: K, steps from observation to observation when it is served.
        threads: CPU threads.
        train: How the selector is trained.
    """

    policy: Path
    dataset: str
    out: Path
    root: Path | None = None
    language: Path | None = None
    episodes: int = 20
    execute_steps: int = 4
    threads: int = 1
    train: CacheTraining = field(default_factory=CacheTraining)


def main(args: Args) -> int:
    try:
        train(args)
    except OnsetError as error:
        print(f"train_cache_lerobot: {error}", file=sys.stderr)
        return 2
    return 0


def train(args: Args) -> None:
    """Trains, and puts the selector beside the policy.

    Raises:
        OnsetError: The policy does not load or keeps no rows, or the dataset does not fit it.
    """
    if not args.policy.is_dir():
        raise OnsetError(
            ErrorCode.BAD_VALUE, "policy", args.policy, "a directory, where the selector is put"
        )
    torch.set_num_threads(args.threads)
    policy = load_lerobot_policy(str(args.policy), language=args.language)
    cameras = ServedLeRobot(policy).cameras
    blended = BlendedLeRobot(policy, cameras)
    found = rollouts(args, cameras)
    trainer, meta, _ = fit(blended, policy.name, policy.digest, args.train, found, args.out)
    trainer.heads.selector(meta).save(args.policy / SELECTOR)
    CONSOLE.print(f"wrote {args.policy / SELECTOR}")


def rollouts(args: Args, cameras: dict[str, str]) -> list[Rollout]:
    """Every K-th frame of the first episodes.

    Args:
        args: Settings.
        cameras: Robot's camera to the dataset's key.

    Raises:
        OnsetError: BAD_NAMES: the dataset lacks something that the policy takes.
    """
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    data: Any = LeRobotDataset(args.dataset, root=args.root)
    wanted = {*cameras.values(), "observation.state"}
    if not wanted <= set(data.meta.features):
        raise OnsetError(
            ErrorCode.BAD_NAMES, "dataset.features", sorted(data.meta.features), sorted(wanted)
        )
    found = []
    for number in range(min(args.episodes, data.meta.total_episodes)):
        episode: Any = data.meta.episodes[number]
        first, end = int(episode["dataset_from_index"]), int(episode["dataset_to_index"])
        rows = [data[index] for index in range(first, end, args.execute_steps)]
        frames = {
            name: np.stack([_pixels(row[key]) for row in rows]) for name, key in cameras.items()
        }
        state = np.stack([row["observation.state"].numpy() for row in rows])
        found.append(Rollout(rows[0]["task"], state, frames))
    return found


def _pixels(image: torch.Tensor) -> np.ndarray:
    """Of 0..1, (3, h, w), to uint8 as an observation has them, (1, h, w, 3)."""
    return image.mul(255).round().byte().permute(1, 2, 0).numpy()[None]


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, description=__doc__)))
