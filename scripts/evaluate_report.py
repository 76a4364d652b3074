"""Rows, figures, table and pictures of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from controller.types import CacheFigures
from scripts.evaluate_cases import Case, Variant
from sim.metrics import mean_interval, sign_test, wilson
from sim.plots import Panel, plot_panels
from sim.rollout import Episode

Row = dict[str, object]
Points = dict[str, list[tuple[float, float, float, float]]]


@dataclass(frozen=True)
class Outcome:
    """What came of one seed.

    Attributes:
        episode: The episode.
        motion_ns: Event-to-motion [ns]; None where it was not measured, or nothing moved.
        cache: What was computed anew for each observation; empty for who has no cache.
    """

    episode: Episode
    motion_ns: int | None = None
    cache: tuple[CacheFigures, ...] = ()


class Report:
    """The outcomes of all cases, each with its seeds in order."""

    def __init__(self, outcomes: Mapping[Case, Sequence[Outcome]]) -> None:
        """Args:
        outcomes: At least one case.
        """
        self._outcomes = outcomes
        self._variants = list(dict.fromkeys(case.variant for case in outcomes))
        # Steps are named only where a schedule has several.
        schedules = [n for n, _ in dict.fromkeys((v.schedule, v.steps) for v in self._variants)]
        self._several = {name for name in schedules if schedules.count(name) > 1}
        self.rows = [self._row(case) for case in outcomes]

    def _row(self, case: Case) -> Row:
        outcomes = self._outcomes[case]
        episodes = [outcome.episode for outcome in outcomes]
        wins = sum(e.success for e in episodes)
        low, high = wilson(wins, len(episodes))
        return {
            "who": case.who,
            "schedule": case.schedule,
            "steps": case.variant.steps if case.schedule else None,
            "cache": case.variant.cache if case.schedule else None,
            "delay": case.condition.delay,
            "scale": case.condition.scale,
            "execute_steps": case.cadence.execute_steps,
            "episodes": len(episodes),
            "success": wins / len(episodes),
            "low": low,
            "high": high,
            **self._paired(case),
            "score": float(np.mean([e.score for e in episodes])),
            "swapped": float(np.mean([e.swapped for e in episodes])),
            "length": float(np.mean([e.steps for e in episodes])),
            **_reuse([figures for outcome in outcomes for figures in outcome.cache]),
            "starved": float(np.mean([e.counters.starved for e in episodes])),
            **_motion([o.motion_ns * 1e-6 for o in outcomes if o.motion_ns is not None]),
        }

    def _paired(self, case: Case) -> Row:
        """How often this variant alone won, and the first alone; nothing for the first itself."""
        first = next((c for c in self._outcomes if _alike(c, case)), case)
        if case.who != "policy" or first is case:
            return {"only_this": None, "only_first": None, "p": None}
        pairs = [
            (mine.episode.success, theirs.episode.success)
            for mine, theirs in zip(self._outcomes[case], self._outcomes[first], strict=True)
        ]
        mine, theirs = pairs.count((True, False)), pairs.count((False, True))
        return {"only_this": mine, "only_first": theirs, "p": sign_test(mine, theirs)}

    def filled_rows(self) -> list[Row]:
        """The rows without the columns that are empty in all of them."""
        names = [n for n in self.rows[0] if any(row[n] is not None for row in self.rows)]
        return [{name: row[name] for name in names} for row in self.rows]

    def figures(self) -> dict[str, float]:
        """Figures by name; of another schedule than constant, its name is the suffix."""
        figures: dict[str, float] = {}
        for case, row in zip(self._outcomes, self.rows, strict=True):
            suffix, tail = _condition(case), self._suffix(case.variant)
            if case.who == "policy":
                figures[f"success{suffix}{tail}"] = _number(row, "success")
                if case.variant.cache != "off" and row["p"] is not None:
                    figures |= self._against_first(case, row, suffix + tail)
                if row["motion_ms"] is not None:
                    figures[f"motion_ms{suffix}{tail}"] = _number(row, "motion_ms")
            elif case.who == "expert":
                figures[f"expert_success{suffix}"] = _number(row, "success")
            elif case.who == "swap_instruction":
                figures["swapped_instruction_success"] = _number(row, "success")
                figures["swapped_instruction_other"] = _number(row, "swapped")
            else:
                figures[f"{case.who}_success"] = _number(row, "success")
        for variant in self._variants:
            figures |= self._ratios(figures, self._suffix(variant))
        return figures

    def _against_first(self, case: Case, row: Row, suffix: str) -> dict[str, float]:
        first = self.rows[[_alike(c, case) for c in self._outcomes].index(True)]
        difference = _number(row, "success") - _number(first, "success")
        return {
            f"success_difference{suffix}": difference,
            f"mcnemar_p{suffix}": _number(row, "p"),
            f"rows_computed{suffix}": _number(row, "rows_computed"),
        }

    def _ratios(self, figures: Mapping[str, float], tail: str) -> dict[str, float]:
        ratios, success = {}, figures.get(f"success{tail}")
        if success is None:
            return {}
        if figures.get("expert_success"):
            ratios[f"success_over_expert{tail}"] = success / figures["expert_success"]
        delays = dict.fromkeys(case.condition.delay for case in self._outcomes)
        for delay in delays:
            if delay and success:
                ratios[f"kept_at_d{delay}{tail}"] = figures[f"success_d{delay}{tail}"] / success
        return ratios

    def _suffix(self, variant: Variant) -> str:
        schedule = "" if variant.schedule == "constant" else f"_{variant.schedule}"
        if variant.cache != "off":
            schedule += f"_{variant.cache}"
        return schedule + (f"_n{variant.steps}" if variant.schedule in self._several else "")

    def _label(self, case: Case) -> str:
        if case.who == "policy" and len(self._variants) > 1:
            name, cache = case.variant.schedule, case.variant.cache
            name = f"{name}/{case.variant.steps}" if name in self._several else name
            return name if cache == "off" else f"{name} {cache}"
        return case.who

    def table(self, title: str) -> Table:
        """At most 80 columns."""
        motion = any(row["motion_ms"] is not None for row in self.rows)
        paired = len(self._variants) > 1
        caption = ["late: delay in steps, or x the scale of the recorded times"]
        if paired:
            caption.append("only: seeds that only this and only the first one won, and their p")
        if motion:
            caption.append("ms: event to motion, mean, 95% and p50/p99")
        else:
            caption.append("other: the thing that was not named was dealt with")
        table = Table(title=title, caption="\n".join(caption), box=SIMPLE_HEAD, padding=(0, 0))
        # Short names where there are many columns.
        names = ["who", "late", "K", *(("n", "won") if motion else ("seeds", "success")), "95%"]
        names += ["only", "p"] if paired else []
        names += ["ms", "95%", "p50/p99"] if motion else ["score", "other"]
        for name in names:
            table.add_column(name, justify="left" if name == "who" else "right", no_wrap=True)
        for label, late, row in self.labelled():
            cells = [label, late, str(row["execute_steps"])]
            cells += [str(row["episodes"]), f"{row['success']:.3f}"]
            cells.append(f"{row['low']:.2f}-{row['high']:.2f}")
            cells += _paired_cells(row) if paired else []
            cells += _motion_cells(row) if motion else _score_cells(row)
            table.add_row(*cells)
        return table

    def labelled(self) -> list[tuple[str, str, Row]]:
        """Each row with who it is of and how late the actions are, as the table says them."""
        return [
            (self._label(case), _late(case), row)
            for case, row in zip(self._outcomes, self.rows, strict=True)
        ]

    def plot(self, path: Path, title: str) -> None:
        """Success against expert steps; with recorded times, success and motion against scale."""
        if any(case.condition.scale is not None for case in self._outcomes):
            label = "scale of the recorded times"
            success, motion = self._lines("scale", "success"), self._lines("scale", "motion_ms")
            panels = [Panel(label, "success", success, share=True)]
            panels += [Panel(label, "event to motion [ms]", motion)] if motion else []
        else:
            lines = self._lines("steps", "success")
            panels = [Panel("expert steps (NFE)", "success", lines, share=True)]
        plot_panels(path, title, panels)

    def _lines(self, x: str, y: str) -> Points:
        low, high = ("low", "high") if y == "success" else ("motion_low", "motion_high")
        lines: Points = {}
        for case, row in zip(self._outcomes, self.rows, strict=True):
            if case.who not in ("policy", "expert") or row[x] is None or row[y] is None:
                continue
            name = case.schedule or case.who
            if x == "scale" and case.variant.schedule in self._several:
                name += f", {case.variant.steps} steps"
            if x == "steps" and case.condition.delay:
                name += f", delay {case.condition.delay}"
            point = (_number(row, x), _number(row, y), _number(row, low), _number(row, high))
            lines.setdefault(name, []).append(point)
        return {name: sorted(points) for name, points in lines.items()}


def _alike(one: Case, other: Case) -> bool:
    return (one.who, one.condition) == (other.who, other.condition)


def _motion(times_ms: Sequence[float]) -> Row:
    """Statistics of event-to-motion [ms]; an interval needs two times."""
    known = len(times_ms) >= 2
    mean, low, high = mean_interval(times_ms) if known else (None, None, None)
    middle, most = np.quantile(times_ms, [0.5, 0.99]).tolist() if known else (None, None)
    return {
        "motion_ms": mean,
        "motion_low": low,
        "motion_high": high,
        "motion_p50": middle,
        "motion_p99": most,
        "reacted": len(times_ms) if known else None,
    }


def _reuse(figures: Sequence[CacheFigures]) -> Row:
    """Share of the image tokens computed, their greatest age, and why all of them were."""
    if not figures:
        return {"rows_computed": None, "max_age": None, "dense": None, "dense_reasons": None}
    reasons = [f.dense_reason for f in figures if f.dense_reason]
    counts = {reason: reasons.count(reason) for reason in sorted(set(reasons))}
    return {
        "rows_computed": float(np.mean([1 - f.reused for f in figures])),
        "max_age": max(f.max_age for f in figures),
        "dense": len(reasons) / len(figures),
        "dense_reasons": ", ".join(f"{reason} {count}" for reason, count in counts.items()),
    }


def _number(row: Row, name: str) -> float:
    return float(row[name])  # type: ignore[arg-type]


def _condition(case: Case) -> str:
    condition = case.condition
    if condition.scale is not None:
        return f"_x{condition.scale:g}"
    return f"_d{condition.delay}" if condition.delay else ""


def _late(case: Case) -> str:
    scale = case.condition.scale
    return str(case.condition.delay) if scale is None else f"x{scale:g}"


def _paired_cells(row: Row) -> list[str]:
    if row["p"] is None:
        return ["", ""]
    return [f"+{row['only_this']} -{row['only_first']}", f"{row['p']:.1g}"]


def _score_cells(row: Row) -> list[str]:
    return [f"{row['score']:.3f}", f"{row['swapped']:.3f}"]


def _motion_cells(row: Row) -> list[str]:
    if row["motion_ms"] is None:
        return ["", "", ""]
    interval = f"{row['motion_low']:.0f}-{row['motion_high']:.0f}"
    quantiles = f"{row['motion_p50']:.0f}/{row['motion_p99']:.0f}"
    return [f"{row['motion_ms']:.0f}", interval, quantiles]
