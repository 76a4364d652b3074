"""Pictures of the cache: speed against error, error against age, the worst frames."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks._token_cache_methods import Measured
from sim.reuse_film import dimmed

DPI = 110
IN_A_ROW = 4


def draw_speed(path: Path, policies: Mapping[str, Measured], dense: str = "off") -> None:
    """Median speed-up of encoding against p99 of the action error, a panel a policy."""
    figure, axes = _panels(len(policies), 4)
    for axis, (policy, measured) in zip(axes, policies.items(), strict=True):
        base = np.median([r.encode_ms for r in measured.replies[dense]])
        for name, replies in sorted(measured.replies.items()):
            if name.startswith("oracle") or name in ("off", "dense"):
                continue
            speed = base / np.median([r.encode_ms for r in replies])
            worst = np.quantile([r.error for r in replies], 0.99)
            axis.scatter(speed, worst, s=30, label=name, marker="o" if "slack" not in name else "x")
        for name, errors in measured.floors.items():
            floor = float(np.quantile(errors, 0.99))
            axis.axhline(floor, color="0.6", ls=":", lw=1)
            axis.text(axis.get_xlim()[0], floor, name, fontsize=7, va="bottom")
        axis.set(title=policy, xlabel="encode: times faster than dense (p50)", yscale="log")
    axes[0].set_ylabel("action error, p99 [rad]")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=IN_A_ROW)
    _save(figure, path)


def draw_age(path: Path, policies: Mapping[str, Measured]) -> None:
    """Error against the greatest age, without slack time, a panel a policy."""
    figure, axes = _panels(len(policies), 3.6)
    for axis, (policy, measured) in zip(axes, policies.items(), strict=True):
        for name in ("learned 1/4, no slack", "pixel 1/4, no slack", "learned 1/2, no slack"):
            replies = [r for r in measured.replies[name] if not r.figures.dense_reason]
            ages = sorted({r.figures.max_age for r in replies})
            errors = [[r.error for r in replies if r.figures.max_age == age] for age in ages]
            line = axis.plot(ages, [np.median(e) for e in errors], label=name)[0]
            axis.plot(ages, [max(e) for e in errors], color=line.get_color(), ls="--", lw=1)
        floor = float(np.quantile(measured.floors["bfloat16"], 0.99))
        axis.axhline(floor, color="0.6", ls=":", lw=1)
        axis.set(title=policy, xlabel="greatest age of a row [observations]", yscale="log")
    axes[0].set_ylabel("action error [rad]: median, max (dashed)\nbfloat16's p99 (dotted)")
    axes[-1].legend(fontsize=7)
    _save(figure, path)


def draw_worst(path: Path, policies: Mapping[str, Measured], names: tuple[str, ...]) -> None:
    """The frame on which each method was farthest off, its reused patches dimmed."""
    figure, axes = plt.subplots(
        len(policies),
        len(names),
        figsize=(3.2 * len(names), 2.1 * len(policies)),
        squeeze=False,
        layout="constrained",
    )
    for row, (policy, measured) in zip(axes, policies.items(), strict=True):
        for axis, name in zip(row, names, strict=True):
            worst = measured.worst[name]
            picture = [
                dimmed(frame, worst.chosen, number, measured.film.patch)
                for number, frame in enumerate(worst.frames)
            ]
            axis.imshow(np.concatenate(picture, axis=1), interpolation="nearest")
            axis.set_title(f"{policy}, {name}\n{worst.error:.3f} rad", fontsize=8)
            axis.axis("off")
    _save(figure, path)


def _panels(count: int, height: float) -> tuple[Figure, list[Axes]]:
    """As many panels, in rows. Height of one [in]."""
    columns = min(count, IN_A_ROW)
    rows = -(-count // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(4.2 * columns, height * rows), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[count:]:
        axis.remove()
    return figure, list(axes.flat[:count])


def _save(figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)
    plt.close(figure)
