"""Time to the first action: constant, horizon-aware and one-step schedules, side by side.

Three clocks, in process and over gRPC to a server process: TTFA (the first action is there), T_s
(the s actions to execute are), T_H (all are). The ideal is one prefix, one expert step and the
encoding of the messages.

Robots ask a few times a second, and in between a processor's caches fill with other things: the
first prefix after a pause takes longer than the hundredth in a loop. So everything is measured in
the same rounds: each round takes every schedule, in process and over gRPC, and every part of the
ideal once, in an order drawn anew, and each after the same pause. The parts in loops of their own
are in the table as well ("tight loop"); no figure is made from them. The floor is the ideal with
the messages replaced by their round trip to the same server with an engine that answers at once.
"""

from __future__ import annotations

import os

# Before torch is imported: idle OpenMP threads spin, and the servers share these cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import random
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks._large_policy import large_checkpoint
from benchmarks._ttfa_chart import draw
from benchmarks._ttfa_clocks import Clocks, Parts, arriving, observation_of, timed_ms
from controller.client import GrpcLink
from controller.client_session import LinkConfig
from controller.errors import OnsetError
from scripts.local_server import SERVE, LocalServer
from scripts.results import code_commit, write_results
from vla.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from vla.engine import Engine
from vla.serve.runner import blank_observation

CONSOLE = Console()
NULL_SERVER = Path(__file__).with_name("_null_server.py")
SCHEDULES = ("constant", "has", "one_step")
PARTS = ("prefix", "expert step", "messages", "null round trip")
WARM_UP = 5  # rounds that are not counted
PAUSE_S = 0.005  # before each measurement
CLOCKS = {"first": "TTFA", "executed": "T_s", "whole": "T_H"}


@dataclass(frozen=True)
class Args:
    """Time to the first action: constant, horizon-aware and one-step schedules, side by side.

    Attributes:
        policy: Name of a bundled policy, or path of a .safetensors file.
        large: In its place a build of the size of the smaller published policies, for the same
            robot and with random weights: what the round trip is beside a model of that size.
        replies: Observations per schedule.
        executed: s, actions executed of each chunk.
        out: Folder of the chart and the servers' logs.
        json: Result file to write.
    """

    policy: str = "whack"
    large: bool = False
    replies: int = 200
    executed: int = 4
    out: Path = Path("out/ttfa")
    json: Path | None = None


@dataclass(frozen=True)
class Measured:
    """Everything that was measured in the rounds.

    Attributes:
        parts: Parts of the ideal, and the null round trip [ms].
        local: Times in process, by schedule.
        remote: Times over gRPC, by schedule.
    """

    parts: dict[str, list[float]]
    local: dict[str, Clocks]
    remote: dict[str, Clocks]

    @classmethod
    def nothing(cls, schedules: Sequence[str]) -> Measured:
        """With every name in its place: what is measured first is drawn anew each round."""
        parts = {name: [] for name in PARTS}
        local, remote = ({name: Clocks() for name in schedules} for _ in range(2))
        return cls(parts, local, remote)


def main(args: Args) -> None:
    commit = code_commit()
    torch.set_num_threads(1)
    if args.large:
        args = replace(args, policy=str(_large(args)))
    checkpoint = load_checkpoint(Path(args.policy))
    meta = checkpoint.meta
    for name in (name for name in SCHEDULES if name not in meta.schedules):
        CONSOLE.print(f"{name} is skipped: {meta.name} offers {list(meta.schedules)}")
    parts = Parts(checkpoint)
    tight, sampler = parts.tight_ms(args.replies), parts.sampler_ms(args.replies)
    measured = measure(checkpoint, parts, args)

    rows = [_row("parts", name, times) for name, times in measured.parts.items()]
    rows += [_row("tight loop", name, times) for name, times in (tight | sampler).items()]
    places = {"in process": measured.local, "over gRPC": measured.remote}
    for place, clocks in places.items():
        for schedule, clock in clocks.items():
            for name, label in CLOCKS.items():
                rows.append(_row(place, f"{schedule} {label}", getattr(clock, name)))
    figures = make_figures(meta.expert_steps, measured, sampler)
    title = f"{meta.name}, {args.replies} replies, s = {args.executed}"
    CONSOLE.print(_table(f"{title}; times in ms", rows))
    for name, value in figures.items():
        CONSOLE.print(f"{name} = {value:.3f}")
    draw(args.out / "ttfa.png", title, places)
    CONSOLE.print(f"wrote {args.out / 'ttfa.png'}")
    if args.json is not None:
        write_results(args.json, figures, rows, commit=commit)
        CONSOLE.print(f"wrote {args.json}")


