"""Time to the first action: constant, horizon-aware and one-step schedules, side by side.

Three clocks, in process and over gRPC to a server process: TTFA (the first action is there), T_s
(the s actions to execute are), T_H (all are). The ideal is one prefix, one expert step and the
encoding of the messages.
"""

from __future__ import annotations

import os

# Before torch is imported: idle OpenMP threads spin, and the server shares these cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table

from controller.client import GrpcLink
from controller.client_session import LinkConfig
from controller.codec import (
    decode_client,
    decode_frames,
    decode_server,
    encode_client,
    encode_server,
)
from controller.types import ActionSlice, Observation
from scripts.local_server import LocalServer
from scripts.results import code_commit, write_results
from vla.checkpoint import Checkpoint, load_checkpoint
from vla.engine import Engine, Finished
from vla.schedule import SCHEDULES
from vla.serve.runner import blank_observation

CONSOLE = Console()
WARM_UP = 5  # replies that are not counted
CLOCKS = {"first": "TTFA", "executed": "T_s", "whole": "T_H"}


@dataclass(frozen=True)
class Args:
    """Time to the first action: constant, horizon-aware and one-step schedules, side by side.

    Attributes:
        policy: Name of a bundled policy, or path of a .safetensors file.
        replies: Observations per schedule.
        executed: s, actions executed of each chunk.
        out: Folder of the servers' logs.
        json: Result file to write.
    """

    policy: str = "whack"
    replies: int = 200
    executed: int = 4
    out: Path = Path("out/ttfa")
    json: Path | None = None


@dataclass
class Clocks:
    """Times of one schedule [ms], one entry a reply."""

    first: list[float] = field(default_factory=list)
    executed: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)

    def note(self, pieces: Iterable[ActionSlice | Finished], executed: int, began_ns: int) -> None:
        """Takes the times at which the pieces of one chunk come."""
        there: set[int] = set()
        executed_ms = now_ms = None
        for piece in pieces:
            now_ms = (time.perf_counter_ns() - began_ns) * 1e-6
            if not there:
                self.first.append(now_ms)
            there.update(piece.steps.tolist())
            # A chunk's first step is among its first finished ones, whatever the schedule.
            if executed_ms is None and there >= set(range(min(there), min(there) + executed)):
                executed_ms = now_ms
        if now_ms is None or executed_ms is None:
            raise RuntimeError(f"a chunk of {len(there)} actions; {executed} are to be executed")
        self.executed.append(executed_ms)
        self.whole.append(now_ms)


def main(args: Args) -> None:
    commit = code_commit()
    torch.set_num_threads(1)
    checkpoint = load_checkpoint(Path(args.policy))
    parts = measure_parts(checkpoint, args.replies)
    local = in_process(checkpoint, args)
    remote = over_grpc(checkpoint, args)

    rows = [_row("parts", name, times) for name, times in parts.items()]
    for where, clocks in (("in process", local), ("over gRPC", remote)):
        for schedule, clock in clocks.items():
            for name, label in CLOCKS.items():
                rows.append(_row(where, f"{schedule} {label}", getattr(clock, name)))
    steps = checkpoint.meta.expert_steps
    figures = make_figures(steps, parts, local, remote)
    table = Table(title=f"{args.policy}, {args.replies} replies, s = {args.executed}; times in ms")
    for name in ("where", "what", "p50", "p99"):
        table.add_column(name, justify="left" if name in ("where", "what") else "right")
    for row in rows:
        table.add_row(
            str(row["where"]), str(row["what"]), f"{row['p50_ms']:.2f}", f"{row['p99_ms']:.2f}"
        )
    CONSOLE.print(table)
    for name, value in figures.items():
        CONSOLE.print(f"{name} = {value:.3f}")
    if args.json is not None:
        write_results(args.json, figures, rows, commit=commit)
        CONSOLE.print(f"wrote {args.json}")


