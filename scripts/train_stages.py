"""What the training scripts share: reading shards, running a trainer, and bars that say how far."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from scripts.results import write_results
from vla.checkpoint import WEIGHTS, save_checkpoint
from vla.train.data import Demonstrations
from vla.train.loop import Trainer

CONSOLE = Console()


def read(data: Demonstrations, folder: Path, number: int) -> None:
    """Adds one round's shards."""
    for shard in sorted((folder / "data").glob(f"round{number}_*.npz")):
        data.add(shard)
    CONSOLE.print(f"{len(data)} frames in memory")


def resumed(trainer: Trainer) -> bool:
    """Takes a run up where it was, if it had begun, and says so."""
    found = trainer.resume()
    if found:
        CONSOLE.print(f"resumed {trainer.folder} at step {trainer.step}")
    return found


def fit(trainer: Trainer, until: int) -> None:
    """Trains up to a step, and reports."""
    with bar(trainer.folder.name) as progress:
        row = progress.add_task("", total=until, completed=trainer.step, note="")

        def report(step: int, figures: dict[str, float]) -> None:
            note = "  ".join(f"{name} {value:.3g}" for name, value in figures.items())
            progress.update(row, completed=step, note=note)
            if step % 100 == 0:
                progress.console.print(f"step {step}: {note}")

        trainer.run(until, report)


def ship(name: str, trainer: Trainer, stages: dict[str, Path], commit: str) -> None:
    """Copies a policy into the bundled weights, and its stages' logs into a result file.

    Args:
        name: Of the bundled policy.
        trainer: The last stage's.
        stages: Logs by the names of the stages, in order.
        commit: The code's, when the run began.
    """
    path = WEIGHTS / f"{name}.safetensors"
    save_checkpoint(path, trainer.meta, trainer.average, trainer.normaliser)
    rows = [
        {"stage": stage, **json.loads(line)}
        for stage, log in stages.items()
        for line in log.read_text().splitlines()
    ]
    last = {name: value for name, value in rows[-1].items() if name not in ("stage", "seconds")}
    parameters = sum(p.numel() for p in trainer.average.parameters())
    figures = {**last, "frames": len(trainer.data), "parameters": parameters}
    results = Path("docs/results") / f"train_{name}.json"
    write_results(results, figures, rows, commit=commit)
    CONSOLE.print(f"wrote {path}, {path.with_suffix('.json')} and {results}")


def bar(title: str) -> Progress:
    """A bar with a note behind it."""
    return Progress(
        TextColumn(title),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=CONSOLE,
    )
