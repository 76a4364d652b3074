"""The token cache and its controls, on the observations of closed loops: speed, reuse, error.

Every observation of a closed loop goes through every method, in an order drawn anew, so that ratios
are of one run. What is timed is all of encoding: inputs, choice of rows, gathering, vision, prefix.
The processor's time is beside the wall's, for machines that are shared.
Slack time, in which an idle server computes the last frame wholly, is not in it; methods marked
"no slack" are without. The error is that of the actions, against the same policy with all rows and
the same noise. Dense is the same code over all rows, with every gain that needs no cache.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks._token_cache_large import LargeTimes, measure_large, quantiles
from benchmarks._token_cache_methods import DRIVER, Measured, measure_policy
from benchmarks._token_cache_plots import draw_age, draw_speed, draw_worst
from benchmarks._token_cache_ttfa import Episode, bundled_ttfa, large_ttfa
from controller.types import Observation
from scripts.results import code_commit, write_results
from vla.cache.config import CacheConfig, CacheMode
from vla.cache.selector import WEIGHTS, load_selector
from vla.checkpoint import load_checkpoint

CONSOLE = Console()
PERIODS = 4  # policy periods between two observations of a closed loop
Row = dict[str, object]
LARGE = {
    "off": CacheConfig(),
    **{
        f"learned {name}": CacheConfig(CacheMode.LEARNED, share)
        for name, share in (("1/4", 0.25), ("1/2", 0.5), ("3/4", 0.75))
    },
}


@dataclass(frozen=True)
class Args:
    """The token cache and its controls, on the observations of closed loops.

    Attributes:
        policies: Bundled ones; all that have a selector by default.
        episodes: Episodes of each policy.
        first_seed: Of the first episode.
        large: Rounds of the larger build; 0 leaves it out.
        replies: Replies of each server; 0 leaves the time to the first action out.
        pause: Between two observations of a robot [s].
        out: Folder of the servers' logs, and of the pictures.
        pictures: Folder of the pictures; out by default.
        json: Result file to write.
    """

    policies: tuple[str, ...] = ()
    episodes: int = 6
    first_seed: int = 0
    large: int = 30
    replies: int = 60
    pause: float = 0.03
    out: Path = Path("out/token_cache")
    pictures: Path | None = None
    json: Path | None = None


def main(args: Args) -> None:
    commit = code_commit()
    torch.set_num_threads(1)
    policies = args.policies or tuple(sorted(p.stem for p in WEIGHTS.glob("*.safetensors")))
    folder = args.pictures or args.out
    figures: dict[str, float] = {}
    rows: list[Row] = []
    measured: dict[str, Measured] = {}
    for policy in policies:
        checkpoint, selector = load_checkpoint(Path(policy)), load_selector(Path(policy))
        done = measured[policy] = measure_policy(
            checkpoint, selector, args.episodes, args.first_seed
        )
        done.film.strip(folder / f"reuse_{policy}.png")
        period_s = checkpoint.meta.robot.period_ns * 1e-9
        done.film.write(args.out / f"reuse_{policy}.mp4", 1 / (PERIODS * period_s))
        found = policy_rows(policy, done)
        CONSOLE.print(_table(policy, found))
        rows += found
        figures |= policy_figures(policy, done)
        if args.replies:
            seen = recorded(done.observations, args.replies)
            clocks = bundled_ttfa(policy, checkpoint, seen, args.out, args.pause)
            rows += [_ttfa_row(policy, name, clock.first) for name, clock in clocks.items()]
            ratio = np.median(clocks["learned"].first) / np.median(clocks["off"].first)
            figures[f"ttfa_cache_over_has_{policy}"] = float(ratio)
    like = load_checkpoint(Path(policies[0]))
    if args.large:
        times = measure_large(like, LARGE, args.large)
        rows += [_large_row(name, found) for name, found in times.items()]
        off = float(np.median([t.encode_ms for t in times["off"]]))
        for name, figure in (("1/4", "large"), ("1/2", "large_half")):
            own = float(np.median([t.encode_ms for t in times[f"learned {name}"]]))
            figures[f"encode_speedup_p50_{figure}"] = off / own
        own = times["learned 1/4"]
        figures["selector_share_large"] = float(np.median([t.scoring_ms for t in own])) / off
        figures["choice_share_large"] = float(np.median([t.choice_ms for t in own])) / off
    if args.large and args.replies:
        # The slack of the larger build is a whole encoding.
        clocks = large_ttfa(policies[0], like, args.large, args.out, 10 * args.pause)
        rows += [_ttfa_row("large", name, clock.first) for name, clock in clocks.items()]
        ratio = np.median(clocks["learned"].first) / np.median(clocks["off"].first)
        figures["ttfa_cache_over_has"] = float(ratio)
    for name, value in figures.items():
        CONSOLE.print(f"{name} = {value:.3f}")
    draw_speed(folder / "speed.png", measured)
    draw_age(folder / "age.png", measured)
    draw_worst(folder / "worst.png", measured, ("learned", "pixel 1/4", "random 1/4"))
    CONSOLE.print(f"wrote pictures to {folder}, films to {args.out}")
    if args.json is not None:
        write_results(args.json, figures, rows, commit=commit)
        CONSOLE.print(f"wrote {args.json}")


def recorded(observations: list[tuple[Observation, str]], count: int) -> list[Episode]:
    """The first observations, by episodes."""
    episodes: list[Episode] = []
    for observation, prompt in observations[:count]:
        before = () if observation.step == 0 else episodes.pop().observations
        episodes.append(Episode(prompt, (*before, observation)))
    return episodes


def policy_rows(policy: str, done: Measured) -> list[Row]:
    """A row for each method, and for each floor."""
    off = float(np.median([r.encode_ms for r in done.replies["off"]]))
    rows: list[Row] = []
    for name, replies in done.replies.items():
        p50, p95, p99 = quantiles([r.encode_ms for r in replies])
        reasons = [r.figures.dense_reason for r in replies if r.figures.dense_reason]
        rows.append(
            {
                "policy": policy,
                "method": name,
                "observations": len(replies),
                "encode_p50_ms": p50,
                "encode_p95_ms": p95,
                "encode_p99_ms": p99,
                "speedup_p50": off / p50,
                "choice_p50_ms": float(np.median([r.choice_ms for r in replies])),
                "scoring_p50_ms": float(np.median([r.scoring_ms for r in replies])),
                "reused": float(np.mean([r.figures.reused for r in replies])),
                "max_age": max(r.figures.max_age for r in replies),
                **_errors([r.error for r in replies]),
                "dense": ", ".join(f"{r} {reasons.count(r)}" for r in sorted(set(reasons))),
            }
        )
    rows.sort(key=lambda row: str(row["method"]))
    return rows + [
        {"policy": policy, "method": f"floor: {n}", "observations": len(e), **_errors(e)}
        for n, e in done.floors.items()
    ]


def policy_figures(policy: str, done: Measured) -> dict[str, float]:
    """What the run was for."""

    def p50(name: str, field: str = "encode_ms") -> float:
        return float(np.median([getattr(r, field) for r in done.replies[name]]))

    learned = done.replies[DRIVER]
    return {
        f"encode_speedup_p50_{policy}": p50("off") / p50(DRIVER),
        f"encode_speedup_p50_{policy}_no_slack": p50("off") / p50("learned 1/4, no slack"),
        f"selector_share_{policy}": p50(DRIVER, "scoring_ms") / p50("off"),
        f"choice_share_{policy}": p50(DRIVER, "choice_ms") / p50("off"),
        f"reused_{policy}": float(np.mean([r.figures.reused for r in learned])),
        f"error_p99_{policy}": float(np.quantile([r.error for r in learned], 0.99)),
        f"error_max_{policy}": max(r.error for r in learned),
        f"session_kib_{policy}": done.session_bytes / 1024,
    }


def _errors(errors: list[float]) -> Row:
    p95, p99 = np.quantile(errors, [0.95, 0.99])
    return {
        "error_mean_rad": float(np.mean(errors)),
        "error_p95_rad": float(p95),
        "error_p99_rad": float(p99),
        "error_max_rad": max(errors),
    }


def _large_row(name: str, times: list[LargeTimes]) -> Row:
    p50, p95, p99 = quantiles([t.encode_ms for t in times])
    return {
        "policy": "large",
        "method": name,
        "observations": len(times),
        "encode_p50_ms": p50,
        "encode_p95_ms": p95,
        "encode_p99_ms": p99,
        "choice_p50_ms": float(np.median([t.choice_ms for t in times])),
        "scoring_p50_ms": float(np.median([t.scoring_ms for t in times])),
    }


def _ttfa_row(policy: str, name: str, times: list[float]) -> Row:
    p50, p95, p99 = quantiles(times)
    return {
        "policy": policy,
        "method": f"TTFA over gRPC, HAS, cache {name}",
        "observations": len(times),
        "ttfa_p50_ms": p50,
        "ttfa_p95_ms": p95,
        "ttfa_p99_ms": p99,
    }


def _table(policy: str, rows: list[Row]) -> Table:
    caption = "encode (ms), times faster than off, share reused, age, error of the actions (rad)"
    table = Table(title=policy, caption=caption)
    columns = {
        "method": "method",
        "encode_p50_ms": "p50",
        "speedup_p50": "faster",
        "reused": "reused",
        "max_age": "age",
        "error_p99_rad": "p99",
        "error_max_rad": "max",
    }
    for name, title in columns.items():
        table.add_column(title, justify="left" if name == "method" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(_cell(row.get(name)) for name in columns))
    return table


def _cell(value: object) -> str:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main(tyro.cli(Args))
