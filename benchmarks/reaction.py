"""Event to action, in wall-clock time through a real server: sync, naive and ours.

A mole comes up; some time later the arm is first driven by an action that knows of it, one whose
observation was taken after the event::

    event      observation        first action of its chunk
      |------------|-------------------------|
        0 .. K T            L or d T

T is the policy's period, K the steps between observations, L the time to the first actions and d
the steps after which a late chunk begins. The law: an event falls anywhere between two
observations, so the mean is half the time between them and then the latency. ``sync`` stands still
for L before each chunk, so its observations are K T + L apart.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from controller.client import GrpcLink
from controller.clock import MonotonicClock
from controller.errors import OnsetError
from controller.loop import ControlLoop
from controller.loop_types import TickResult
from controller.types import ActionSlice, Observation
from scripts.local_server import LocalServer
from scripts.results import code_commit, write_results
from sim.env import SimRobot
from sim.rollout import CONTROL_PERIOD_NS, drive, loop_config
from sim.tasks import make_task

CONSOLE = Console()
# Strategy, and the schedule it is served with.
RUNS = {"sync": "constant", "naive": "constant", "onset": "has"}
WARM_UP_NS = 1_000_000_000  # of an episode: the first replies do not count


@dataclass(frozen=True)
class Args:
    """Event to action, in wall-clock time through a real server: sync, naive and ours.

    Attributes:
        episodes: Episodes of whack per strategy, about eight seconds each.
        execute_steps: K, steps between observations.
        out: Folder of the servers' logs.
        json: Result file to write.
    """

    episodes: int = 12
    execute_steps: int = 8
    out: Path = Path("out/reaction")
    json: Path | None = None


@dataclass
class Watch:
    """A link and a tick's observer: when was what captured, answered and acted upon.

    Attributes:
        link: The link to the server.
        captured: By observation id [ns].
        first: Time to the first actions, by observation id [ns].
    """

    link: GrpcLink
    robot: SimRobot
    clock: MonotonicClock
    captured: dict[int, int] = field(default_factory=dict)
    first: dict[int, int] = field(default_factory=dict)
    reactions_ns: list[int] = field(default_factory=list)
    delays: list[int] = field(default_factory=list)
    _event_ns: int | None = None

    def submit(self, observation: Observation) -> None:
        self.link.submit(observation)
        self.captured[observation.id] = observation.capture_ns
        self.delays.append(observation.delay)

    def poll(self, now_ns: int) -> list[ActionSlice]:
        pieces = self.link.poll(now_ns)
        for piece in pieces:
            if piece.observation_id in self.captured:
                elapsed_ns = now_ns - self.captured[piece.observation_id]
                self.first.setdefault(piece.observation_id, elapsed_ns)
        return pieces

    def reset(self, episode: str, prompt: str) -> None:
        self.captured, self._event_ns = {}, None
        self.link.reset(episode, prompt)

    def begin(self, origin_ns: int) -> None:
        """A new episode, of which this is the first instant."""
        self._origin_ns = origin_ns
        self._seen_ns: int | None = None

    def see(self, result: TickResult) -> None:
        """Looks for new events, and for the action that first knows of one."""
        event = self.robot.task.event_ns()
        if event is not None and event != self._seen_ns:
            self._seen_ns = event
            self._event_ns = self._origin_ns + event if event > WARM_UP_NS else None
        captured = self.captured.get(result.observation_id)
        if self._event_ns is not None and captured is not None and captured >= self._event_ns:
            self.reactions_ns.append(self.clock.now_ns() - self._event_ns)
            self._event_ns = None


@dataclass(frozen=True)
class Measured:
    """One strategy.

    Attributes:
        reactions_ms: Event to action.
        first_ms: Time to the first actions.
        delay: Steps after which its chunks begin, the median.
    """

    reactions_ms: np.ndarray
    first_ms: np.ndarray
    delay: float


def main(args: Args) -> None:
    commit = code_commit()
    measured = {}
    with Progress(console=CONSOLE) as progress:
        for strategy, schedule in RUNS.items():
            bar = progress.add_task(f"{strategy} ({schedule})", total=args.episodes)
            log = args.out / f"{strategy}.log"
            with LocalServer("whack_delay", log, "--schedule", schedule) as server:
                measured[strategy] = run(
                    args, server.address, strategy, lambda b=bar: progress.advance(b)
                )
    period_ms = SimRobot(make_task("whack")).spec.period_ns * 1e-6
    rows = [row_of(args, name, found, period_ms) for name, found in measured.items()]
    CONSOLE.print(table_of(rows))
    if args.json is not None:
        figures = {}
        for name, row in zip(measured, rows, strict=True):
            mean, law = row["mean_ms"], row["law_ms"]
            figures |= {f"reaction_{name}_ms": mean, f"reaction_{name}_over_law": mean / law}
        write_results(args.json, figures, rows, commit=commit)
        CONSOLE.print(f"wrote {args.json}")


def run(args: Args, address: str, strategy: str, advance) -> Measured:
    """The episodes of one strategy over one session."""
    robot, clock = SimRobot(make_task("whack")), MonotonicClock()
    dict(robot.read().frames)  # frames are lazy: this makes the renderer, which outlasts a step
    prompt = robot.reset(0)
    config = loop_config(args.execute_steps, strategy=strategy, margin_ns=-CONTROL_PERIOD_NS)
    with GrpcLink(address, robot.spec, robot_id="bench", prompt=prompt, strategy=strategy) as link:
        watch = Watch(link, robot, clock)
        loop = ControlLoop(robot, watch, config, prompt)
        for seed in range(args.episodes):
            now = clock.now_ns()
            prompt = robot.reset(seed, now_ns=now)
            watch.begin(now)
            loop.reset(now, prompt, str(seed))
            drive(robot, loop, clock, seed, prompt, on_tick=watch.see)
            advance()
    robot.close()
    first = np.array(sorted(watch.first.values())) * 1e-6
    return Measured(np.array(watch.reactions_ns) * 1e-6, first, float(np.median(watch.delays)))


def row_of(args: Args, strategy: str, found: Measured, period_ms: float) -> dict[str, Any]:
    """Measured times beside the law's."""
    latency = float(np.median(found.first_ms))
    # What is late by less than its margin amends its step; else a late chunk begins at a step.
    acts_after = max(latency, found.delay * period_ms)
    apart = args.execute_steps * period_ms + (latency if strategy == "sync" else 0)
    p50, p99 = np.percentile(found.reactions_ms, [50, 99])
    return {
        "strategy": strategy,
        "schedule": RUNS[strategy],
        "events": len(found.reactions_ms),
        "first_actions_ms": latency,
        "delay_steps": found.delay,
        "mean_ms": float(found.reactions_ms.mean()),
        "p50_ms": float(p50),
        "p99_ms": float(p99),
        "law_ms": apart / 2 + acts_after,
        "law_most_ms": apart + acts_after,
    }


def table_of(rows: list[dict[str, Any]]) -> Table:
    names = {
        "strategy": "strategy",
        "schedule": "schedule",
        "events": "events",
        "first_actions_ms": "first actions [ms]",
        "delay_steps": "d [steps]",
        "mean_ms": "mean [ms]",
        "law_ms": "law",
        "p50_ms": "p50",
        "p99_ms": "p99",
        "law_most_ms": "law's most",
    }
    table = Table(title="event to the first action that knows of it", box=SIMPLE_HEAD)
    for label in names.values():
        table.add_column(label, justify="left" if label in ("strategy", "schedule") else "right")
    for row in rows:
        texts = [f"{v:.0f}" if isinstance(v, float) else str(v) for v in (row[n] for n in names)]
        table.add_row(*texts)
    return table


if __name__ == "__main__":
    try:
        main(tyro.cli(Args))
    except OnsetError as error:
        raise SystemExit(f"error: {error}") from error
