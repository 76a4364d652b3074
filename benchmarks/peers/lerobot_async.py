"""LeRobot's asynchronous policy server, unchanged, beside ours: the wire, and the first action.

Wire: two 480x640 frames and 14 joints up, 50 actions down, and a policy that costs nothing; frames
travel as JPEG on our wire, as arrays on LeRobot's, which has nothing else. Round trips until the
whole chunk is there.

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

import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console

from benchmarks.peers._frames import Scene
from benchmarks.peers._robots import CAMERAS, features, ours, robot, theirs
from controller.client import GrpcLink
from controller.client_session import LinkConfig
from controller.types import Image
from scripts.results import ROOT, code_commit, write_results

CONSOLE = Console()
HERE = Path(__file__).parent
TASK = "pick the red cube"
JOINTS, WIRE_JOINTS, CHUNK = 6, 14, 50
WARM_UP = 2
_READY = re.compile(r"^serving .* at (\S+:\d+)$")


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


@dataclass(frozen=True)
class Running:
    """A server in a process of its own.

    Attributes:
        address: ``host:port``.
        pid: Its process.
    """

    address: str
    pid: int


def main(args: Args) -> None:
    commit = code_commit()
    args.out.mkdir(parents=True, exist_ok=True)
    times, sizes, processor = wire(args)
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
    figures = {
        "wire_time_ratio": _p(times["wire ours"], 50) / _p(times["wire LeRobot"], 50),
        "wire_bytes_ratio": sizes["bytes ours"] / sizes["bytes LeRobot"],
    }
    if args.rounds:
        peer = _p(times["first action LeRobot"], 50)
        figures["ttfa_ratio"] = _p(times["first action ours"], 50) / peer
        figures["ttfa_static_ratio"] = _p(times["first action ours, static"], 50) / peer
    for name, value in figures.items():
        CONSOLE.print(f"{name} = {value:.3f}")
    if args.json is not None:
        write_results(args.json, figures, rows, commit=commit)


def wire(args: Args) -> tuple[dict[str, list[float]], dict[str, float], dict[str, float]]:
    """Of a policy that costs nothing: round trips [ms], bytes both ways, and processor time [ms].

    The last is of client and server together, a round: what a busy machine does not change.
    """
    from benchmarks.peers._lerobot_client import LeRobotClient

    scenes, times, spent = _scenes(), defaultdict(list), defaultdict(float)
    shapes = json.dumps(features(WIRE_JOINTS))
    with ExitStack() as stack:
        peer = stack.enter_context(_script(args, "_null_lerobot_server.py", "--features", shapes))
        own = stack.enter_context(_script(args, "_null_onset_server.py"))
        client = LeRobotClient(peer.address)
        stack.callback(client.close)
        client.start()
        link = stack.enter_context(_link(own.address, WIRE_JOINTS))
        for number in range(args.wire_rounds + WARM_UP):
            state, frames = _observed(number, scenes, WIRE_JOINTS)
            before = _spent_ms(peer, own)
            peer_ms = client.ask(theirs(state, frames, TASK))
            between = _spent_ms(peer, own)
            our_ms = _whole(link, number, state, frames)
            after = _spent_ms(peer, own)
            if number >= WARM_UP:
                times["wire LeRobot"].append(peer_ms)
                times["wire ours"].append(our_ms)
                spent["wire LeRobot"] += (between - before) / args.wire_rounds
                spent["wire ours"] += (after - between) / args.wire_rounds
        count = args.wire_rounds + WARM_UP
        sizes = {
            "bytes LeRobot": (client.bytes_up + client.bytes_down) / count,
            "bytes LeRobot, up": client.bytes_up / count,
            "bytes ours": (link.stats.bytes_up + link.stats.bytes_down) / count,
            "bytes ours, up": link.stats.bytes_up / count,
        }
    return dict(times), sizes, dict(spent)


def first_action(args: Args) -> dict[str, list[float]]:
    """Times to the first action [ms], of a full-size SmolVLA."""
    from benchmarks.peers._lerobot_client import LeRobotClient
    from benchmarks.peers._smolvla import write_smolvla

    path = write_smolvla(args.out)
    scenes, times = _scenes(), defaultdict(list)
    language = str(args.out / "language")
    with ExitStack() as stack:
        peer_at = stack.enter_context(_lerobot_server(args))
        client = LeRobotClient(peer_at)
        stack.callback(client.close)
        client.load(str(path.resolve()), features(JOINTS), CHUNK)
        client.start()
        options = ["--language", language, "--threads", str(args.threads)]
        own = stack.enter_context(_serve(args, str(path), *options, "--schedule", "has"))
        fresh, static = (stack.enter_context(_link(own.address, JOINTS)) for _ in range(2))
        _, still = _observed(0, scenes, JOINTS)
        for number in range(args.rounds + WARM_UP):
            state, frames = _observed(number, scenes, JOINTS)
            took = {
                "first action LeRobot": client.ask(theirs(state, frames, TASK)),
                "first action ours": _first(fresh, number, state, frames),
                "first action ours, static": _first(static, number, state, still),
            }
            CONSOLE.print(number, {name: round(ms) for name, ms in took.items()})
            if number >= WARM_UP:
                for name, ms in took.items():
                    times[name].append(ms)
    return dict(times)


def _spent_ms(*servers: Running) -> float:
    """Processor time of this process and of servers so far [ms]; 0 for them where no /proc is."""
    total = time.process_time() * 1e3
    for server in servers:
        # Nanoseconds of every thread; the process's own line counts in hundredths of a second.
        tasks = Path(f"/proc/{server.pid}/task")
        for task in tasks.iterdir() if tasks.is_dir() else ():
            with suppress(FileNotFoundError):  # a thread that has just ended
                total += int((task / "schedstat").read_text().split()[0]) * 1e-6
    return total


def _scenes() -> dict[str, Scene]:
    return {name: Scene(seed) for seed, name in enumerate(CAMERAS)}


def _observed(
    number: int, scenes: dict[str, Scene], joints: int
) -> tuple[np.ndarray, dict[str, Image]]:
    state = np.sin(0.1 * number + np.arange(joints)).astype(np.float32)
    return state, {name: scene.frame(number) for name, scene in scenes.items()}


def _first(link: GrpcLink, number: int, state: np.ndarray, frames: dict[str, Image]) -> float:
    """Time to the first action [ms]; waits for the others before it returns."""
    began = time.perf_counter_ns()
    link.submit(ours(number, state, frames))
    took, final = 0.0, False
    while not final:
        link.wait(120.0)
        for piece in link.poll(0):
            took = took or (time.perf_counter_ns() - began) * 1e-6
            final = final or piece.final
    return took


def _whole(link: GrpcLink, number: int, state: np.ndarray, frames: dict[str, Image]) -> float:
    """Time to the whole chunk [ms]."""
    began = time.perf_counter_ns()
    _first(link, number, state, frames)
    return (time.perf_counter_ns() - began) * 1e-6


def _link(address: str, joints: int) -> GrpcLink:
    patient = LinkConfig(reply_deadline_s=120.0, open_timeout_s=120.0)
    spec = robot(joints)
    return GrpcLink(address, spec, robot_id="bench", prompt=TASK, config=patient)


@contextmanager
def _process(command: list[str], log: Path, folder: Path = ROOT) -> Iterator[subprocess.Popen]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}"}
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, *command],
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            env=environment,
            cwd=folder,
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def _ready(command: list[str], log: Path, folder: Path = ROOT) -> Iterator[Running]:
    """Starts a server; gives it once it says that it serves."""
    with _process(command, log, folder) as process:
        for line in process.stdout or ():
            if match := _READY.match(line.strip()):
                yield Running(match[1], process.pid)
                return
        raise RuntimeError(f"{command[0]} ended: {log.read_text()[-2000:]}")


def _script(args: Args, name: str, *options: str):
    log = (args.out / f"{name}.log").resolve()
    return _ready([str(HERE / name), *options], log, args.out.resolve())


def _serve(args: Args, policy: str, *options: str):
    command = [str(ROOT / "scripts" / "serve.py"), "--policy", policy, "--port", "0", *options]
    return _ready(command, (args.out / "onset.log").resolve())


@contextmanager
def _lerobot_server(args: Args) -> Iterator[str]:
    """LeRobot's own command."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["-m", "lerobot.async_inference.policy_server", "--host=127.0.0.1", f"--port={port}"]
    log = (args.out / "lerobot.log").resolve()
    # It makes a folder of logs where it is started.
    with _process(command, log, args.out.resolve()):
        yield f"127.0.0.1:{port}"


def _p(values: list[float], percent: float) -> float:
    return float(np.percentile(values, percent))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
