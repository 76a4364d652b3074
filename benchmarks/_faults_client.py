"""A client in a process of its own, which the fault matrix tells what to do, and may kill.

One command a line on its standard input:

    begin SEED      a new scene, and an episode in it
    take            an episode from where the arm is: after another client's death
    link KIND       good, lost, reordered, duplicated, nan or range
    quit

It says ``ready`` when it has attached to the arm, and ``done`` after each command. What it sent
and got is appended to a file, line by line, so that its death loses nothing.
"""

from __future__ import annotations

import json
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TextIO

import tyro

from benchmarks._faults_links import Corruption, CorruptLink, WaitingSwitchLink
from benchmarks._faulty_link import Faults, FaultyLink
from controller.client import GrpcLink
from controller.clock import MonotonicClock
from controller.errors import OnsetError
from controller.link import PolicyLink
from controller.loop_types import LoopConfig
from controller.record import Level
from controller.robot_client import RobotClient
from controller.runtime import Runtime
from controller.types import ActionSlice, Observation
from controller.watchdog import Mode
from sim.device import attach, make_cameras

_STOP_S = 5.0
MESSAGES = {
    "lost": Faults(lost=0.05),
    "reordered": Faults(reordered=0.2),
    "duplicated": Faults(duplicated=0.2),
}


@dataclass(frozen=True)
class Args:
    """A client that the fault matrix tells what to do.

    Attributes:
        runtime: Name of the executor's shared memory.
        device: Name of the simulated arm's.
        server: host:port of the policy.
        log: Where to append what was sent and what came.
        strategy: How chunks take over from each other.
        execute_steps: K, steps between observations.
    """

    runtime: str
    device: str
    server: str
    log: Path
    strategy: str = "naive"
    execute_steps: int = 4


class Log:
    """Observations and slices, one JSON a line."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._episodes: dict[int, int] = {}
        self.episode = -1

    def observation(self, observation: Observation) -> None:
        self._episodes[observation.id] = self.episode
        self._write({"o": observation.id, "e": self.episode, "t": observation.capture_ns})

    def slice(self, piece: ActionSlice) -> None:
        self._write(
            {
                "p": piece.observation_id,
                "e": self._episodes.get(piece.observation_id, -1),
                "s": piece.steps.tolist(),
                "a": piece.actions.tolist(),
            }
        )

    def _write(self, line: dict) -> None:
        print(json.dumps(line), file=self._file, flush=True)


class Worker:
    """The client, and what it is told."""

    def __init__(self, args: Args) -> None:
        self._args = args
        self._device = attach(args.device)
        self._runtime = Runtime.attach(args.runtime, self._device.spec)
        self._cameras = make_cameras({"segment": args.device})
        self._begun = False

    def run(self, commands: SimpleQueue[str]) -> None:
        """Does one command after the other; in between the client goes on.

        Raises:
            OnsetError: The link has ended for good.
        """
        command = commands.get()
        if command == "quit":
            return
        args, spec = self._args, self._device.spec
        prompt = self._place(command)
        link = self._link = GrpcLink(
            args.server,
            spec,
            robot_id=args.runtime,
            prompt=prompt,
            strategy=args.strategy,
            on_event=lambda event: self._client.note(Level.WARNING, str(event)),
            on_state=lambda status: self._client.note(Level.INFO, f"link: {status.state}"),
        )
        with args.log.open("a") as file:
            self._log = Log(file)
            self._switch = WaitingSwitchLink(link, self._log.observation, self._log.slice)
            self._client = RobotClient(
                spec,
                self._runtime,
                self._cameras,
                self._switch,
                LoopConfig(10_000_000, args.execute_steps, strategy=args.strategy),
                prompt,
                MonotonicClock(),
                reopens=lambda: link.stats.reopens,
            )
            with link:
                self._begin(command, prompt)
                while (command := self._drive(commands)) != "quit":
                    if command.startswith("link"):
                        self._switch.link = self._behind(command.split()[1])
                    else:
                        self._begin(command, self._place(command))

    def _drive(self, commands: SimpleQueue[str]) -> str:
        print("done", flush=True)
        error = self._client.run(lambda: not commands.empty())
        if error is not None:
            raise error
        return commands.get()

    def _place(self, command: str) -> str:
        """Sets the scene where that is asked for; returns the instruction."""
        if not command.startswith("begin"):
            return self._device.status().prompt
        self._runtime.stop()
        self._runtime.wait(Mode.HOLDING, _STOP_S)
        return self._device.reset(int(command.split()[1]))

    def _begin(self, command: str, prompt: str) -> None:
        self._log.episode = self._client.episode + 1
        placed = command.startswith("begin")
        self._client.begin(prompt, placed=placed, tell=self._begun)
        self._client.go()
        self._begun = True

    def _behind(self, kind: str) -> PolicyLink:
        link, seed = self._link, self._client.episode
        if kind in MESSAGES:
            return FaultyLink(link, MESSAGES[kind], seed)
        return link if kind == "good" else CorruptLink(link, Corruption(kind), seed)


def main(args: Args) -> None:
    commands: SimpleQueue[str] = SimpleQueue()
    worker = Worker(args)
    threading.Thread(target=_listen, args=(commands,), daemon=True).start()
    print("ready", flush=True)
    worker.run(commands)


def _listen(commands: SimpleQueue[str]) -> None:
    for line in sys.stdin:
        commands.put(line.strip())
    commands.put("quit")


if __name__ == "__main__":
    try:
        main(tyro.cli(Args))
    except OnsetError as error:
        raise SystemExit(f"error: {error}") from error