def _large(args: Args) -> Path:
    """Writes the larger build where the servers can read it."""
    made = large_checkpoint(load_checkpoint(Path(args.policy)))
    path = args.out / "large.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(path, made.meta, made.model, made.normaliser)
    return path


def measure(checkpoint: Checkpoint, parts: Parts, args: Args) -> Measured:
    """Runs the rounds; see the module's docstring."""
    meta = checkpoint.meta
    names = [name for name in SCHEDULES if name in meta.schedules]
    engines = {name: Engine(checkpoint, schedule=name) for name in names}
    blank, prompt = blank_observation(meta.robot), meta.prompts[0]
    done = Measured.nothing(names)

    def model(into: Measured, number: int) -> None:
        for name, ms in zip(PARTS[:2], parts.model_ms(), strict=True):
            into.parts[name].append(ms)

    def messages(into: Measured, number: int) -> None:
        into.parts["messages"] += timed_ms(parts.messages, 1)

    def local(name: str, into: Measured, number: int) -> None:
        observation, began = observation_of(blank, number), time.perf_counter_ns()
        pieces = engines[name].stream(observation, prompt)
        into.local[name].note(pieces, args.executed, began)

    def remote(name: str, link: GrpcLink, into: Measured, number: int) -> None:
        observation, began = observation_of(blank, number), time.perf_counter_ns()
        link.submit(observation)
        into.remote[name].note(arriving(link), args.executed, began)

    def null(link: GrpcLink, into: Measured, number: int) -> None:
        observation, began = observation_of(blank, number), time.perf_counter_ns()
        link.submit(observation)
        for _ in arriving(link):
            into.parts["null round trip"].append((time.perf_counter_ns() - began) * 1e-6)

    with ExitStack() as stack:

        def link_to(name: str, script: Path, *options: str) -> GrpcLink:
            log = args.out / f"server_{name}.log"
            server = LocalServer(args.policy, log, *options, script=script)
            config = LinkConfig(reply_deadline_s=5.0)
            address = stack.enter_context(server).address
            link = GrpcLink(address, meta.robot, robot_id="ttfa", prompt=prompt, config=config)
            return stack.enter_context(link)

        jobs: list[Callable[[Measured, int], None]] = [model, messages]
        jobs += [partial(local, name) for name in names]
        jobs += [partial(remote, name, link_to(name, SERVE, "--schedule", name)) for name in names]
        jobs.append(partial(null, link_to("null", NULL_SERVER)))
        order = random.Random(0)
        for number in track(range(args.replies + WARM_UP), "rounds", console=CONSOLE):
            into = done if number >= WARM_UP else Measured.nothing(names)
            for job in order.sample(jobs, len(jobs)):
                time.sleep(PAUSE_S)
                job(into, number)
    return done


def make_figures(
    steps: int, measured: Measured, sampler: dict[str, list[float]]
) -> dict[str, float]:
    """Medians and their ratios."""
    part = {name: float(np.median(times)) for name, times in measured.parts.items()}
    prefix, step = part["prefix"], part["expert step"]
    constant, has = (float(np.median(measured.remote[n].first)) for n in ("constant", "has"))
    ratio = constant / has
    bare = np.array(sampler["bare expert"])
    return {
        "ttfa_over_ideal": has / (prefix + step + part["messages"]),
        "ttfa_over_floor": has / (prefix + step + part["null round trip"]),
        "ttfa_in_process_over_ideal": float(np.median(measured.local["has"].first))
        / (prefix + step),
        "ttfa_constant_over_has": ratio,
        "ttfa_ratio_over_ideal_ratio": ratio / ((prefix + steps * step) / (prefix + step)),
        "sampler_overhead": float(np.median(np.array(sampler["sampler"]) / bare)) - 1,
    }


def _table(title: str, rows: list[dict[str, object]]) -> Table:
    table = Table(title=title)
    for name in ("where", "what", "p50", "p99"):
        table.add_column(name, justify="left" if name in ("where", "what") else "right")
    for row in rows:
        table.add_row(
            str(row["where"]), str(row["what"]), f"{row['p50_ms']:.2f}", f"{row['p99_ms']:.2f}"
        )
    return table


def _row(where: str, what: str, times: list[float]) -> dict[str, object]:
    low, high = np.quantile(times, [0.5, 0.99])
    return {"where": where, "what": what, "p50_ms": float(low), "p99_ms": float(high)}


if __name__ == "__main__":
    try:
        main(tyro.cli(Args))
    except OnsetError as error:
        raise SystemExit(f"error: {error}") from error
