"""Time of a trained offset: several chunks of one encoded frame, or a frame encoded for each.

    packed      frame --encode--> | chunk, chunk, chunk, chunk
    separate    frame --encode--> | chunk
                frame --encode--> | chunk        ... as many chunks in all

Both are one forward and backward pass of what the trainer minimises, on a model of the shipped
size with random pictures. They take turns, in an order drawn anew each time.
"""

from __future__ import annotations

import os

# Before torch is imported: idle OpenMP threads spin.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import dataclasses
import random
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table

from scripts.results import code_commit, write_results
from scripts.train import MAX_DELAY, make_meta
from sim.tasks import TASKS, make_task
from vla.models.small import SmallVLA, SmallVLAConfig
from vla.policy import PolicyInput
from vla.train.data import Batch, Branches
from vla.train.losses import Draws, PlaceHead, losses
from vla.train.offsets import Offsets
from vla.train.times import Mixture

CONSOLE = Console()
WARM_UP = 2  # rounds that are not counted


@dataclass(frozen=True)
class Args:
    """Time of a trained offset: several chunks of one encoded frame, or a frame encoded for each.

    Attributes:
        tasks: The tasks whose policies are measured; all by default. The more there is to see,
            the more is shared.
        frames: Frames in a packed batch.
        offsets: Chunks of each of them; a separate batch has frames times offsets frames.
        rounds: How often each batch is measured.
        threads: CPU threads.
        json: Result file to write.
    """

    tasks: tuple[str, ...] = tuple(TASKS)
    frames: int = 32
    offsets: int = 4
    rounds: int = 20
    threads: int = 1
    json: Path | None = None


def main(args: Args) -> None:
    commit = code_commit()
    torch.set_num_threads(args.threads)
    figures: dict[str, float] = {}
    rows: list[dict[str, object]] = []
    for task in args.tasks:
        batches, times = measure(task, args)
        rows += [{"task": task, **_row(name, batches[name], times[name])} for name in batches]
        packed, separate = (float(np.median(times[name])) for name in ("packed", "separate"))
        figures[f"packing_speedup_{task}"] = separate / packed
    figures["packing_speedup"] = min(figures.values())
    title = f"{args.frames * args.offsets} offsets a step; times in ms"
    CONSOLE.print(_table(title, rows))
    for name, value in figures.items():
        CONSOLE.print(f"{name} = {value:.3f}")
    if args.json is not None:
        write_results(args.json, figures, rows, commit=commit)
        CONSOLE.print(f"wrote {args.json}")


def measure(task: str, args: Args) -> tuple[dict[str, Batch], dict[str, list[float]]]:
    """The batches of one task's policy, and the times of their steps [ms]."""
    torch.manual_seed(0)
    config = dataclasses.replace(make_meta(make_task(task)).model, max_start=MAX_DELAY)
    model, head = SmallVLA(config), PlaceHead(config.width)
    batches = {
        "packed": make_batch(config, args.frames, args.offsets),
        "separate": make_batch(config, args.frames * args.offsets, 1),
    }
    times: dict[str, list[float]] = {name: [] for name in batches}
    order = random.Random(0)
    for number in track(range(args.rounds + WARM_UP), f"{task}: rounds", console=CONSOLE):
        for name in order.sample(list(batches), len(batches)):
            ms = step_ms(model, head, batches[name])
            if number >= WARM_UP:
                times[name].append(ms)
    return batches, times


def make_batch(config: SmallVLAConfig, frames: int, offsets: int) -> Batch:
    """Random frames, each with chunks that begin at drawn offsets."""
    generator = torch.Generator().manual_seed(0)
    start, prefix = Offsets(offsets, MAX_DELAY).draw(frames, generator)
    chunks, size = frames * offsets, config.image_size

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    images = {
        name: torch.randint(
            256, (frames, lags, size, size, 3), generator=generator, dtype=torch.uint8
        )
        for name, lags in zip(config.cameras, config.lags, strict=True)
    }
    tokens = torch.randint(1, config.words, (frames, config.max_words), generator=generator)
    now = torch.zeros(frames, dtype=torch.int64)
    targets = (frames, len(config.cameras), config.readouts)
    return Batch(
        PolicyInput(images, normal(frames, config.state_dim), tokens, now),
        Branches(
            normal(chunks, config.state_dim),
            start.flatten(),
            prefix.flatten(),
            normal(chunks, config.horizon, config.action_dim),
            torch.ones(chunks, dtype=torch.bool),
            offsets,
        ),
        torch.rand(*targets, 2, generator=generator),
        torch.ones(targets, dtype=torch.bool),
        normal(frames, config.readouts, 6),
        torch.ones(frames, config.readouts, dtype=torch.bool),
    )


def step_ms(model: SmallVLA, head: PlaceHead, batch: Batch) -> float:
    """One forward and backward pass [ms]."""
    generator = torch.Generator().manual_seed(0)
    model.zero_grad(set_to_none=True)
    head.zero_grad(set_to_none=True)
    began = time.perf_counter_ns()
    parts = losses(model, model, head, batch, Draws(flow=1), Mixture(), generator)
    parts.total.backward()
    return (time.perf_counter_ns() - began) * 1e-6


def _table(title: str, rows: list[dict[str, object]]) -> Table:
    table = Table(title=title)
    table.add_column("task")
    table.add_column("batch")
    for name in ("frames", "offsets", "p10", "p50", "p90", "per offset"):
        table.add_column(name, justify="right")
    for row in rows:
        times = (f"{row[name]:.1f}" for name in ("p10_ms", "p50_ms", "p90_ms"))
        table.add_row(
            str(row["task"]),
            str(row["batch"]),
            str(row["frames"]),
            str(row["offsets"]),
            *times,
            f"{row['offset_ms']:.2f}",
        )
    return table


def _row(name: str, batch: Batch, times: list[float]) -> dict[str, object]:
    low, middle, high = np.quantile(times, [0.1, 0.5, 0.9])
    return {
        "batch": name,
        "frames": len(batch.inputs.state),
        "offsets": len(batch.branches.start),
        "p10_ms": float(low),
        "p50_ms": float(middle),
        "p90_ms": float(high),
        "offset_ms": float(middle) / len(batch.branches.start),
    }


if __name__ == "__main__":
    main(tyro.cli(Args))
