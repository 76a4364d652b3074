"""Plots of episodes and of evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray

from sim.robots.so101 import JOINTS


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


def plot_panels(path: Path, title: str, panels: Sequence[Panel]) -> None:
    """Panels side by side; a line has the same colour in each.

    Args:
        path: PNG to write.
        title: Above all panels.
        panels: At least one.
    """
    figure, axes = plt.subplots(
        1, len(panels), figsize=(5.5 * len(panels), 4.2), layout="constrained", squeeze=False
    )
    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    for ax, panel in zip(axes[0], panels, strict=True):
        most = max((x for points in panel.lines.values() for x, *_ in points), default=1.0)
        for name, points in panel.lines.items():
            x, y, low, high = np.array(points).T
            i = names.index(name)
            # Slightly apart, so that bars at the same x do not hide each other.
            shift = 0.004 * most * (i - (len(names) - 1) / 2)
            ax.errorbar(
                x + shift,
                y,
                yerr=np.maximum(0, [y - low, high - y]),  # rounding
                fmt="o-",
                color=f"C{i}",
                lw=1.6,
                ms=5,
                capsize=3,
                label=name,
            )
        ax.set(xlabel=panel.xlabel, ylabel=panel.ylabel, xlim=(-0.02 * most, 1.08 * most))
        ax.set_ylim((0, 1.02) if panel.share else (0, None))
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8, loc="best")
    figure.suptitle(title, fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def plot_shares(
    path: Path, xlabel: str, values: Mapping[str, Mapping[str, Sequence[float]]]
) -> None:
    """Distributions: for each panel and line, the share of values that are not greater than x.

    Args:
        path: PNG to write.
        xlabel: What is to the right.
        values: By panel and line; each line has at least one value.
    """
    figure, axes = plt.subplots(
        1, len(values), figsize=(5.5 * len(values), 4.2), layout="constrained", squeeze=False
    )
    names = list(dict.fromkeys(name for lines in values.values() for name in lines))
    for ax, (title, lines) in zip(axes[0], values.items(), strict=True):
        for name, line in lines.items():
            ordered = np.sort(np.asarray(line))
            share = np.arange(1, len(ordered) + 1) / len(ordered)
            ax.step(ordered, share, where="post", color=f"C{names.index(name)}", label=name)
        ax.set(xlabel=xlabel, ylabel="share", title=title, xlim=(0, None), ylim=(0, 1.02))
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8, loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
