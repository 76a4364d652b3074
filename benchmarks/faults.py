"""What an arm does when server, link, camera, client or recorder fail: in wall-clock time, each
part in a process of its own, and in virtual time.

Every run is judged by its recording alone, see ``_faults_check``: limits kept (finite differences
of the commands), HOLDING within 250 ms of the last action's step, acting on something new within
1 s of the server's return, nothing executed twice or at a step it was not sent for, at most the
last 100 ms of the recording lost.

The server is ``scripts/serve.py`` with a bundled policy, behind a TCP proxy. Where it is killed,
another one is started from nothing at another port, to which the proxy leads from the moment at
which it listens: to the client it is the same address. A killed client's successor has been
started before, so that imports are not counted.

There is no wall-clock run with a jump of the clock: the robot's clock is CLOCK_MONOTONIC, which
setting the time does not move. In virtual time it jumps; the jump is taken off all durations.
"""

from __future__ import annotations

import os

# Before torch is imported by the servers: idle OpenMP threads spin, and all share these cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn
from rich.table import Table

from benchmarks._faults_judge import Verdict, figures
from benchmarks._faults_kinds import FAULTS
from benchmarks._faults_stack import World
from benchmarks._faults_virtual import VIRTUAL, run_virtual
from benchmarks._faults_wall import Outcome, run_fault
from controller.errors import OnsetError
from scripts.results import code_commit, write_results
from sim.plot_recording import plot_recording

CONSOLE = Console()
PLOTTED = {
    "server_frozen": "the policy server is frozen by SIGSTOP",
    "link_cut": "the link to the policy server is cut",
    "actions_nan": "the policy's actions are not finite",
}
QUICK = 2
_BEFORE_S = 0.5  # shown before a fault


@dataclass(frozen=True)
class Args:
    """Scripted faults in wall-clock and in virtual time; every run is judged by its recording.

    Attributes:
        runs: Runs per fault.
        only: Just these faults, by name; virtual ones begin with ``virtual_``.
        quick: Two runs per fault.
        policy: Bundled policy, by its task.
        seed: Of scenes and times.
        out: Folder of recordings and logs.
        plot: Folder for pictures of a frozen server, a cut link and NaN actions.
        json: Result file to write.
    """

    runs: int = 20
    only: tuple[str, ...] = ()
    quick: bool = False
    policy: str = "whack"
    seed: int = 0
    out: Path = Path("out/faults")
    plot: Path | None = None
    json: Path | None = None


def main(args: Args) -> None:
    commit, began, load = code_commit(), time.monotonic(), os.getloadavg()[0]
    runs = QUICK if args.quick else args.runs
    names = [fault.name for fault in FAULTS] + list(VIRTUAL)
    if unknown := sorted(set(args.only) - set(names)):
        raise SystemExit(f"error: only: {unknown} instead of {names}")
    chosen = [name for name in names if name in (args.only or names)]
    verdicts: list[Verdict] = []
    broken: Exception | None = None
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=CONSOLE) as progress:
        bar = progress.add_task("faults", total=runs * len(chosen))

        def on_run() -> None:
            progress.advance(bar)

        for name in (name for name in VIRTUAL if name in chosen):
            progress.update(bar, description=name)
            verdicts.append(run_virtual(name, range(args.seed, args.seed + runs), on_run))
        if any(fault.name in chosen for fault in FAULTS):
            progress.update(bar, description="server and arm start")
            try:
                with World(args.policy, args.out / f"{time.time_ns()}") as world:
                    for fault in (fault for fault in FAULTS if fault.name in chosen):
                        progress.update(bar, description=fault.name)
                        outcome = run_fault(world, fault, runs, args.seed, on_run)
                        verdicts.append(outcome.verdict)
                        if args.plot is not None and fault.name in PLOTTED:
                            plot(args.plot / f"{fault.name}.png", outcome, PLOTTED[fault.name])
            except (RuntimeError, OnsetError) as error:
                broken = error  # what was measured before is worth telling
    report(args, verdicts, commit)
    loads = f"{load:.1f} at the start, {os.getloadavg()[0]:.1f} at the end"
    CONSOLE.print(f"{(time.monotonic() - began) / 60:.1f} min; load {loads}")
    if broken is not None:
        raise broken


def report(args: Args, verdicts: list[Verdict], commit: str) -> None:
    CONSOLE.print(table_of(verdicts))
    found = figures(verdicts)
    for name, value in found.items():
        CONSOLE.print(f"{name} = {value:.6g}")
    for verdict in verdicts:
        if verdict.failures:
            CONSOLE.print(f"{verdict.name}: {'; '.join(verdict.failures)}", style="red")
    if args.json is not None:
        rows = [verdict.row() for verdict in verdicts]
        write_results(args.json, found, rows, commit=commit)
        CONSOLE.print(f"wrote {args.json}")


def plot(path: Path, outcome: Outcome, title: str) -> None:
    """A picture of the run in which the arm was fastest when the fault began."""
    recording = outcome.recordings[0]
    records = recording.records
    speeds = [_speed_near(records, run.fault_ns) for run in outcome.runs]
    run = outcome.runs[int(np.argmax(speeds))]
    origin_ns = int(records["time_ns"][0])
    fault_s, return_s, end_s = (
        (at - origin_ns) * 1e-9 for at in (run.fault_ns, run.return_ns, run.end_ns)
    )
    plot_recording(
        path,
        recording,
        f"{title} for {return_s - fault_s:.1f} s",
        window_s=(fault_s - _BEFORE_S, end_s),
        marks=((fault_s, "fault"), (return_s, "over")),
    )
    CONSOLE.print(f"wrote {path}")


def _speed_near(records: np.ndarray, now_ns: int) -> float:
    """Greatest joint speed in the chunk that is played out from then on [rad/s]."""
    times = records["time_ns"]
    part = records["velocity"][(times > now_ns) & (times < now_ns + 1_300_000_000)]
    return float(np.abs(part).max(initial=0.0))


def table_of(verdicts: list[Verdict]) -> Table:
    """Hold and resume are p50/max; ``over`` counts values outside the limits."""
    table = Table(
        title="limits kept, held in 250 ms, resumed in 1 s, nothing twice, 100 ms lost",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    names = ("fault", "held", "hold ms", "resume s", "over", "twice", "lost", "")
    for name in names:
        table.add_column(name, justify="left" if name in ("fault", "") else "right", no_wrap=True)
    for verdict in verdicts:
        row = verdict.row()
        table.add_row(
            "virtual " * (verdict.clock == "virtual") + verdict.name.replace("_", " "),
            f"{verdict.held}/{verdict.runs}",
            _times(row, "hold_ms", ".0f"),
            _times(row, "resume_s", ".2f"),
            str(verdict.violations),
            str(verdict.twice + verdict.misplaced),
            f"{verdict.lost_ms:.0f}",
            "[red]failed[/]" if verdict.failures else "[green]ok[/]",
        )
    return table


def _times(row: dict[str, Any], name: str, form: str) -> str:
    values = (row[f"{name}_p50"], row[f"{name}_max"])
    return "/".join(format(v, form) for v in values if v is not None)


if __name__ == "__main__":
    try:
        main(tyro.cli(Args))
    except OnsetError as error:
        raise SystemExit(f"error: {error}") from error
