"""Tables, figures and plots of the delay matrix."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from scripts.delay_matrix_cells import OURS, STALE, Cell
from sim.metrics import sign_test, wilson
from sim.plots import Panel, plot_panels, plot_shares

Rows = Mapping[Cell, Sequence[dict]]
SIGNIFICANT = 0.05
STOOD = 1e-6  # rms [rad] up to which a joint has not moved
BOLD = (OURS, STALE)  # in every plot, so that the others have the same colours in each


class Report:
    """What came of the cells.

    In the tables, ``<`` marks a success that is below ours by the paired sign test at p < .05, and
    ``>`` one that is above it.
    """

    def __init__(self, rows: Rows) -> None:
        self._cells = {cell: list(found) for cell, found in rows.items() if found}

    def _group(self, keep: Callable[[Cell], bool]) -> dict[Cell, list[dict]]:
        return {cell: rows for cell, rows in self._cells.items() if keep(cell)}

    def _scenes(self) -> list[str]:
        return list(dict.fromkeys(cell.scene for cell in self._cells))

    # Tables -----------------------------------------------------------------------------------

    def tables(self) -> list[Table]:
        """Success by delay, by scale, under jitter, and motion; one table a scene and kind."""
        kinds = (
            ("success at equal delay [steps]", _plain, lambda c: c.delay),
            ("success, each paying its own time, times x", _scaled, lambda c: c.scale),
            ("success under jitter (sigma .3) around", _jittered, lambda c: c.delay),
        )
        tables = []
        for scene in self._scenes():
            for title, keep, column in kinds:
                cells = self._group(lambda c, k=keep, s=scene: c.scene == s and k(c))
                if cells:
                    tables.append(_success_table(f"{scene}: {title}", cells, column))
            cells = self._group(lambda c, s=scene: c.scene == s and _plain(c) and c.delay == 8)
            if cells:
                tables.append(self._motion_table(f"{scene}: motion at d = 8", cells))
            cells = self._group(lambda c, s=scene: c.scene == s and c.delay is not None)
            if any(c.speedup > 1 for c in cells):
                tables.append(self._speedup_table(scene, cells))
        return tables

    def _motion_table(self, title: str, cells: dict[Cell, list[dict]]) -> Table:
        table = Table(title=title, box=SIMPLE_HEAD)
        table.add_column("strategy")
        for name in (
            "reaction mean/p50/p99 [ms]",
            "switch p99 [rad]",
            "own step p99 [rad]",
            "jerk [rad/s3]",
            "hold",
            "late",
            "finish [steps]",
        ):
            table.add_column(name, justify="right")
        for cell, rows in cells.items():
            f = summary(rows)
            reaction = "/".join(_ms(f[f"reaction_{n}_ms"]) for n in ("mean", "p50", "p99"))
            table.add_row(
                cell.strategy,
                reaction,
                _number(f["switch_p99"]),
                _number(f["within_p99"]),
                f"{f['jerk']:.0f}",
                f"{f['hold']:.2f}",
                f"{f['late']:.0f}",
                f"{f['finish_steps']:.0f}" if f["finish_steps"] is not None else "",
            )
        return table

    def _speedup_table(self, scene: str, cells: dict[Cell, list[dict]]) -> Table:
        table = Table(title=f"{scene}: q actions merged into one", box=SIMPLE_HEAD)
        for name in ("strategy", "d", "q", "success", "time to finish [steps]", "faster by"):
            table.add_column(name, justify="left" if name == "strategy" else "right")
        for fast, plain in self._speedups(cells):
            for cell in (plain, fast):
                f = summary(cells[cell])
                finish = f["finish_steps"]
                ratio = _ratio(summary(cells[plain])["finish_steps"], finish)
                table.add_row(
                    cell.strategy,
                    str(cell.delay),
                    str(cell.speedup),
                    f"{f['success']:.3f}",
                    "" if finish is None else f"{finish:.0f}",
                    "" if ratio is None or cell is plain else f"{ratio:.2f}",
                )
        return table

    def _speedups(self, cells: Rows) -> list[tuple[Cell, Cell]]:
        """Pairs of a cell that is sped up and the one that is not."""
        pairs = []
        for fast in cells:
            for plain in cells:
                same = (plain.strategy, plain.delay) == (fast.strategy, fast.delay)
                if fast.speedup > 1 and same and _plain(plain) and plain.scene == fast.scene:
                    pairs.append((fast, plain))
        return pairs

    # Figures ----------------------------------------------------------------------------------

    def figures(self) -> dict[str, float]:
        """What the run was for; see docs/results.md for what each name means."""
        found: dict[str, float] = {}
        for scene in self._scenes():
            name = scene.replace(" ", "_")
            plain = self._group(lambda c, s=scene: c.scene == s and _plain(c))
            found |= _over_bound(name, plain)
            for delay in sorted({c.delay for c in plain if c.delay is not None and c.delay >= 4}):
                at = {c: r for c, r in plain.items() if c.delay == delay}
                found |= _best(f"best_at_{delay}_{name}", at)
            scaled = self._group(lambda c, s=scene: c.scene == s and _scaled(c))
            for scale in sorted({c.scale for c in scaled if c.scale is not None}):
                at = {c: r for c, r in scaled.items() if c.scale == scale}
                found |= _best(f"best_at_x{scale:g}_{name}", at)
            found |= _switch(name, plain)
        for fast, plain in self._speedups(self._cells):
            if fast.strategy == OURS:
                before, after = summary(self._cells[plain]), summary(self._cells[fast])
                ratio = _ratio(before["finish_steps"], after["finish_steps"])
                if ratio is not None:
                    found[f"speedup_q{fast.speedup}_d{fast.delay}"] = ratio
                    loss = before["success"] - after["success"]
                    found[f"speedup_q{fast.speedup}_d{fast.delay}_loss"] = loss
        ratio = self._forecast_ratio()
        return found if ratio is None else found | {"forecast_over_last_command_rms_closed": ratio}

    def _forecast_ratio(self) -> float | None:
        """Worst joint's rms of the servo forecast over the last command's, in closed loop.

        None where no joint moved between a forecast and its step: at delays longer than K the
        robot leaves all but an episode's first forecast to the server.
        """
        rms = {}
        for name in ("forecast", "last_command"):
            cells = self._group(lambda c, n=name: c.strategy == n and _plain(c))
            rows = [row for found in cells.values() for row in found if row["forecasts"]]
            if not rows:
                return None
            squares = np.sum([row["squared_forecast_error"] for row in rows], axis=0)
            rms[name] = np.sqrt(squares / sum(row["forecasts"] for row in rows))
        moved = rms["last_command"] > STOOD
        ratios = rms["forecast"][moved] / rms["last_command"][moved]
        return float(ratios.max()) if moved.any() else None

    def rows(self) -> list[dict[str, object]]:
        """One row a cell."""
        return [
            {
                "scene": cell.scene,
                "strategy": cell.strategy,
                "schedule": cell.schedule if cell.strategy != STALE else None,
                "delay": cell.delay,
                "scale": cell.scale,
                "jitter": cell.jitter,
                "q": cell.speedup,
                "execute_steps": cell.execute_steps,
                "expert_steps": cell.expert_steps,
                "limits": cell.robot,
                **summary(rows),
                "p_ours": self._against_ours(cell),
            }
            for cell, rows in self._cells.items()
        ]

    def _against_ours(self, cell: Cell) -> float | None:
        """P of the paired sign test between a cell and ours under the same conditions."""
        for other, rows in self._cells.items():
            if other.strategy == OURS and _conditions(other) == _conditions(cell) and other != cell:
                return paired(rows, self._cells[cell])[2]
        return None

    # Plots ------------------------------------------------------------------------------------

    def plot(self, folder: Path) -> list[Path]:
        """Success against delay, distribution of reactions, and of steps at a switch."""
        plain = self._group(_plain)
        scenes = list(dict.fromkeys(cell.scene for cell in plain))
        paths = []
        if scenes:
            path = folder / "success.png"
            panels = [_success_panel(scene, plain) for scene in scenes]
            title = "success against delay; bands are 95% intervals"
            plot_panels(path, title, panels, BOLD)
            paths.append(path)
        for name, label, of in (
            ("reaction", "event to motion at d = 8 [ms]", _reactions_ms),
            ("switch", "set-point's step at a switch, d = 8 [rad]", _switches),
        ):
            values = {
                scene: {
                    cell.strategy: of(rows)
                    for cell, rows in plain.items()
                    if cell.scene == scene and cell.delay == 8 and len(of(rows))
                }
                for scene in scenes
            }
            values = {scene: found for scene, found in values.items() if found}
            if values:
                path = folder / f"{name}.png"
                plot_shares(path, label, values, BOLD)
                paths.append(path)
        return paths


def _plain(cell: Cell) -> bool:
    return cell.delay is not None and not cell.jitter and cell.speedup == 1


def _scaled(cell: Cell) -> bool:
    return cell.scale is not None


def _jittered(cell: Cell) -> bool:
    return cell.jitter > 0


def _conditions(cell: Cell) -> tuple:
    return (cell.scene, cell.delay, cell.scale, cell.jitter, cell.speedup)


def summary(rows: Sequence[dict]) -> dict:
    """Figures of one cell's episodes."""
    wins, count = sum(row["success"] for row in rows), len(rows)
    lower, upper = wilson(wins, count)
    reactions = _reactions_ms(rows)
    switches = _switches(rows)
    within = [row["within"][1] for row in rows if row["within"]]
    finished = [row["steps"] for row in rows if row["success"]]

    def of(values, take) -> float | None:
        return float(take(values)) if len(values) else None

    return {
        "episodes": count,
        "success": wins / count,
        "lower": lower,
        "upper": upper,
        "reactions": len(reactions),
        "reaction_mean_ms": of(reactions, np.mean),
        "reaction_p50_ms": of(reactions, np.median),
        "reaction_p99_ms": of(reactions, lambda v: np.percentile(v, 99)),
        "switch_p50": of(switches, np.median),
        "switch_p99": of(switches, lambda v: np.percentile(v, 99)),
        "within_p99": of(within, np.median),
        "jerk": float(np.mean([row["jerk"] for row in rows])),
        "hold": float(np.mean([row["hold"] for row in rows])),
        "late": float(np.mean([row["late"] for row in rows])),
        "skipped": float(np.mean([row["skipped"] for row in rows])),
        "missed": float(np.mean([row["missed"] for row in rows])),
        "finish_steps": of(finished, np.mean),
    }


