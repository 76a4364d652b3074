"""LeRobot's asynchronous policy server, unchanged, beside ours: the wire, and the first action.

Wire: two 480x640 frames and 14 joints up, 50 actions down, and a policy that costs nothing. Frames
travel as arrays on LeRobot's wire, which has nothing else. Ours takes them through shared memory
where both ends are on one machine, as here; "network" sends them as JPEG in the messages, as to
another machine. Round trips until the whole chunk is there. "scaled": a policy that takes 256x256
images, as lerobot/smolvla_base does. LeRobot's server scales the cameras' frames down to that when
it has them, ours has the robot do so (`fit_image`, in the round trip's time). Without it the policy
takes 480x640.

First action: a full-size SmolVLA with random weights, the same file and frames for both, ten expert
steps. With LeRobot it comes with the whole chunk; here with the horizon-aware schedule (HAS) after
one step. "static": only the state changes, so the image tower's output is kept.

Both in one run, in turn: what else the machine does meets both. LeRobot's two deviations favour it:
its wait that stretches inference to 33 ms is off for the wire, and its filter of similar
observations is passed by `must_go`.
"""

from __future__ import annotations

import os

# Before torch is imported, and for the servers, which inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console

from benchmarks.peers._asks import TASK, first_ms, link_to, observed, scenes
from benchmarks.peers._processes import lerobot_server, onset_server
from benchmarks.peers._robots import features, theirs
from benchmarks.peers._wire import wire, wire_figures
from scripts.results import code_commit, write_results

CONSOLE = Console()
JOINTS, CHUNK = 6, 50
WARM_UP = 2


@dataclass(frozen=True)
class Args:
    """LeRobot's asynchronous policy server beside ours.

    Attributes:
        wire_rounds: Round trips of each wire.
        rounds: Observations of each server with the full-size policy; 0 leaves that out.
        threads: Threads of each model.
        out: Folder of the policy (1.8 GB) and the servers' logs.
        json: Result file to write.
    """

    wire_rounds: int = 200
    rounds: int = 8
    threads: int = 2
    out: Path = Path("out/peers")
    json: Path | None = None


def main(args: Args) -> None:
    commit = code_commit()
    args.out.mkdir(parents=True, exist_ok=True)
    times, sizes, processor = wire(args.out, args.wire_rounds)
    if args.rounds:
        times |= first_action(args)
    rows: list[dict[str, object]] = [
        {"what": name, "p50_ms": _p(values, 50), "p99_ms": _p(values, 99), "n": len(values)}
        for name, values in times.items()
    ]
    rows += [{"what": name, "bytes": size} for name, size in sizes.items()]
    rows += [{"what": name, "processor_ms": spent} for name, spent in processor.items()]
    for row in rows:
        CONSOLE.print(row)
    figures = wire_figures(times, sizes)
    if args.rounds:
        peer = _p(times["first action LeRobot"], 50)
        figures["ttfa_ratio"] = _p(times["first action ours"], 50) / peer
        figures["ttfa_static_ratio"] = _p(times["first action ours, static"], 50) / peer
    for name, value in figures.items():
        CONSOLE.print(f"{name} = {value:.3f}")
    if args.json is not None:
        write_results(args.json, figures, rows, commit=commit)


def first_action(args: Args) -> dict[str, list[float]]:
    """Times to the first action [ms], of a full-size SmolVLA."""
    from benchmarks.peers._lerobot_client import LeRobotClient
    from benchmarks.peers._smolvla import write_smolvla

    path = write_smolvla(args.out)
    seen, times = scenes(), defaultdict(list)
    language = str(args.out / "language")
    with ExitStack() as stack:
        peer_at = stack.enter_context(lerobot_server(args.out))
        client = LeRobotClient(peer_at)
        stack.callback(client.close)
        client.load(str(path.resolve()), features(JOINTS), CHUNK)
        client.start()
        options = ["--language", language, "--threads", str(args.threads)]
        own = stack.enter_context(onset_server(args.out, str(path), *options, "--schedule", "has"))
        fresh, static = (stack.enter_context(link_to(own.address, JOINTS)) for _ in range(2))
        _, still = observed(0, seen, JOINTS)
        for number in range(args.rounds + WARM_UP):
            state, frames = observed(number, seen, JOINTS)
            took = {
                "first action LeRobot": client.ask(theirs(state, frames, TASK)),
                "first action ours": first_ms(fresh, number, state, frames),
                "first action ours, static": first_ms(static, number, state, still),
            }
            CONSOLE.print(number, {name: round(ms) for name, ms in took.items()})
            if number >= WARM_UP:
                for name, ms in took.items():
                    times[name].append(ms)
    return dict(times)


def _p(values: list[float], percent: float) -> float:
    return float(np.percentile(values, percent))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
