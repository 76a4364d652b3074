"""Executor, recorder and shared memory of one robot, as the client has them.

::

    with Runtime.start(setup) as runtime:       makes the memory, starts executor and recorder
        runtime.publish(...)                    a plan
        runtime.state()                         what the arm does
    on leaving: the executor stops the arm, holds or parks it, and ends

    Runtime.attach("arm", spec)                 another client takes over from one that died
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from controller.errors import ErrorCode, OnsetError
from controller.exchange import (
    STOP_LAYOUT,
    PlanWriter,
    Sent,
    layout,
    recording_name,
    stop_name,
)
from controller.record import Level, RecordMeta, describe_run, new_event
from controller.recorder import record_layout, start_recorder
from controller.shared import Segment, remove_stale_segments
from controller.types import RobotSpec
from controller.watchdog import Mode, Reason

_READY_S = 60.0  # importing a robot's drivers takes long
_POLL_S = 0.01


@dataclass(frozen=True)
class RuntimeSetup:
    """What it takes to start a robot's executor.

    Attributes:
        name: Names the shared memory, e.g. of a robot of a fleet; at most 20 characters.
        spec: The robot.
        robot: Robot file, or the name of a bundled one.
        joints: ``module:function`` that makes the joints in the executor's process.
        options: What that function is given; plain JSON.
        control_hz: Set-points per second.
        recordings: Folder for the recording; None to record nothing.
        executor: Further options of ``controller.executor_process``, as on its command line.
        about: Further fields of the recording's description.
    """

    name: str
    spec: RobotSpec
    robot: str
    joints: str
    options: Mapping[str, Any] = field(default_factory=dict)
    control_hz: int = 200
    recordings: Path | None = None
    executor: tuple[str, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def meta(self) -> RecordMeta:
        """The recording's description."""
        period_ns = 1_000_000_000 // self.control_hz
        now_ns = time.monotonic_ns()
        return describe_run(self.spec, period_ns, now_ns, modes=Mode, reasons=Reason, **self.about)