def paired(ours: Sequence[dict], other: Sequence[dict]) -> tuple[int, int, float]:
    """Seeds that only ours won, that only the other won, and p of the sign test."""
    theirs = {row["seed"]: row["success"] for row in other}
    both = [(row["success"], theirs[row["seed"]]) for row in ours if row["seed"] in theirs]
    one = sum(a and not b for a, b in both)
    two = sum(b and not a for a, b in both)
    return one, two, sign_test(one, two)


def _over_bound(scene: str, cells: Rows) -> dict[str, float]:
    """How much of what late eyes leave ours keeps: 1 is all of it."""
    kept: dict[str, dict[int, float]] = {OURS: {}, STALE: {}}
    for cell, rows in cells.items():
        if cell.strategy in kept and cell.delay is not None:
            kept[cell.strategy][cell.delay] = summary(rows)["success"]
    found = {}
    for delay in sorted(kept[OURS].keys() & kept[STALE].keys()):
        start, bound = kept[OURS].get(0), kept[STALE].get(0)
        if 0 < delay <= 8 and start and bound and kept[STALE][delay]:
            ours = kept[OURS][delay] / start
            found[f"ours_over_bound_d{delay}_{scene}"] = ours / (kept[STALE][delay] / bound)
    return found


def _best(name: str, cells: Rows) -> dict[str, float]:
    """1: ours is above each other strategy with p < .05; 0: some is above ours; .5: ties.

    The oracle is no rival: it simulates the arm it drives.
    """
    ours = next((rows for cell, rows in cells.items() if cell.strategy == OURS), None)
    rivals = [r for c, r in cells.items() if c.strategy not in (OURS, STALE, "oracle")]
    if ours is None or not rivals:
        return {}
    verdicts = []
    for rows in rivals:
        one, two, p = paired(ours, rows)
        verdicts.append(0.5 if p >= SIGNIFICANT else float(one > two))
    best = 0.0 if 0.0 in verdicts else 1.0 if min(verdicts) == 1.0 else 0.5
    margin = summary(ours)["success"] - max(summary(rows)["success"] for rows in rivals)
    return {name: best, f"{name}_margin": margin}


