"""The bar chart of benchmarks/ttfa.py."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use("agg")  # no display is needed

import matplotlib.pyplot as plt
import numpy as np

from benchmarks._ttfa_clocks import Clocks

_PARTS = (
    ("inputs and prefix", "#4878a8"),
    ("expert until the first action", "#e1a33c"),
    ("the rest: server, link, messages", "#b0b0b0"),
)


def draw(path: Path, title: str, places: Mapping[str, Mapping[str, Clocks]]) -> None:
    """Draws the medians of the time to the first action, one bar a place and schedule.

    Args:
        path: PNG to write.
        title: Above the chart.
        places: Place, then schedule, to its times.
    """
    labels, rows = [], []
    for place, clocks in places.items():
        for name, clock in clocks.items():
            first, encode, expert = (
                float(np.median(row)) for row in (clock.first, clock.encode, clock.expert)
            )
            labels.append(f"{name}\n{place}")
            rows.append((encode, expert, first - encode - expert))
    figure, axes = plt.subplots(figsize=(1.4 * len(labels) + 1.5, 4.2), layout="constrained")
    floor = np.zeros(len(rows))
    for number, (part, colour) in enumerate(_PARTS):
        heights = np.array([row[number] for row in rows])
        axes.bar(labels, heights, 0.62, bottom=floor, label=part, color=colour)
        floor += heights
    for at, height in enumerate(floor):
        axes.annotate(
            f"{height:.1f}", (at, height), (0, 3), textcoords="offset points", ha="center"
        )
    axes.set_ylabel("time to the first action, median [ms]")
    axes.set_title(title)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(y=0.12)
    figure.legend(loc="outside lower center", ncols=len(_PARTS), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