class Runtime:
    """The client's end. Use as a context manager."""

    def __init__(
        self, segment: Segment, recording: Segment, stops: Segment, spec: RobotSpec
    ) -> None:
        """For ``start`` and ``attach``."""
        self._segment, self._recording, self._stops = segment, recording, stops
        self._writer = PlanWriter(segment, spec)
        self._states = segment.latest("state")
        self._events = recording.ring("client_events")
        self._executor: subprocess.Popen | None = None
        self._recorder: subprocess.Popen | None = None
        self._errors: Path | None = None
        self.recording_path: Path | None = None

    @classmethod
    def start(cls, setup: RuntimeSetup) -> Self:
        """Makes the shared memory and starts the processes; waits until the arm is held.

        Raises:
            OnsetError: ALREADY_OPEN when an executor of this name runs; UNAVAILABLE with its own
                words when the executor ends instead of starting.
        """
        meta, name = setup.meta, setup.name
        remove_stale_segments()
        parts: list[Segment] = []
        try:
            parts.append(Segment.create(name, layout(setup.spec)))
            parts.append(Segment.create(recording_name(name), record_layout(meta)))
            parts.append(Segment.create(stop_name(name), STOP_LAYOUT))
        except OnsetError:
            for part in parts:
                part.unlink()
            raise
        runtime = cls(parts[0], parts[1], parts[2], setup.spec)
        try:
            if setup.recordings is not None:
                runtime._recorder, runtime.recording_path = start_recorder(
                    recording_name(name), setup.recordings, meta
                )
            runtime._start_executor(setup)
        except BaseException:
            runtime.close()
            raise
        return runtime

    @classmethod
    def attach(cls, name: str, spec: RobotSpec, control_hz: int = 200) -> Self:
        """Takes over a robot whose client has died: the executor has held it since.

        Raises:
            OnsetError: UNAVAILABLE when there is no executor of this name.
        """
        meta = describe_run(spec, 1_000_000_000 // control_hz, 0)
        segment = Segment.attach(name, layout(spec))
        recording = Segment.attach(recording_name(name), record_layout(meta))
        return cls(segment, recording, Segment.attach(stop_name(name), STOP_LAYOUT), spec)

    def _start_executor(self, setup: RuntimeSetup) -> None:
        command = [
            sys.executable, "-m", "controller.executor_process",
            "--segment", setup.name, "--robot", setup.robot, "--joints", setup.joints,
            "--options", json.dumps(dict(setup.options)),
            "--control-hz", str(setup.control_hz), *setup.executor,
        ]  # fmt: skip
        handle, path = tempfile.mkstemp(prefix="onset-executor-", suffix=".log")
        self._errors = Path(path)
        with os.fdopen(handle, "wb") as log:
            # A session of its own: Ctrl-C is for the client, which then stops the arm in order.
            self._executor = subprocess.Popen(command, stderr=log, start_new_session=True)
        give_up = time.monotonic() + _READY_S
        while self._states.version == 0:
            if self._executor.poll() is not None or time.monotonic() > give_up:
                raise OnsetError(
                    ErrorCode.UNAVAILABLE, "executor", self.said() or "no answer",
                    "an executor that starts",
                )  # fmt: skip
            time.sleep(_POLL_S)

    def said(self) -> str:
        """What the executor wrote to its standard error: warnings, and why it ended."""
        return "" if self._errors is None else self._errors.read_text(errors="replace").strip()

    @property
    def pid(self) -> int | None:
        """The executor's process, where this client started it."""
        return None if self._executor is None else self._executor.pid

    @property
    def running(self) -> bool:
        """Whether the executor that this client started still runs."""
        return self._executor is not None and self._executor.poll() is None

    def publish(self, sent: Sent) -> None:
        """Gives the executor a plan."""
        self._writer.write(sent)

    def state(self) -> np.void:
        """What the executor said of itself last: a record of ``exchange.state_dtype``.

        Raises:
            OnsetError: UNAVAILABLE when it has not said anything yet.
        """
        state = self._states.read()
        if state is None:
            raise OnsetError(ErrorCode.UNAVAILABLE, "executor", "no state", "a running executor")
        return state

    @property
    def mode(self) -> Mode:
        """What the arm is doing."""
        return Mode(int(self.state()["mode"]))

    def beat(self, now_ns: int) -> None:
        """A sign of life of the client [ns]."""
        self._segment.word("client_ns").value = now_ns

    def event(self, now_ns: int, level: Level, text: str) -> None:
        """Notes a line of text in the recording."""
        self._events.write(new_event(now_ns, level, text))

    def estop(self) -> None:
        """Stops the arm as fast as its limits allow, and latches a fault."""
        self._stops.word("estop").value = 1

    def clear(self) -> None:
        """Releases the emergency stop and leaves a fault: the arm holds where it is measured."""
        self._stops.word("estop").value = 0
        word = self._stops.word("clear")
        word.value = word.value + 1

    def stop(self, stopped: bool = True) -> None:
        """Holds the arm whatever the plan says, or lets it follow the plan again."""
        self._segment.word("stop").value = int(stopped)

    def wait(self, mode: Mode, timeout_s: float) -> bool:
        """Waits until the arm is in a mode; says whether it came to it."""
        give_up = time.monotonic() + timeout_s
        while self.mode is not mode:
            if time.monotonic() > give_up:
                return False
            time.sleep(_POLL_S / 5)
        return True

    def close(self, timeout_s: float = 60.0) -> None:
        """Ends executor and recorder in this order: the arm is stopped, held or parked.

        A client that has only attached leaves both running.
        """
        if self._executor is not None:
            self._stops.word("quit").value = 1
            try:
                self._executor.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self._executor.send_signal(signal.SIGTERM)
        if self._recorder is not None:
            self._recorder.terminate()
            self._recorder.wait()
            if self._recorder.stdout is not None:
                self._recorder.stdout.close()
        owned = self._executor is not None
        for segment in (self._segment, self._recording, self._stops):
            segment.close()
            if owned:
                segment.unlink()
        if self._errors is not None:
            with contextlib.suppress(FileNotFoundError):
                self._errors.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