def _switch(scene: str, cells: Rows) -> dict[str, float]:
    """Ours at a switch over the synchronous chunk's own steps, p99 of both at d = 8."""
    ours = next((r for c, r in cells.items() if (c.strategy, c.delay) == (OURS, 8)), None)
    sync = next((r for c, r in cells.items() if (c.strategy, c.delay) == ("sync", 8)), None)
    if ours is None or sync is None:
        return {}
    ratio = _ratio(summary(ours)["switch_p99"], summary(sync)["within_p99"])
    return {} if ratio is None else {f"switch_over_sync_{scene}": ratio}


def _success_table(title: str, cells: Rows, column: Callable[[Cell], float | None]) -> Table:
    places = sorted({column(cell) or 0 for cell in cells})
    found = {(cell.strategy, column(cell) or 0): rows for cell, rows in cells.items()}
    table = Table(title=title, box=SIMPLE_HEAD)
    table.add_column("strategy")
    for place in places:
        table.add_column(f"{place:g}", justify="right")
    for strategy in dict.fromkeys(cell.strategy for cell in cells):
        texts = []
        for place in places:
            rows = found.get((strategy, place))
            if rows is None:
                texts.append("")
                continue
            f = summary(rows)
            text = f"{f['success']:.2f} ({f['lower']:.2f}-{f['upper']:.2f})"
            ours = found.get((OURS, place))
            if ours is not None and strategy not in (OURS, STALE):
                one, two, p = paired(ours, rows)
                text += (" <" if one > two else " >") if p < SIGNIFICANT else "  "
            texts.append(text)
        table.add_row(f"[bold]{strategy}[/bold]" if strategy == OURS else strategy, *texts)
    table.caption = f"95% intervals; < below {OURS} and > above it, paired sign test p < .05"
    return table


def _success_panel(scene: str, cells: Rows) -> Panel:
    lines: dict[str, list[tuple[float, float, float, float]]] = {}
    for cell, rows in cells.items():
        if cell.scene == scene and cell.delay is not None:
            f = summary(rows)
            point = (float(cell.delay), f["success"], f["lower"], f["upper"])
            lines.setdefault(cell.strategy, []).append(point)
    ordered = {name: sorted(points) for name, points in lines.items()}
    return Panel("delay [steps]", f"success, {scene}", ordered, share=True)


def _reactions_ms(rows: Sequence[dict]) -> list[float]:
    return [row["reaction_ns"] * 1e-6 for row in rows if row["reaction_ns"] is not None]


def _switches(rows: Sequence[dict]) -> list[float]:
    return [step for row in rows for step in row["switches"]]


def _ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
