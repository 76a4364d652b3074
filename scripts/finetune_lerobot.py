"""Fine-tunes a LeRobot policy (SmolVLA, pi0, pi0.5, X-VLA) for Onset's schedules and strategies.

Half of the samples have the horizon-aware schedule's flow times, half begin behind a committed
prefix, and, with --train.max-start, half begin later than their frame. What LeRobot trains of a
policy is trained (SmolVLA's expert, by its own settings), or, with --train.lora.rank, low-rank
adapters beside it. Run again, the command goes on where it stopped.

The result, OUT/pretrained_model, is a LeRobot checkpoint; `onset.json` beside it says to the
server which strategies it has learnt.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from controller.errors import ErrorCode, OnsetError
from vla.adapters.finetune import FinetuneConfig, Finetuner, delta_steps
from vla.adapters.load import digest_of, load_lerobot_policy
from vla.adapters.run_state import Origin

CONSOLE = Console()


@dataclass(frozen=True)
class Args:
    """Settings.

    Attributes:
        policy: Directory or hub id of the policy to begin with.
        dataset: A LeRobotDataset's id, e.g. onset/whack.
        out: Folder of the run.
        root: The dataset's folder, where it is not in LeRobot's cache.
        language: Directory with the policy's tokeniser (and for SmolVLA the configuration of its
            vision-language model), where the hub is out of reach.
        device: Where to train.
        normalise: By the dataset's statistics or by the checkpoint's.
        report_every: Steps between lines.
        train: How the policy is trained.
    """

    policy: str
    dataset: str
    out: Path
    root: Path | None = None
    language: Path | None = None
    device: Literal["cpu", "cuda"] = "cpu"
    normalise: Literal["dataset", "checkpoint"] = "dataset"
    report_every: int = 100
    train: FinetuneConfig = FinetuneConfig()


def main(args: Args) -> int:
    try:
        finetune(args)
    except OnsetError as error:
        print(f"finetune_lerobot: {error}", file=sys.stderr)
        return 2
    return 0


def finetune(args: Args) -> None:
    """Loads, trains, saves, and says what came of it.

    Raises:
        OnsetError: The policy does not load, the dataset does not fit it, or the folder holds a
            run that was begun with something else.
    """
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    meta = LeRobotDatasetMetadata(args.dataset, root=args.root)
    own = args.out / "pretrained_model"
    begun = own.is_dir()
    torch.manual_seed(args.train.seed)  # of fresh low-rank adapters
    policy = load_lerobot_policy(
        str(own) if begun else args.policy,
        language=args.language,
        device=args.device,
        stats=meta.stats if args.normalise == "dataset" else None,
        lora=args.train.lora if args.train.lora.rank else None,
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
    origin = Origin.of(digest_of(args.policy) if begun else policy.digest, meta, args.normalise)
    run = Finetuner(policy, data, args.train, args.out, origin)
    if begun:
        CONSOLE.print(f"goes on at step {run.step}")
    losses, seconds = fit(run, args)
    CONSOLE.print(summary(args, run, losses, seconds))


def fit(run: Finetuner, args: Args) -> tuple[list[float], float]:
    """Trains behind a bar. The losses of the steps that were run, and how long they took [s]."""
    losses: list[float] = []
    columns = (
        TextColumn(args.out.name),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=CONSOLE) as progress:
        row = progress.add_task("", total=args.train.steps, completed=run.step, note="")

        def report(step: int, loss: float) -> None:
            losses.append(loss)
            recent = losses[-args.report_every :]
            note = f"loss {sum(recent) / len(recent):.4f}"
            progress.update(row, completed=step, note=note)
            if step % args.report_every == 0:
                progress.console.print(f"step {step}: {note}")

        began = time.perf_counter()
        run.run(args.train.steps, report)
        return losses, time.perf_counter() - began


def summary(args: Args, run: Finetuner, losses: list[float], seconds: float) -> Table:
    """What was trained on what, and how to serve it."""
    table = Table("fine-tuning", args.policy, title_justify="left")
    trained, every = run.trained
    lora = args.train.lora
    how = f"adapters of rank {lora.rank}" if lora.rank else "weights"
    table.add_row("dataset", f"{args.dataset}, {len(run.data)} frames")
    table.add_row("trained", f"{how}: {trained:,} of {every:,} parameters ({trained / every:.1%})")
    table.add_row("steps", f"{run.step}, of which {len(losses)} now")
    if losses:
        part = max(1, len(losses) // 10)
        first, last = sum(losses[:part]) / part, sum(losses[-part:]) / part
        table.add_row("loss", f"{first:.4f} to {last:.4f} (means of {part} steps)")
        table.add_row("a step", f"{seconds / len(losses):.2f} s of {args.train.batch} samples")
    learnt = f"prefixes up to {args.train.max_delay} steps"
    if args.train.max_start:
        learnt += f", beginnings up to {args.train.max_start} steps later"
    table.add_row("has learnt", learnt)
    table.add_row("serve it", f"scripts/serve.py --policy {args.out / 'pretrained_model'}")
    return table


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, description=__doc__)))
