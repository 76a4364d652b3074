"""Everything between a policy and a simulated arm, each part in a process that can be killed.

::

    server ==gRPC== Proxy ==gRPC== client  --plan-->  executor --set-points--> device
    (scripts/serve.py)  (this process)                    |
                                                          +--records--> recorder
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from benchmarks._proxy import Proxy
from controller.exchange import layout, recording_name
from controller.recorder import Recording, read_recording, start_recorder
from controller.runtime import Runtime, RuntimeSetup
from controller.shared import Segment
from scripts.local_server import LocalServer
from sim.device import SimDevice

ROOT = Path(__file__).resolve().parents[1]
ROBOT = "so101-sim"
_STOP_S = 10.0


class Server(LocalServer):
    """A policy server that can be frozen and killed."""

    @property
    def pid(self) -> int:
        return self._process.pid

    def signal(self, number: int) -> None:
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        """SIGKILL; a frozen one as well."""
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


class Client:
    """A client in a process of its own, see ``_faults_client``."""

    def __init__(self, runtime: str, device: str, server: str, log: Path) -> None:
        command = [sys.executable, "-m", "benchmarks._faults_client", "--runtime", runtime]
        command += ["--device", device, "--server", server, "--log", str(log)]
        path = os.pathsep.join([str(ROOT), str(ROOT / "proto")])
        self._errors = log.with_suffix(".err").open("a+")
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path},
        )

    def ready(self) -> None:
        """Waits until it has attached to the arm."""
        self._hear("ready")

    def tell(self, command: str, *, wait: bool = True) -> None:
        """Gives a command, and waits until it is done."""
        if self._process.stdin is not None:
            print(command, file=self._process.stdin, flush=True)
        if wait:
            self._hear("done")

    def _hear(self, word: str) -> None:
        heard = "" if self._process.stdout is None else self._process.stdout.readline().strip()
        if heard != word:
            self._errors.seek(0)
            said = self._errors.read()[-2000:]
            raise RuntimeError(f"the client said {heard!r} instead of {word!r}: {said}")

    def kill(self) -> None:
        self._process.kill()
        self.close()

    def close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()


@dataclass
class Traffic:
    """What clients sent and got.

    Attributes:
        captured: When observations were taken [ns], by episode and id.
        sent: Actions that came, by episode, observation and step. Shape (A,) each.
    """

    captured: dict[tuple[int, int], int] = field(default_factory=dict)
    sent: dict[tuple[int, int, int], NDArray[np.float32]] = field(default_factory=dict)

    @staticmethod
    def read(log: Path) -> Traffic:
        """Reads a client's log; a line that its death cut is passed over."""
        traffic = Traffic()
        for line in log.read_text().splitlines():
            try:
                told = json.loads(line)
            except json.JSONDecodeError:
                continue
            if "o" in told:
                traffic.captured[told["e"], told["o"]] = told["t"]
                continue
            for step, action in zip(told["s"], told["a"], strict=True):
                key = (told["e"], told["p"], step)
                traffic.sent.setdefault(key, np.array(action, dtype=np.float32))
        return traffic


class World:
    """Server, proxy and device, for all faults; a context manager."""

    def __init__(self, policy: str, folder: Path) -> None:
        """Args:
        policy: Bundled policy, by the name of its task.
        folder: For logs and recordings.
        """
        self.policy, self.folder = policy, folder
        self._servers = 0
        self.standby: Server | None = None

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            self.server = self.new_server()
            stack.callback(self._end_servers)
            self.proxy = stack.enter_context(Proxy(self.server.address))
            self.device = stack.enter_context(SimDevice(self.policy))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _end_servers(self) -> None:
        for server in (self.server, self.standby):
            if server is not None:
                server.kill()

    def new_server(self) -> Server:
        """Starts another one; returns as soon as it listens."""
        self._servers += 1
        return Server(self.policy, self.folder / f"server-{self._servers}.log").__enter__()

    def take_over(self, server: Server) -> int:
        """Robots find this server from now on; returns when that began [ns]."""
        self.server = server
        return self.point_at(server)

    def point_at(self, server: Server) -> int:
        host, _, port = server.address.rpartition(":")
        now_ns = time.monotonic_ns()
        self.proxy.target = (host, int(port))
        return now_ns


class Rig:
    """Executor, recorder and client of one kind of fault.

    Attributes:
        log: What clients sent and got.
        recordings: Files, in order; more than one where a recorder was killed.
    """

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        folder = world.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        self._segment_name = f"fault-{secrets.token_hex(3)}"
        spec = world.device.spec
        # The recorder is started apart, since one of the faults is that it is killed.
        self._setup = RuntimeSetup(
            self._segment_name,
            spec,
            ROBOT,
            "sim.device:make_joints",
            {"segment": world.device.segment},
        )
        self._folder = folder
        self.log = folder / "client.jsonl"
        self.log.write_text("")
        self.recordings: list[Path] = []
        self.runtime = Runtime.start(self._setup)
        self._state = Segment.attach(self._segment_name, layout(spec))
        self.record()
        self.client = self.new_client()
        self.client.ready()

    def record(self) -> None:
        """Starts a recorder; it goes on where the one before it was done."""
        self._recorder, path = start_recorder(
            recording_name(self._segment_name), self._folder, self._setup.meta
        )
        self.recordings.append(path)

    def kill_recorder(self) -> None:
        self._recorder.kill()
        self._recorder.wait()

    def new_client(self) -> Client:
        world = self.world
        return Client(self._segment_name, world.device.segment, world.proxy.address, self.log)

    @property
    def newest_ns(self) -> int:
        """When the executor's newest tick was due [ns]."""
        return int(self.runtime.state()["time_ns"])

    def close(self) -> int:
        """Ends everything; returns the number of the executor's last tick."""
        self.client.close()
        self.runtime.close()
        record = self._state.latest("state").read()
        self._state.close()
        self._recorder.send_signal(signal.SIGTERM)
        self._recorder.wait()
        return -1 if record is None else int(record["tick"])

    def read(self) -> list[Recording]:
        """The recordings, once everything has ended."""
        return [read_recording(path) for path in self.recordings]


@contextmanager
def rig(world: World, name: str) -> Iterator[Rig]:
    """A rig that is closed also when something raises; closed once."""
    made = Rig(world, name)
    try:
        yield made
    except BaseException:
        made.close()
        raise
