"""Lateness of the control loop's tick while a policy infers on the same cores.

whack in closed loop: the arm's physics and cameras in one process, the policy's server in another,
client and recorder in two more. What ticks is the executor, with the same code each time:

    process     one of its own, as ``controller/runtime.py`` starts it; with and without SCHED_FIFO
    thread      in the client's process, beside its planner
    beside      in the client's process, beside its planner and the policy itself

All is read from the recordings: how late a tick began, how long it took, how many were left out.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks._jitter_chart import draw, later
from benchmarks._jitter_variants import (
    VARIANTS,
    PolicyThread,
    Times,
    Variant,
    play,
    read_times,
    set_up,
    threaded,
)
from controller.client import GrpcLink
from controller.errors import OnsetError
from controller.runtime import Runtime
from scripts.local_server import LocalServer
from scripts.results import ROOT, code_commit, write_results
from sim.device import SimDevice

CONSOLE = Console()
TASK = "whack"


@dataclass(frozen=True)
class Args:
    """Lateness of the control loop's tick while a policy infers on the same cores.

    Attributes:
        seconds: Of each way to run the loop.
        execute_steps: K, steps between observations.
        out: Folder of recordings and logs.
        json: Result file to write.
        plot: Picture to write.
    """

    seconds: float = 60.0
    execute_steps: int = 4
    out: Path = Path("out/jitter")
    json: Path | None = None
    plot: Path = ROOT / "docs" / "control" / "jitter.png"


def main(args: Args) -> None:
    commit = code_commit()
    measured: dict[Variant, Times] = {}
    rows = []
    with Progress(console=CONSOLE) as progress:
        bar = progress.add_task("", total=len(VARIANTS))
        for variant in VARIANTS:
            progress.update(bar, description=variant.name)
            measured[variant] = measure(args, variant)
            rows.append(row_of(variant, measured[variant]))
            progress.advance(bar)
    CONSOLE.print(table_of(rows))
    for variant, times in measured.items():
        if times.said:
            CONSOLE.print(f"{variant.name}: {times.said}")
    curves = {
        v.name: later(t.late_ns, t.missed, 1_000_000_000 // v.hz) for v, t in measured.items()
    }
    draw(args.plot, curves, "lateness of the tick while a policy infers on the same two cores")
    CONSOLE.print(f"wrote {args.plot}")
    if args.json is not None:
        write_results(args.json, figures_of(rows), rows, commit=commit)
        CONSOLE.print(f"wrote {args.json}")


def measure(args: Args, variant: Variant) -> Times:
    """Runs one way for a while, and reads its recording."""
    with ExitStack() as stack:
        device = stack.enter_context(SimDevice(TASK))
        prompt = device.reset(0)
        if variant.inside:
            link = stack.enter_context(PolicyThread(_policy(), prompt))
        else:
            server = stack.enter_context(LocalServer(TASK, args.out / "server.log"))
            link = stack.enter_context(
                GrpcLink(server.address, device.spec, robot_id="bench", prompt=prompt)
            )
        setup = set_up(variant, device, args.out)
        with threaded(setup, args.out) if variant.thread else Runtime.start(setup) as runtime:
            path, said = runtime.recording_path, runtime.said()
            observations = play(
                device.spec, runtime, device, link, prompt, args.execute_steps, args.seconds
            )
        if path is None:
            raise SystemExit("there is no recording")
    return read_times(path, variant.hz, observations, said)


def _policy() -> Any:
    # Only here: no other way has a policy, and so torch, in the client's process.
    import torch

    from vla.checkpoint import load_checkpoint
    from vla.engine import Engine

    torch.set_num_threads(1)  # the server's default
    return Engine(load_checkpoint(ROOT / "vla" / "weights" / f"{TASK}.safetensors"))


def row_of(variant: Variant, times: Times) -> dict[str, Any]:
    """A way's figures."""
    late = np.quantile(times.late_ns, [0.5, 0.99, 0.999, 1]) * 1e-6
    busy = np.quantile(times.busy_ns, [0.5, 0.99, 0.999, 1]) * 1e-3
    return {
        "variant": variant.name,
        "hz": variant.hz,
        "fifo_priority": variant.priority,
        "ticks": len(times.late_ns),
        "missed": times.missed,
        "missed_fraction": times.missed_fraction,
        **{f"late_{q}_ms": float(v) for q, v in zip(QUANTILES, late, strict=True)},
        **{f"tick_{q}_us": float(v) for q, v in zip(QUANTILES, busy, strict=True)},
        "observations": times.observations,
        "said": times.said,
        "load_average": os.getloadavg()[0],
    }


QUANTILES = ("p50", "p99", "p999", "max")


def figures_of(rows: list[dict[str, Any]]) -> dict[str, float]:
    """What the run was for: our way at 200 Hz, and the threads beside it."""
    by_name = {row["variant"]: row for row in rows}
    ours, fast, _, thread, inside = (by_name[variant.name] for variant in VARIANTS)
    return {
        "late_p99_ms": ours["late_p99_ms"],
        "missed_fraction": ours["missed_fraction"],
        "tick_p99_us": ours["tick_p99_us"],
        "late_p99_500hz_ms": fast["late_p99_ms"],
        "missed_fraction_500hz": fast["missed_fraction"],
        "thread_late_p99_ms": thread["late_p99_ms"],
        "thread_missed_fraction": thread["missed_fraction"],
        "thread_policy_late_p99_ms": inside["late_p99_ms"],
        "thread_policy_missed_fraction": inside["missed_fraction"],
    }


def table_of(rows: list[dict[str, Any]]) -> Table:
    names = {
        "variant": "loop",
        "missed_fraction": "missed",
        "late_p50_ms": "late p50 ms",
        "late_p99_ms": "p99",
        "late_p999_ms": "p99.9",
        "late_max_ms": "max",
        "tick_p50_us": "tick p50 us",
        "tick_p99_us": "p99",
        "tick_p999_us": "p99.9",
    }
    table = Table(title="while a policy infers on the same cores", box=SIMPLE_HEAD)
    for name, label in names.items():
        table.add_column(label, justify="left" if name == "variant" else "right")
    for row in rows:
        texts = [row["variant"], f"{row['missed_fraction']:.2%}"]
        texts += [f"{row[name]:.2f}" for name in names if name.startswith("late")]
        texts += [f"{row[name]:.0f}" for name in names if name.startswith("tick")]
        table.add_row(*texts)
    return table


if __name__ == "__main__":
    try:
        main(tyro.cli(Args))
    except OnsetError as error:
        raise SystemExit(f"error: {error}") from error
