"""Plots of episodes and of evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sim.robots.so101 import JOINTS

MOST_INSIDE = 5  # lines that a panel's own legend names


def plot_episode(
    path: Path,
    title: str,
    trace: NDArray,
    period_s: float,
    observed_s: Sequence[float],
    latencies_ms: dict[str, Sequence[float]],
    reused: Sequence[float],
) -> None:
    """Set-points against measured joints, what was reused, and how long the answers took.

    Args:
        path: PNG to write.
        title: Its title.
        trace: Measured joints and set-points. Shape (T, 2, 6), action units.
        period_s: Policy period [s].
        observed_s: When the answered observations were taken [s].
        latencies_ms: Times by name [ms].
        reused: Of each answered observation, the share of image tokens not computed anew.
    """
    figure, axes = plt.subplot_mosaic(
        [["joints", "latency"], ["reuse", "latency"]],
        figsize=(11, 4.8),
        width_ratios=[2.2, 1],
        height_ratios=[4, 1],
        layout="constrained",
    )
    left, right, below = axes["joints"], axes["latency"], axes["reuse"]
    time = (1 + np.arange(len(trace))) * period_s
    for joint in range(4):
        colour = f"C{joint}"
        left.plot(time, trace[:, 1, joint], colour, lw=1, ls="--")
        left.plot(time, trace[:, 0, joint], colour, lw=1.6, label=JOINTS[joint])
    left.plot(time, trace[:, 0, 5], "0.4", lw=1.2, label="gripper (0..1)")
    low = left.get_ylim()[0]
    left.plot(observed_s, np.full(len(observed_s), low), "k|", ms=7, label="observation")
    left.set(ylabel="joint [rad]; dashed: set-point")
    # Outside: the joints may be anywhere inside.
    left.legend(fontsize=8, ncols=6, loc="lower center", bbox_to_anchor=(0.5, 1), frameon=False)
    figure.suptitle(title, fontsize=11)
    below.vlines(observed_s, 0, reused, "C0", lw=2)
    below.set(xlabel="time [s]", ylabel="reused", xlim=left.get_xlim(), ylim=(0, 1))
    for i, (name, values) in enumerate(latencies_ms.items()):
        ordered = np.sort(np.asarray(values))
        # The last one dashed, on top of what it may coincide with.
        share = np.linspace(0, 1, len(ordered))
        style = "--" if i + 1 == len(latencies_ms) else "-"
        right.plot(ordered, share, f"C{i}", ls=style, label=name)
    right.set(xlabel="time [ms]", ylabel="share of answers", title="latency", xlim=(0, None))
    right.grid(alpha=0.3)
    right.legend(fontsize=8, loc="upper left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


@dataclass(frozen=True)
class Panel:
    """One picture of lines with intervals.

    Attributes:
        xlabel: What is to the right.
        ylabel: What is upwards.
        lines: Points by the line's name: x, y, lower and upper end of y.
        share: Whether y is a share, shown from 0 to 1.
    """

    xlabel: str
    ylabel: str
    lines: Mapping[str, Sequence[tuple[float, float, float, float]]]
    share: bool = False


def plot_panels(path: Path, title: str, panels: Sequence[Panel], bold: Sequence[str] = ()) -> None:
    """Panels in a grid; a line has the same colour in each.

    Args:
        path: PNG to write.
        title: Above all panels.
        panels: At least one.
        bold: Lines that the picture is about. Where there are any, their intervals alone are
            drawn, as bands, and the other lines are thin: many bars would hide each other.
    """
    figure, axes = _grid(len(panels))
    styles = _styles([name for panel in panels for name in panel.lines], bold)
    for ax, panel in zip(axes, panels, strict=True):
        most = max((x for points in panel.lines.values() for x, *_ in points), default=0.0) or 1.0
        for i, (name, points) in enumerate(panel.lines.items()):
            x, y, low, high = np.array(points).T
            style = styles[name]
            if bold:
                ax.plot(x, y, marker="o", ms=4, label=name, **style)
                if name in bold:
                    ax.fill_between(x, low, high, color=style["color"], alpha=0.12, lw=0)
                continue
            # Slightly apart, so that bars at the same x do not hide each other.
            shift = 0.004 * most * (i - (len(panel.lines) - 1) / 2)
            error = np.maximum(0, [y - low, high - y])  # rounding
            ax.errorbar(x + shift, y, yerr=error, fmt="o-", ms=5, capsize=3, label=name, **style)
        ax.set(xlabel=panel.xlabel, ylabel=panel.ylabel, xlim=(-0.02 * most, 1.08 * most))
        ax.set_ylim(0, 1.02 if panel.share else None)
    _finish(path, figure, axes, title)


def plot_shares(
    path: Path,
    xlabel: str,
    values: Mapping[str, Mapping[str, Sequence[float]]],
    bold: Sequence[str] = (),
) -> None:
    """Distributions: for each panel and line, the share of values that are not greater than x.

    Args:
        path: PNG to write.
        xlabel: What is to the right.
        values: By panel and line; each line has at least one value.
        bold: Lines that the picture is about.
    """
    figure, axes = _grid(len(values))
    styles = _styles([name for lines in values.values() for name in lines], bold)
    for ax, (title, lines) in zip(axes, values.items(), strict=True):
        for name, line in lines.items():
            ordered = np.sort(np.asarray(line))
            share = np.arange(1, len(ordered) + 1) / len(ordered)
            ax.step(ordered, share, where="post", label=name, **styles[name])
        ax.set(xlabel=xlabel, ylabel="share", title=title, xlim=(0, None), ylim=(0, 1.02))
    _finish(path, figure, axes, None)


def _grid(count: int) -> tuple[Figure, list[Axes]]:
    """Side by side; four as two above two."""
    rows, columns = (2, 2) if count == 4 else (1, count)
    size = 5.5 * columns, 4.2 * rows
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    return figure, list(axes.flat)


def _styles(names: Sequence[str], bold: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Bold lines in black, the second of them dashed, on top; the others in colours."""
    others = [name for name in dict.fromkeys(names) if name not in bold]
    thin = 1.2 if bold else 1.6
    styles = {name: {"color": f"C{i}", "lw": thin} for i, name in enumerate(others)}
    for i, name in enumerate(bold):
        styles[name] = {"color": "k", "lw": 2.4, "ls": "--" if i else "-", "zorder": 3}
    return styles


def _finish(path: Path, figure: Figure, axes: Sequence[Axes], title: str | None) -> None:
    """Grid, legend and title; then the file. Many lines are named once, beside the panels."""
    named: dict[str, Any] = {}
    for ax in axes:
        ax.grid(alpha=0.3)
        lines, names = ax.get_legend_handles_labels()
        named |= dict(zip(names, lines, strict=True))
    if len(named) > MOST_INSIDE:
        figure.legend(named.values(), named.keys(), fontsize=9, loc="outside right center")
    else:
        for ax in axes:
            ax.legend(fontsize=8, loc="best")
    if title is not None:
        figure.suptitle(title, fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
