"""The picture of benchmarks/jitter.py: the share of ticks that are later than a time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use("agg")  # no display is needed

import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray

_COLOURS = ("#2f6690", "#7fb7d6", "#6a994e", "#e1a33c", "#c8553d")
_ASKED_MS = 2.0


def later(late_ns: NDArray[np.int64], missed: int, period_ns: int) -> tuple[NDArray, NDArray]:
    """Lateness [ms] and the share of ticks that are later; one left out is late by its period."""
    late = np.sort(np.concatenate([late_ns, np.full(missed, period_ns)]))
    share = 1 - np.arange(1, len(late) + 1) / len(late)
    return late * 1e-6, share


def draw(path: Path, curves: Mapping[str, tuple[NDArray, NDArray]], title: str) -> None:
    """Draws the curves of ``later`` by name.

    Args:
        path: PNG to write.
        curves: By name: lateness [ms], share.
        title: Above the picture.
    """
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for (name, (late, share)), colour in zip(curves.items(), _COLOURS, strict=False):
        # The last one, later than which there is none, has no place on a logarithmic axis.
        axes.step(np.maximum(late[:-1], 1e-3), share[:-1], where="post", color=colour, label=name)
    axes.axvline(_ASKED_MS, color="#888888", lw=1, ls="--")
    axes.axhline(0.01, color="#888888", lw=1, ls="--")
    axes.annotate("99 % within 2 ms", (_ASKED_MS, 0.01), (6, 6), textcoords="offset points")
    axes.set(xscale="log", yscale="log", xlabel="lateness [ms]", ylabel="share of ticks later")
    axes.set_xlim(0.02, None)
    axes.set_title(title)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