def measure_parts(checkpoint: Checkpoint, count: int) -> dict[str, list[float]]:
    """Times of a prefix, of an expert step, and of both sides' work on the messages [ms]."""
    engine = Engine(checkpoint)
    model, robot = checkpoint.model, checkpoint.meta.robot
    blank = blank_observation(robot)
    inputs = engine.inputs(blank, checkpoint.meta.prompts[0])
    actions = np.zeros((model.horizon, model.action_dim), np.float32)
    reply = ActionSlice(0, 0, np.arange(model.horizon), actions, True)

    def messages() -> None:
        up = encode_client(blank, robot)
        there = type(up).FromString(up.SerializeToString())
        decode_client(there, robot)
        decode_frames(there.observation, robot)
        down = encode_server(reply, robot)
        decode_server(type(down).FromString(down.SerializeToString()), robot)

    with torch.inference_mode():
        context = model.encode(inputs)
        x, tau = torch.randn(1, model.horizon, model.action_dim), torch.ones(1, model.horizon)
        return {
            "prefix": _timed(lambda: model.encode(inputs), count),
            "expert step": _timed(lambda: model.velocity(x, tau, context), count),
            "messages": _timed(messages, count),
        }


def in_process(checkpoint: Checkpoint, args: Args) -> dict[str, Clocks]:
    """The engines alone, in turn, so that a slow minute falls on every schedule."""
    engines = {name: Engine(checkpoint, schedule=name) for name in SCHEDULES}
    clocks = {name: Clocks() for name in SCHEDULES}
    prompt = checkpoint.meta.prompts[0]
    for observation in track(_observations(checkpoint, args), "in process", console=CONSOLE):
        for name, engine in engines.items():
            began = time.perf_counter_ns()
            clock = clocks[name] if observation.id >= WARM_UP else Clocks()
            clock.note(engine.stream(observation, prompt), args.executed, began)
    return clocks


def over_grpc(checkpoint: Checkpoint, args: Args) -> dict[str, Clocks]:
    """One server process after the other, as a robot's link sees it."""
    clocks = {name: Clocks() for name in SCHEDULES}
    meta = checkpoint.meta
    for name in SCHEDULES:
        log = args.out / f"server_{name}.log"
        with (
            LocalServer(args.policy, log, "--schedule", name) as server,
            GrpcLink(
                server.address,
                meta.robot,
                robot_id="ttfa",
                prompt=meta.prompts[0],
                config=LinkConfig(reply_deadline_s=5.0),
            ) as link,
        ):
            title = f"over gRPC, {name}"
            for observation in track(_observations(checkpoint, args), title, console=CONSOLE):
                began = time.perf_counter_ns()
                link.submit(observation)
                clock = clocks[name] if observation.id >= WARM_UP else Clocks()
                clock.note(_arriving(link), args.executed, began)
    return clocks


def _arriving(link: GrpcLink) -> Iterator[ActionSlice]:
    """The slices of one chunk as they come."""
    while True:
        for piece in link.poll(time.monotonic_ns()):
            yield piece
            if piece.final:
                return
        time.sleep(5e-5)


def _observations(checkpoint: Checkpoint, args: Args) -> list[Observation]:
    blank = blank_observation(checkpoint.meta.robot)
    numbers = range(args.replies + WARM_UP)
    return [replace(blank, id=number, step=number) for number in numbers]


def make_figures(
    steps: int,
    parts: dict[str, list[float]],
    local: dict[str, Clocks],
    remote: dict[str, Clocks],
) -> dict[str, float]:
    """Medians and their ratios."""
    prefix, step, messages = (float(np.median(parts[name])) for name in parts)
    constant, has = (float(np.median(remote[name].first)) for name in ("constant", "has"))
    ideal = (prefix + steps * step) / (prefix + step)
    whole = float(np.median(local["constant"].whole))
    return {
        "ttfa_over_ideal": has / (prefix + step + messages),
        "ttfa_constant_over_has": constant / has,
        "ttfa_ratio_over_ideal_ratio": constant / has / ideal,
        "sampler_overhead": (whole - prefix - steps * step) / (steps * step),
    }


def _timed(function: Callable[[], object], count: int) -> list[float]:
    times = []
    for number in range(count + WARM_UP):
        began = time.perf_counter_ns()
        function()
        if number >= WARM_UP:
            times.append((time.perf_counter_ns() - began) * 1e-6)
    return times


def _row(where: str, what: str, times: list[float]) -> dict[str, object]:
    low, high = np.quantile(times, [0.5, 0.99])
    return {"where": where, "what": what, "p50_ms": float(low), "p99_ms": float(high)}


if __name__ == "__main__":
    main(tyro.cli(Args))
