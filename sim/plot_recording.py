"""A picture of a recording: what was desired, commanded and measured, and in which mode."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from controller.recorder_read import Recording

# By code: running, coasting, decelerating, holding, fault. Running is the ground.
MODE_COLOURS = ("white", "#ffe9a8", "#ffc48c", "#c9dcf2", "#f4b0b0")
OTHER_COLOUR = "#e0d4ee"
COLUMNS = 2


def plot_recording(
    path: Path,
    recording: Recording,
    title: str,
    *,
    joints: Sequence[str] = (),
    window_s: tuple[float, float] | None = None,
    marks: Sequence[tuple[float, str]] = (),
    replayed: NDArray | None = None,
) -> None:
    """Writes one panel a joint, with the mode as coloured bands behind the lines.

    Args:
        path: PNG to write.
        recording: At least one record.
        title: Above all panels.
        joints: Action dimensions to show, by name; all by default.
        window_s: Part to show, from the first record on [s]; all of it by default.
        marks: Instants from the first record on [s], with what to write beside them.
        replayed: State of a replay, to compare. Shape (n, S), as ``measured``.
    """
    records, meta = recording.records, recording.meta
    times = (records["time_ns"] - records["time_ns"][0]) * 1e-9
    if window_s is not None:
        kept = (times >= window_s[0]) & (times <= window_s[1])
        records, times = records[kept], times[kept]
        replayed = None if replayed is None else replayed[kept]
    shown = [i for i, name in enumerate(meta.action_names) if not joints or name in joints]
    columns = min(COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(6.2 * columns, 0.9 + 2.1 * rows),
        layout="constrained",
        sharex=True,
        squeeze=False,
    )
    bands = list(_bands(times, records["mode"]))
    for ax, i in zip(axes.flat, shown, strict=False):
        name, unit = meta.action_names[i], meta.action_units[i]
        for begin, end, mode in bands:
            ax.axvspan(begin, end, color=_colour(mode), lw=0, zorder=0)
        ax.plot(times, records["desired"][:, i], "0.45", lw=1, drawstyle="steps-post")
        ax.plot(times, records["command"][:, i], "C0", lw=1.8)
        if name in meta.state_names:
            at = meta.state_names.index(name)
            ax.plot(times, records["measured"][:, at], "C3", lw=1.2)
            if replayed is not None:
                ax.plot(times, replayed[:, at], "k", lw=1.2, ls=":")
        _mark(ax, marks, times, words=ax is axes[0, 0])
        ax.set_ylabel(f"{name.removesuffix('.pos')} [{unit}]")
        ax.set_xlim(times[0], max(times[-1], times[0] + 1e-3))
        ax.grid(alpha=0.25)
    for ax in axes.flat[len(shown) :]:
        ax.set_axis_off()
    for ax in axes[-1]:
        ax.set_xlabel("time [s]")
        ax.xaxis.set_tick_params(labelbottom=True)
    figure.suptitle(title, fontsize=11)
    figure.legend(
        handles=_handles(recording, bands, replayed is not None),
        loc="outside lower center",
        ncols=4 * columns,
        fontsize=8,
        frameon=False,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _bands(times: NDArray, modes: NDArray) -> Iterator[tuple[float, float, int]]:
    """Yields begin, end [s] and mode of each stretch of one mode."""
    starts = np.flatnonzero(np.diff(modes, prepend=int(modes[0]) + 1))
    for start, stop in zip(starts, [*starts[1:], len(modes) - 1], strict=True):
        yield float(times[start]), float(times[stop]), int(modes[start])


def _colour(mode: int) -> str:
    return MODE_COLOURS[mode] if mode < len(MODE_COLOURS) else OTHER_COLOUR


def _mark(ax: Axes, marks: Sequence[tuple[float, str]], times: NDArray, *, words: bool) -> None:
    for at, text in marks:
        if times[0] <= at <= times[-1]:
            ax.axvline(at, color="k", lw=0.8, ls="--")
            if words:
                ax.annotate(
                    text,
                    (at, 1),
                    (3, -2),
                    xycoords=("data", "axes fraction"),
                    textcoords="offset points",
                    fontsize=8,
                    va="top",
                )


def _handles(
    recording: Recording, bands: list[tuple[float, float, int]], replayed: bool
) -> list[Line2D | Patch]:
    handles: list[Line2D | Patch] = [
        Line2D([], [], color="0.45", lw=1, label="desired"),
        Line2D([], [], color="C0", lw=1.8, label="commanded"),
        Line2D([], [], color="C3", lw=1.2, label="measured"),
    ]
    if replayed:
        handles.append(Line2D([], [], color="k", lw=1.2, ls=":", label="replayed"))
    names = recording.meta.mode_names
    for mode in sorted({mode for *_, mode in bands}):
        label = names.get(mode, f"mode {mode}").lower()
        handles.append(Patch(facecolor=_colour(mode), edgecolor="0.7", lw=0.5, label=label))
    return handles
