"""Plots of episodes."""

from __future__ import annotations

from collections.abc import Sequence
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
) -> None:
    """Set-points against measured joints, and how long the answers took.

    Args:
        path: PNG to write.
        title: Its title.
        trace: Measured joints and set-points. Shape (T, 2, 6), action units.
        period_s: Policy period [s].
        observed_s: When the answered observations were taken [s].
        latencies_ms: Times by name [ms].
    """
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11, 4.2), width_ratios=[2.2, 1], layout="constrained"
    )
    time = (1 + np.arange(len(trace))) * period_s
    for joint in range(4):
        colour = f"C{joint}"
        left.plot(time, trace[:, 1, joint], colour, lw=1, ls="--")
        left.plot(time, trace[:, 0, joint], colour, lw=1.6, label=JOINTS[joint])
    left.plot(time, trace[:, 0, 5], "0.4", lw=1.2, label="gripper (0..1)")
    low = left.get_ylim()[0]
    left.plot(observed_s, np.full(len(observed_s), low), "k|", ms=7, label="observation")
    left.set(xlabel="time [s]", ylabel="joint [rad]; dashed: set-point", title=title)
    left.legend(fontsize=8, ncols=3, loc="upper right")
    for i, (name, values) in enumerate(latencies_ms.items()):
        ordered = np.sort(np.asarray(values))
        right.plot(ordered, np.linspace(0, 1, len(ordered)), f"C{i}", label=name)
    right.set(xlabel="time [ms]", ylabel="share of answers", title="latency", xlim=(0, None))
    right.grid(alpha=0.3)
    right.legend(fontsize=8, loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
