"""The picture of benchmarks/smoothness.py: one joint of one episode, both ways."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import matplotlib

matplotlib.use("agg")  # no display is needed

import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_COLOURS = {"straight": "#c8553d", "limited": "#2f6690"}
_WINDOW_S = 2.0  # around the straight way's greatest jerk


class Motion(Protocol):
    """What is drawn of an episode: set-points, measured positions and velocities. Shape (n, J)."""

    @property
    def commands(self) -> Array: ...

    @property
    def positions(self) -> Array: ...

    @property
    def velocities(self) -> Array: ...


def draw(
    path: Path,
    task: str,
    names: Sequence[str],
    motions: Mapping[str, Motion],
    period_s: float,
) -> None:
    """Draws set-point, measured joint and its jerk over time, of the joint that jerks the most.

    Args:
        path: PNG to write.
        task: For the title.
        names: Of the joints.
        motions: By way: "straight" and "limited".
        period_s: Between samples [s].
    """
    jerks = {
        way: np.diff(motion.velocities, n=2, axis=0) / period_s**2
        for way, motion in motions.items()
    }
    peaks = np.abs(jerks["straight"])
    when, joint = divmod(int(peaks.argmax()), peaks.shape[1])
    middle = when * period_s
    figure, (upper, lower) = plt.subplots(
        2, 1, figsize=(9, 6), sharex=True, layout="constrained", height_ratios=(3, 2)
    )
    for way, motion in motions.items():
        colour, at = _COLOURS[way], np.arange(len(motion.commands)) * period_s
        upper.step(
            at, motion.commands[:, joint], where="post", color=colour, lw=1, alpha=0.6,
            label=f"{way}: set-point",
        )  # fmt: skip
        upper.plot(at, motion.positions[:, joint], color=colour, lw=2, label=f"{way}: joint")
        lower.plot(at[1:-1], jerks[way][:, joint], color=colour, lw=1, label=way)
    upper.set_ylabel(f"{names[joint].removesuffix('.pos')} [rad]")
    upper.set_title(f"{task}: actions straight to the servos, and within limits")
    lower.set_ylabel("jerk of the joint [rad/s³]")
    lower.set_xlabel("time [s]")
    start = max(0.0, middle - _WINDOW_S / 2)
    lower.set_xlim(start, start + _WINDOW_S)
    # The axis's limits come from what is in the window.
    window = slice(int(start / period_s), int((start + _WINDOW_S) / period_s) + 1)
    seen = np.concatenate(
        [m.commands[window, joint] for m in motions.values()]
        + [m.positions[window, joint] for m in motions.values()]
    )
    margin = 0.08 * float(np.ptp(seen)) + 1e-3
    upper.set_ylim(float(seen.min()) - margin, float(seen.max()) + margin)
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    upper.legend(frameon=False, ncols=2)
    lower.legend(frameon=False, ncols=2, loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
