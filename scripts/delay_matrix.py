"""Every strategy under every delay, in virtual time through the real control loop.

One episode is decided by its seed, its cell and the policy; cells share their seeds. Rows are kept
as they come, so a run that was interrupted goes on where it was.
"""

from __future__ import annotations

import json
import multiprocessing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from controller.errors import ErrorCode, OnsetError
from controller.robot_file import load_robot
from controller.strategy import STRATEGIES
from scripts.delay_matrix_cells import OURS, SCENES, STALE, Cell, Job, quiet, run_job
from scripts.delay_matrix_report import Report
from scripts.evaluate_cases import recorded_times
from scripts.results import ROOT, code_commit, write_results
from vla.checkpoint import WEIGHTS

CONSOLE = Console()
DELAYS = (0, 1, 2, 4, 6, 8, 12)
QUICK_STRATEGIES = (STALE, "sync", "naive", "prefix", "forecast", OURS)
QUICK_EPISODES, QUICK_REACTIONS = 12, 4


@dataclass(frozen=True)
class Args:
    """Runs every strategy under every delay and writes one table, one JSON and the plots.

    Attributes:
        quick: About ten minutes on two cores: fewer strategies, delays and seeds.
        scenes: Scenes to run; all by default (see the table's first column).
        strategies: Strategies to run; all of controller/strategy.py, and "stale expert".
        delays: d, delays to inject [steps].
        jitters: Spreads of a log-normal factor on the delay, run at 4 and 8; 0 is always run.
        scales: Factors of recorded times to inject in place of a delay.
        speedups: Factors q by which chunks are sped up, run on pick_place at delays 0 and 4.
        episodes: Seeds 0 .. episodes-1 of each cell.
        reactions: Seeds of which event-to-motion is measured too.
        execute_steps: K, steps between observations, the same at every delay.
        limits: Robot file, or the name of a bundled one: every strategy moves within its limits
            of velocity, acceleration and jerk, as an executor does; None for straight to each
            action.
        times: Where the times of prefix and expert step are recorded.
        policies: Folder with a policy for each task, as TASK_delay.safetensors or, where there is
            none, TASK.safetensors; the bundled ones by default.
        workers: Processes.
        out: Folder of the rows; a run goes on from what it holds. The code's commit and the
            policies are part of every row's key.
        json: Result file to write.
        plots: Folder for the plots.
    """

    quick: bool = False
    scenes: tuple[str, ...] = ()
    strategies: tuple[str, ...] = ()
    delays: tuple[int, ...] = DELAYS
    jitters: tuple[float, ...] = (0.3,)
    scales: tuple[float, ...] = (1.0, 4.0, 8.0)
    speedups: tuple[int, ...] = (2,)
    episodes: int = 100
    reactions: int = 30
    execute_steps: int = 4
    limits: str | None = "so101-sim"
    times: Path = ROOT / "docs" / "results" / "times.json"
    policies: Path = WEIGHTS
    workers: int = 2
    out: Path = Path("out/delay_matrix")
    json: Path | None = None
    plots: Path = Path("out/delay_matrix")


def main(args: Args) -> None:
    commit = code_commit()
    if args.quick:
        few = min(args.episodes, QUICK_EPISODES), min(args.reactions, QUICK_REACTIONS)
        args = replace(args, episodes=few[0], reactions=few[1])
    cells = make_cells(args)
    times_ns = recorded_times(args.times)
    folder = args.out / commit
    folder.mkdir(parents=True, exist_ok=True)
    rows = {cell: _read(folder, cell) for cell in cells}
    scenes = {scene.name: scene for scene in SCENES}
    jobs = [
        Job(cell, scenes[cell.scene], seed, args.policies, times_ns, seed < args.reactions)
        for seed in range(args.episodes)
        for cell in cells
        if seed not in {row["seed"] for row in rows[cell]}
    ]
    _run(args, jobs, folder, rows)
    report = Report({c: [r for r in rows[c] if r["seed"] < args.episodes] for c in cells})
    for table in report.tables():
        CONSOLE.print(table)
    for path in report.plot(args.plots):
        CONSOLE.print(f"wrote {path}")
    if args.json is not None:
        write_results(args.json, report.figures(), report.rows(), commit=commit)
        CONSOLE.print(f"wrote {args.json}")


def _run(args: Args, jobs: list[Job], folder: Path, rows: dict[Cell, list[dict]]) -> None:
    """Runs what is missing; each row is on disk before the next one is waited for."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with (
        Progress(*columns, console=CONSOLE) as progress,
        multiprocessing.get_context("spawn").Pool(args.workers, initializer=quiet) as pool,
    ):
        bar = progress.add_task("episodes", total=len(jobs))
        for job, row in zip(jobs, pool.imap(run_job, jobs, chunksize=4), strict=True):
            with _file(folder, job.cell).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            rows[job.cell].append(row)
            progress.advance(bar)


def make_cells(args: Args) -> list[Cell]:
    """The cells of the command line.

    Raises:
        OnsetError: A scene or strategy is unknown, or there is no such robot file.
    """
    names = [scene.name for scene in SCENES]
    everything = (STALE, *STRATEGIES)
    scenes = _chosen("scenes", args.scenes, names) or names
    strategies = _chosen("strategies", args.strategies, everything) or everything
    delays = args.delays
    if args.quick:
        scenes = args.scenes or ["whack", "intercept", "conveyor", "pick_place"]
        strategies = args.strategies or QUICK_STRATEGIES
        delays = tuple(d for d in delays if d in (0, 4, 8))
    if args.limits is not None:
        load_robot(args.limits)  # here rather than in a worker: what is wrong is told once
    common: dict[str, Any] = {"execute_steps": args.execute_steps, "robot": args.limits}
    cells = [
        Cell(scene, strategy, delay, **common)
        for scene in scenes
        for delay in delays
        for strategy in strategies
    ]
    policies = [name for name in strategies if name != STALE]
    moving = [name for name in scenes if name != "pick_place"]
    if not args.quick:
        cells += [
            Cell(scene, name, delay, jitter=jitter, **common)
            for jitter in args.jitters
            for scene in moving
            for delay in (4, 8)
            for name in policies
        ]
    cells += [
        Cell(scene, name, None, scale, expert_steps=10, **common)
        for scale in ((8.0,) if args.quick else args.scales)
        for scene in moving
        for name in policies
        if name != "oracle"
    ]
    if "pick_place" in scenes:
        cells += [
            Cell("pick_place", name, delay, speedup=q, **common)
            for q in args.speedups
            for delay in (0, 4)
            for name in policies
            if name in ("sync", "naive", "forecast", OURS)
        ]
    return cells


def _chosen(field: str, given: tuple[str, ...], known) -> tuple[str, ...]:
    if unknown := sorted(set(given) - set(known)):
        raise OnsetError(ErrorCode.BAD_VALUE, field, unknown, list(known))
    return given


def _file(folder: Path, cell: Cell) -> Path:
    return folder / f"{cell.key}.jsonl"


def _read(folder: Path, cell: Cell) -> list[dict]:
    """The rows of a cell that are there already, each seed once."""
    path = _file(folder, cell)
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    kept = text[: text.rfind("\n") + 1]
    if kept != text:  # a line cut short by the end of a run is run again
        path.write_text(kept, encoding="utf-8")
    rows = [json.loads(line) for line in kept.splitlines()]
    return list({row["seed"]: row for row in rows}.values())


if __name__ == "__main__":
    try:
        main(tyro.cli(Args))
    except OnsetError as error:
        raise SystemExit(f"error: {error}") from error
