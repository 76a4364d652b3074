"""Servers in processes of their own, for benchmarks/peers."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from scripts.results import ROOT

HERE = Path(__file__).parent
_READY = re.compile(r"^serving .* at (\S+:\d+)$")


@dataclass(frozen=True)
class Running:
    """A server in a process of its own.

    Attributes:
        address: ``host:port``.
        pid: Its process.
    """

    address: str
    pid: int


def spent_ms(*servers: Running) -> float:
    """Processor time of this process and of servers so far [ms]; 0 for them where no /proc is."""
    total = time.process_time() * 1e3
    for server in servers:
        # Nanoseconds of every thread; the process's own line counts in hundredths of a second.
        tasks = Path(f"/proc/{server.pid}/task")
        for task in tasks.iterdir() if tasks.is_dir() else ():
            with suppress(FileNotFoundError):  # a thread that has just ended
                total += int((task / "schedstat").read_text().split()[0]) * 1e-6
    return total


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


def script(out: Path, name: str, label: str, *options: str) -> AbstractContextManager[Running]:
    """A server of this folder; its log, named by the label, goes to ``out``."""
    log = (out / f"{label}.log").resolve()
    return _ready([str(HERE / name), *options], log, out.resolve())


def onset_server(out: Path, policy: str, *options: str) -> AbstractContextManager[Running]:
    """Our own command; its log goes to ``out``."""
    command = [str(ROOT / "scripts" / "serve.py"), "--policy", policy, "--port", "0", *options]
    return _ready(command, (out / "onset.log").resolve())


@contextmanager
def lerobot_server(out: Path) -> Iterator[str]:
    """LeRobot's own command; its log goes to ``out``. Gives its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["-m", "lerobot.async_inference.policy_server", "--host=127.0.0.1", f"--port={port}"]
    log = (out / "lerobot.log").resolve()
    # It makes a folder of logs where it is started.
    with _process(command, log, out.resolve()):
        yield f"127.0.0.1:{port}"
