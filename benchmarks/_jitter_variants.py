"""The ways to run a control loop that benchmarks/jitter.py compares."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from controller.clock import MonotonicClock
from controller.exchange import STOP_LAYOUT, layout, recording_name, stop_name
from controller.executor import Executor, ExecutorConfig
from controller.executor_loop import ExecutorLoop, LoopSettings
from controller.executor_process import run
from controller.link import PolicyLink
from controller.recorder import read_recording, record_layout, start_recorder
from controller.robot_client import RobotClient
from controller.robot_file import load_robot
from controller.runtime import Runtime, RuntimeSetup
from controller.shared import Segment
from controller.types import ActionSlice, Float, Observation, RobotSpec
from sim.device import SimDevice, make_cameras, make_joints
from sim.rollout import loop_config


@dataclass(frozen=True)
class Variant:
    """One way.

    Attributes:
        name: In tables and pictures.
        hz: Set-points per second.
        thread: Whether the loop is a thread of the client; else a process of its own.
        inside: Whether the policy is in the client's process, too; else behind a server.
        priority: Of SCHED_FIFO, for a process; 0 for none.
    """

    name: str
    hz: int = 200
    thread: bool = False
    inside: bool = False
    priority: int = 0


VARIANTS = (
    Variant("process, SCHED_FIFO", priority=60),
    Variant("process, SCHED_FIFO, 500 Hz", hz=500, priority=60),
    Variant("process, no priority"),
    Variant("thread of the client", thread=True),
    Variant("thread beside the policy", thread=True, inside=True),
)


@dataclass(frozen=True)
class Times:
    """What the recording of a run says of its ticks.

    Attributes:
        late_ns: How late each began. Shape (n,).
        busy_ns: How long each took. Shape (n,).
        missed: Ticks left out [count].
        observations: That the policy answered or was answering [count].
        said: What the executor said of its priority and memory.
    """

    late_ns: NDArray[np.int64]
    busy_ns: NDArray[np.int64]
    missed: int
    observations: int
    said: str

    @property
    def missed_fraction(self) -> float:
        """Ticks left out, of all that were due."""
        return self.missed / (len(self.late_ns) + self.missed)


class Finished(Protocol):
    """What an engine yields."""

    @property
    def start_step(self) -> int: ...

    @property
    def steps(self) -> NDArray[np.int64]: ...

    @property
    def actions(self) -> Float: ...

    @property
    def final(self) -> bool: ...


class Infer(Protocol):
    """A policy in process: observation and prompt in, actions as they ripen out."""

    def stream(self, observation: Observation, prompt: str) -> Iterator[Finished]: ...


class PolicyThread:
    """A policy in a thread of the client's process, as a link. Use as a context manager."""

    def __init__(self, policy: Infer, prompt: str) -> None:
        self._policy, self._prompt = policy, prompt
        self._newest: Observation | None = None
        self._slices: deque[ActionSlice] = deque()
        self._asked, self._answered = threading.Event(), threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._work, daemon=True)

    def submit(self, observation: Observation) -> None:
        self._newest = observation
        self._asked.set()

    def poll(self, now_ns: int) -> list[ActionSlice]:
        self._answered.clear()
        return [self._slices.popleft() for _ in range(len(self._slices))]

    def wait(self, timeout_s: float) -> None:
        self._answered.wait(timeout_s)

    def reset(self, episode: str, prompt: str) -> None:
        self._newest, self._prompt = None, prompt
        self._slices.clear()

    def _work(self) -> None:
        while self._asked.wait() and not self._ended:
            self._asked.clear()
            observation, self._newest = self._newest, None
            if observation is None:
                continue
            for piece in self._policy.stream(observation, self._prompt):
                self._slices.append(
                    ActionSlice(
                        observation_id=observation.id,
                        start_step=piece.start_step,
                        steps=piece.steps,
                        actions=piece.actions,
                        final=piece.final,
                    )
                )
                self._answered.set()

    def __enter__(self) -> PolicyThread:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._asked.set()
        self._thread.join()


def set_up(variant: Variant, device: SimDevice, recordings: Path) -> RuntimeSetup:
    """How the executor of a variant is started."""
    return RuntimeSetup(
        "jitter",
        device.spec,
        "so101-sim",
        "sim.device:make_joints",
        {"segment": device.segment},
        control_hz=variant.hz,
        recordings=recordings,
        executor=("--realtime.priority", str(variant.priority)),
    )


@contextmanager
def threaded(setup: RuntimeSetup, recordings: Path) -> Iterator[Runtime]:
    """The executor as a plain thread of this process, as ``Runtime.start`` is as a process."""
    clock, period_ns = MonotonicClock(), 1_000_000_000 // setup.control_hz
    parts = {
        setup.name: layout(setup.spec),
        recording_name(setup.name): record_layout(setup.meta),
        stop_name(setup.name): STOP_LAYOUT,
    }
    limits = load_robot(setup.robot).limits
    with ExitStack() as stack:
        made = [stack.enter_context(Segment.create(name, part)) for name, part in parts.items()]
        theirs = [stack.enter_context(Segment.attach(name, part)) for name, part in parts.items()]
        runtime = Runtime(made[0], made[1], made[2], setup.spec)
        recorder, runtime.recording_path = start_recorder(
            recording_name(setup.name), recordings, setup.meta
        )
        stack.callback(lambda: (recorder.terminate(), recorder.wait()))
        joints = make_joints(setup.options)
        joints.connect()
        stack.callback(joints.close)
        executor = Executor(setup.spec, limits, ExecutorConfig(period_ns))
        loop = ExecutorLoop(
            theirs[0], theirs[1], theirs[2], joints, executor, limits, LoopSettings(period_ns),
            None, clock,
        )  # fmt: skip
        loop.start(clock.now_ns())
        thread = threading.Thread(target=run, args=(loop, clock, period_ns))
        thread.start()
        stack.callback(thread.join)
        stack.callback(loop.stop)
        yield runtime


def play(
    spec: RobotSpec,
    runtime: Runtime,
    device: SimDevice,
    link: PolicyLink,
    prompt: str,
    execute_steps: int,
    seconds: float,
) -> int:
    """Plays one episode after the other for so long; returns the observations sent.

    Raises:
        OnsetError: The link has ended.
    """
    cameras = make_cameras({"segment": device.segment})
    clock, end = MonotonicClock(), time.monotonic() + seconds
    client = RobotClient(spec, runtime, cameras, link, loop_config(execute_steps), prompt, clock)
    seed = observations = 0
    while time.monotonic() < end:
        client.stop()
        prompt = device.reset(seed)
        client.begin(prompt, placed=True, tell=seed > 0)
        client.go()
        error = client.run(lambda: time.monotonic() > end or device.status().done)
        observations += client.counters.observations
        if error is not None:
            raise error
        seed += 1
    client.stop()
    cameras.close()
    return observations


def read_times(path: Path, hz: int, observations: int, said: str) -> Times:
    """Reads a recording, from its first episode on."""
    records = read_recording(path).records
    records = records[records["episode"] >= 0]
    missed = np.rint(np.diff(records["time_ns"]) * (hz * 1e-9)).astype(np.int64) - 1
    # What a tick took stands in the record after it.
    return Times(records["late_ns"], records["busy_ns"][1:], int(missed.sum()), observations, said)
