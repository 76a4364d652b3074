"""The fault matrix in virtual time: client and executor in one thread, over shared memory.

::

    wavy policy --> DelayedLink --> faulty link --> RobotClient --plan--> ExecutorLoop --> joints
                                                                               |
                    time goes on by one control period per round               +--> records

The same objects as on a robot, but for the network and the arm; a run depends on its seed alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from random import Random

import numpy as np

from benchmarks._faults_check import new_starts
from benchmarks._faults_client import MESSAGES
from benchmarks._faults_judge import Run, Verdict
from benchmarks._faults_links import Corruption, CorruptLink, SwitchLink, WindowLink
from benchmarks._faults_stack import ROBOT, Traffic
from benchmarks._faulty_link import FaultyLink
from controller.clock import ManualClock
from controller.exchange import STOP_LAYOUT, layout, recording_name, stop_name
from controller.executor import Executor, ExecutorConfig
from controller.executor_loop import ExecutorLoop, LoopSettings
from controller.link import PolicyLink
from controller.loop_types import LoopConfig
from controller.record import Level, describe_run
from controller.recorder import record_layout
from controller.recorder_read import Event
from controller.robot_client import RobotClient
from controller.robot_file import RobotFile, load_robot
from controller.runtime import Runtime
from controller.shared import Segment
from controller.types import ActionSlice, Command, Float, Image, Observation, RobotSpec
from controller.watchdog import LadderConfig, Mode
from sim.delay import Compute, DelayedLink, whole

MS = 1_000_000
PERIOD_NS = 5 * MS
START_NS = 1000 * MS
HORIZON = 16  # steps of a chunk, 640 ms
LATENCY = Compute(30 * MS, 3 * MS)  # 60 ms with ten expert steps
SERVO_S = 0.05  # time constant of the joints
AFTER_NS = 1200 * MS  # from the end of a fault to the end of the run
JUMP_NS = 500 * MS


@dataclass(frozen=True)
class Virtual:
    """One kind of fault.

    Attributes:
        link: Makes the faulty link around the good one, for a beginning and an end [ns] and a seed.
        lasts_ns: How long it lasts [ns].
        holds: Whether the arm has to come to HOLDING.
        stalls: Whether the cameras stall.
        jumps: Whether the clock jumps forward.
    """

    link: Callable[[PolicyLink, int, int, int], PolicyLink] = lambda link, *_: link
    lasts_ns: int = 1500 * MS
    holds: bool = True
    stalls: bool = False
    jumps: bool = False


class _Window:
    """Good, but for a time, in which another link is in its place."""

    def __init__(self, good: PolicyLink, bad: PolicyLink, begin_ns: int, end_ns: int) -> None:
        self._good, self._bad = good, bad
        self._begin_ns, self._end_ns = begin_ns, end_ns

    def _at(self, now_ns: int) -> PolicyLink:
        return self._bad if self._begin_ns <= now_ns < self._end_ns else self._good

    def submit(self, observation: Observation) -> None:
        self._at(observation.capture_ns).submit(observation)

    def poll(self, now_ns: int) -> list[ActionSlice]:
        return self._at(now_ns).poll(now_ns)


def _messages(kind: str) -> Virtual:
    def link(good: PolicyLink, begin_ns: int, end_ns: int, seed: int) -> PolicyLink:
        return _Window(good, FaultyLink(good, MESSAGES[kind], seed), begin_ns, end_ns)

    return Virtual(link, 4000 * MS, holds=False)


def _corrupt(how: Corruption) -> Virtual:
    def link(good: PolicyLink, begin_ns: int, end_ns: int, seed: int) -> PolicyLink:
        return _Window(good, CorruptLink(good, how, seed), begin_ns, end_ns)

    return Virtual(link, 1000 * MS, holds=how is Corruption.NAN)


VIRTUAL: Mapping[str, Virtual] = {
    "virtual_server_frozen": Virtual(lambda g, b, e, s: WindowLink(g, "frozen", b, e)),
    "virtual_link_cut": Virtual(lambda g, b, e, s: WindowLink(g, "cut", b, e)),
    "virtual_link_delayed": Virtual(
        lambda g, b, e, s: WindowLink(g, "delayed", b, e, 200 * MS), 2000 * MS, holds=False
    ),
    "virtual_messages_lost": _messages("lost"),
    "virtual_messages_reordered": _messages("reordered"),
    "virtual_messages_duplicated": _messages("duplicated"),
    "virtual_actions_nan": _corrupt(Corruption.NAN),
    "virtual_actions_out_of_range": _corrupt(Corruption.RANGE),
    "virtual_camera_stalled": Virtual(stalls=True),
    "virtual_clock_jumped": Virtual(lasts_ns=JUMP_NS, holds=False, jumps=True),
}


class _Joints:
    """Joints that follow their set-points like a servo; a ``Joints``."""

    def __init__(self, spec: RobotSpec, start: np.ndarray) -> None:
        self.spec = spec
        self._at = start.astype(np.float64)
        self._speed = np.zeros_like(self._at)

    def connect(self) -> None: ...

    def close(self, *, release: bool = False) -> None: ...

    def read_state(self) -> Float:
        return np.concatenate([self._at, self._speed]).astype(np.float32)

    def write(self, command: Command) -> None:
        self._speed = (command.position - self._at) / SERVO_S
        self._at = self._at + self._speed * PERIOD_NS * 1e-9


class _Cameras:
    """Cameras that see nothing, and may stall; a ``Cameras``."""

    def __init__(self, spec: RobotSpec, clock: ManualClock) -> None:
        self.spec, self._clock = spec, clock
        self._frames = {c.name: np.zeros((c.height, c.width, 3), np.uint8) for c in spec.cameras}
        self._captured_ns, self.stalled = clock.now_ns(), False

    def connect(self) -> None: ...

    def close(self) -> None: ...

    def frames(self) -> tuple[int, Mapping[str, Image]]:
        if not self.stalled:
            self._captured_ns = self._clock.now_ns()
        return self._captured_ns, self._frames


@dataclass
class _Waves:
    """A policy: slow waves within the limits, with a scatter of each chunk and each action."""

    robot: RobotFile
    seed: int
    _draw: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self._draw = np.random.default_rng(self.seed)
        count = len(self.robot.spec.action)
        self._rates = self._draw.uniform(0.2, 0.7, count)  # [Hz]
        self._phases = self._draw.uniform(0, 2 * np.pi, count)

    def __call__(self, observation: Observation) -> Float:
        limits, t = self.robot.limits, self.robot.spec.period_ns * 1e-9
        steps = observation.step + np.arange(HORIZON)
        waves = np.sin(2 * np.pi * self._rates * steps[:, None] * t + self._phases)
        half = (limits.upper - limits.lower) / 2
        draw = np.random.default_rng((self.seed, observation.id))
        scatter = draw.normal(0, 0.02, (1, len(half))) + draw.normal(0, 0.005, waves.shape)
        middle = (limits.upper + limits.lower) / 2
        return (middle + half * (0.5 * waves + scatter)).astype(np.float32)


@dataclass(frozen=True)
class Trial:
    """One run in virtual time.

    Attributes:
        run: When what happened.
        records: Every tick.
        events: Those of the executor.
        traffic: What the client sent and got.
    """

    run: Run
    records: np.ndarray
    events: tuple[Event, ...]
    traffic: Traffic


def run_virtual(name: str, seeds: Iterable[int], on_run: Callable[[], None]) -> Verdict:
    """Runs a fault once for each seed."""
    robot, fault = load_robot(ROBOT), VIRTUAL[name]
    verdict = Verdict(name.removeprefix("virtual_"), "virtual", fault.holds)
    for seed in seeds:
        trial = try_once(robot, fault, seed)
        starts = new_starts(trial.records, trial.events)
        verdict.take(
            [trial.run], trial.records, starts, trial.traffic, robot.limits, PERIOD_NS,
            robot.spec.period_ns,
        )  # fmt: skip
        on_run()
    return verdict


def try_once(robot: RobotFile, fault: Virtual, seed: int) -> Trial:
    """One run: a second of motion, the fault, and what comes after it."""
    spec, random = robot.spec, Random(seed)
    fault_ns = START_NS + random.randrange(800 * MS, 1400 * MS)
    return_ns = fault_ns + fault.lasts_ns
    name = f"virtual-{os.getpid()}"
    clock, traffic = ManualClock(START_NS), Traffic()
    policy = DelayedLink(whole(_Waves(robot, seed), 10), LATENCY, seed)
    faulty = fault.link(policy, fault_ns, return_ns, seed)
    meta = describe_run(spec, PERIOD_NS, START_NS)
    with (
        Segment.create(name, layout(spec)) as segment,
        Segment.create(recording_name(name), record_layout(meta)) as recording,
        Segment.create(stop_name(name), STOP_LAYOUT) as stops,
    ):
        records, events = (recording.ring(ring).reader() for ring in ("records", "events"))
        executor = Executor(spec, robot.limits, ExecutorConfig(PERIOD_NS, LadderConfig()))
        loop = ExecutorLoop(
            segment, recording, stops, _Joints(spec, robot.home), executor, robot.limits,
            LoopSettings(PERIOD_NS, orphan_ns=None), None, clock,
        )  # fmt: skip
        loop.start(START_NS)
        cameras = _Cameras(spec, clock)

        def on_observation(observation: Observation) -> None:
            traffic.captured[client.episode, observation.id] = observation.capture_ns

        def on_slice(piece: ActionSlice) -> None:
            for step, action in zip(piece.steps.tolist(), piece.actions, strict=True):
                traffic.sent.setdefault((client.episode, piece.observation_id, step), action)

        def reopens() -> int:
            return faulty.reopened(clock.now_ns()) if isinstance(faulty, WindowLink) else 0

        client = RobotClient(
            spec, Runtime(segment, recording, stops, spec), cameras,
            SwitchLink(faulty, on_observation, on_slice), LoopConfig(10 * MS, 4), "go", clock,
            reopens=reopens,
        )  # fmt: skip
        client.begin("go", tell=False)
        jumps, missed = fault.jumps, 0
        while (now_ns := clock.now_ns()) < return_ns + AFTER_NS:
            cameras.stalled = fault.stalls and fault_ns <= now_ns < return_ns
            early = random.random() < 0.5  # neither process waits for the other
            if early:
                client.step()
            loop.tick(now_ns, 0, missed)
            if not early:
                client.step()
            missed = 0
            if jumps and now_ns >= fault_ns:
                jumps, missed = False, JUMP_NS // PERIOD_NS
                clock.sleep_until_ns(now_ns + JUMP_NS)
            clock.sleep_until_ns(clock.now_ns() + PERIOD_NS)
        read = records.read_all()[0]
        told = tuple(
            Event(int(row["time_ns"]), Level(int(row["level"])), row["text"].decode())
            for row in events.read_all()[0]
        )
    if fault.jumps:
        # In the jump no time has passed in which the arm could have done anything.
        read["time_ns"] -= np.where(read["time_ns"] >= return_ns, JUMP_NS, 0)
        for key, at_ns in traffic.captured.items():
            traffic.captured[key] = at_ns - (JUMP_NS if at_ns >= return_ns else 0)
        return_ns -= JUMP_NS
    end_ns = int(read["time_ns"][-1])
    run = Run(fault_ns, return_ns, end_ns, Mode(int(read["mode"][-1])))
    return Trial(run, read, told, traffic)
