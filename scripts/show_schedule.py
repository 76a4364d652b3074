"""Draws the flow times of the schedules: which index is how far after which expert step.

One picture a schedule, index by step; the line is where an index is finished. A table says how
many free actions are finished after each step.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("agg")  # no display is needed

import matplotlib.pyplot as plt
import numpy as np
import tyro
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from rich.console import Console
from rich.table import Table

from controller.errors import OnsetError
from vla.schedule import Schedule, constant, horizon_aware, one_step

CONSOLE = Console()


@dataclass(frozen=True)
class Args:
    """Draws the flow times of the schedules: which index is how far after which expert step.

    Attributes:
        horizon: H, actions in a chunk.
        delay: d, committed actions at its beginning.
        steps: N, expert steps of the constant and the horizon-aware schedule.
        alpha: Of the horizon-aware schedule; a smaller one gives the middle more steps.
        out: PNG to write.
    """

    horizon: int = 32
    delay: int = 0
    steps: int = 10
    alpha: float = 0.6
    out: Path = Path("out/schedule.png")


def main(args: Args) -> int:
    try:
        schedules = (
            constant(args.horizon, args.delay, args.steps),
            horizon_aware(args.horizon, args.delay, args.steps, args.alpha),
            one_step(args.horizon, args.delay),
        )
    except OnsetError as error:
        CONSOLE.print(f"show_schedule: {error}", markup=False)
        return 2
    CONSOLE.print(_table(args, schedules))
    draw(args, schedules)
    CONSOLE.print(f"wrote {args.out}")
    return 0


def finished(schedule: Schedule) -> list[int]:
    """Free actions that are finished after each step. Length steps."""
    free = schedule.ready_at[schedule.ready_at > 0]
    return [int((free <= step).sum()) for step in range(1, schedule.steps + 1)]


def _table(args: Args, schedules: tuple[Schedule, ...]) -> Table:
    table = Table(title=f"actions finished after each step (H = {args.horizon}, d = {args.delay})")
    table.add_column("schedule")
    for step in range(1, args.steps + 1):
        table.add_column(str(step), justify="right")
    for schedule in schedules:
        table.add_row(schedule.name, *(str(count) for count in finished(schedule)))
    return table


def draw(args: Args, schedules: tuple[Schedule, ...]) -> None:
    """Writes the picture."""
    widths = [max(schedule.steps + 1, 4) for schedule in schedules]
    figure, row = plt.subplots(
        1,
        len(schedules),
        sharey=True,
        squeeze=False,
        figsize=(0.34 * sum(widths) + 2.5, 5.0),
        width_ratios=widths,
        layout="constrained",
    )
    images = [_draw_one(axes, schedule) for axes, schedule in zip(row[0], schedules, strict=True)]
    row[0][0].set_ylabel("index in the chunk")
    figure.colorbar(images[0], ax=row[0], label="flow time: 1 noise, 0 action", pad=0.01)
    figure.suptitle(
        f"H = {args.horizon}, d = {args.delay}, N = {args.steps}, alpha = {args.alpha:g}; "
        "the line: an index is finished"
    )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=150)
    plt.close(figure)


def _draw_one(axes: Axes, schedule: Schedule) -> AxesImage:
    image = axes.imshow(schedule.tau.T, vmin=0, vmax=1, cmap="magma", aspect="auto")
    # Column j is the time before step j, so that an index finished by step k is clean from the
    # left edge of column k on.
    edges = np.repeat(schedule.ready_at - 0.5, 2)
    rows = np.arange(schedule.horizon)
    axes.plot(edges, np.column_stack([rows - 0.5, rows + 0.5]).ravel(), color="cyan", lw=1.6)
    if (delay := int((schedule.ready_at == 0).sum())) > 0:
        axes.annotate(
            "committed",
            (0.5, (delay - 1) / 2),
            xycoords=("axes fraction", "data"),
            ha="center",
            va="center",
            color="white",
            fontsize=8,
        )
    axes.set_title(schedule.name)
    axes.set_xlabel("steps done")
    axes.set_xticks(range(0, schedule.steps + 1, max(1, schedule.steps // 10)))
    axes.set_xlim(-0.5, schedule.steps + 0.5)
    axes.set_ylim(schedule.horizon - 0.5, -0.5)
    return image


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Args)))
