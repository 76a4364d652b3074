"""Fine-tunes a LeRobot policy (SmolVLA, pi0, pi0.5, X-VLA) for Onset's schedules and strategies.

Half of the samples have the horizon-aware schedule's flow times, half begin behind a committed
prefix, and, with --train.max-start, half begin later than their frame. What LeRobot trains of a
policy is trained (SmolVLA's expert, by its own settings). Run again, it goes on where it stopped.

The result, OUT/pretrained_model, is a LeRobot checkpoint; `onset.json` beside it says to the
server which strategies it has learnt.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console

from controller.errors import ErrorCode, OnsetError
from vla.adapters.finetune import FinetuneConfig, Finetuner, delta_steps
from vla.adapters.load import load_lerobot_policy

CONSOLE = Console()


@dataclass(frozen=True)
class Args:
    """Settings.

    Attributes:
        policy: Directory or hub id of the policy to begin with.
        dataset: A LeRobotDataset's id, e.g. onset/whack.
        out: Folder of the run.
        root: The dataset's folder, where it is not in LeRobot's cache.
        language: As scripts/serve.py's.
        device: Where to train.
        normalise: By the dataset's statistics or by the checkpoint's.
        report_every: Steps between lines.
        train: How.
    """

    policy: str
    dataset: str
    out: Path
    root: Path | None = None
    language: Path | None = None
    device: Literal["cpu", "cuda"] = "cpu"
    normalise: Literal["dataset", "checkpoint"] = "dataset"
    report_every: int = 10
    train: FinetuneConfig = FinetuneConfig()


def main(args: Args) -> int:
    try:
        finetune(args)
    except OnsetError as error:
        print(f"finetune_lerobot: {error}", file=sys.stderr)
        return 2
    return 0


def finetune(args: Args) -> None:
    """Loads, trains and saves.

    Raises:
        OnsetError: The policy does not load, or the dataset does not fit it.
    """
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    meta = LeRobotDatasetMetadata(args.dataset, root=args.root)
    own = args.out / "pretrained_model"
    begun = own.is_dir()
    policy = load_lerobot_policy(
        str(own) if begun else args.policy,
        language=args.language,
        device=args.device,
        stats=meta.stats if args.normalise == "dataset" else None,
    )
    wanted = {*policy.adapter.cameras, "observation.state", "action"}
    if not wanted <= set(meta.features):
        raise OnsetError(
            ErrorCode.BAD_NAMES, "dataset.features", sorted(meta.features), sorted(wanted)
        )
    steps = delta_steps(policy.adapter.horizon, args.train)
    data = LeRobotDataset(
        args.dataset,
        root=args.root,
        delta_timestamps={name: [i / meta.fps for i in at] for name, at in steps.items()},
    )
    run = Finetuner(policy, data, args.train, args.out)
    if begun:
        CONSOLE.print(f"goes on at step {run.step}")

    def report(step: int, loss: float) -> None:
        if step % args.report_every == 0 or step == args.train.steps:
            CONSOLE.print(f"step {step} of {args.train.steps}: loss {loss:.4f}")

    run.run(args.train.steps, report)
    CONSOLE.print(f"wrote {own}")


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, description=__doc__)))
