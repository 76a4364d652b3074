"""The simulated arm as a device: a process of its own, driven through shared memory.

    with SimDevice("whack") as device:              # starts the process
        prompt = device.reset(seed=3)
        joints, cameras = SimJoints(device.segment), SimCameras(device.segment)
        joints.connect()
        joints.write(Command(now_ns, position))     # from any process
        device.status().success

Physics runs in wall-clock time whatever its users do, so none of them pays for it, and each may
die and come back. ``python -m sim.device --segment NAME --task TASK`` starts one by hand.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import tyro

from controller.errors import ErrorCode, OnsetError
from controller.realtime import RealtimeConfig, make_realtime
from sim.device_client import DeviceClient, Health, Snapshot, Status
from sim.device_joints import SimCameras, SimJoints, make_cameras, make_joints
from sim.device_shared import attach_device, remove_dead

__all__ = [
    "DeviceClient",
    "Health",
    "SimCameras",
    "SimDevice",
    "SimJoints",
    "Snapshot",
    "Status",
    "attach",
    "make_cameras",
    "make_joints",
]

_ROOT = Path(__file__).parents[1]
_START_S = 60.0
_STOP_S = 5.0
_POLL_S = 0.01
_LOG_BYTES = 4000


class SimDevice(DeviceClient):
    """Starts a device, waits until it is ready, and ends it again; a context manager."""

    def __init__(
        self,
        task: str,
        segment: str | None = None,
        *,
        options: dict[str, float] | None = None,
        priority: int = 0,
        outlive: bool = False,
    ) -> None:
        """Args:
        task: One of ``sim.tasks.TASKS``.
        segment: Name of its shared memory, at most 20 characters; a new one by default.
        options: The task's hardness parameters.
        priority: Real-time priority of its physics, below the executor's; 0 for none. Where it
            is not permitted, ``printed`` says so.
        outlive: Whether it goes on when this process dies. Otherwise it ends within a second,
            so that nothing that was killed leaves it behind.
        """
        self.segment = segment or f"sim-{secrets.token_hex(4)}"
        self._command = [sys.executable, "-m", "sim.device", "--segment", self.segment]
        self._command += ["--task", task, "--priority", str(priority)]
        if not outlive:
            self._command += ["--owner", str(os.getpid())]
        if options:
            self._command += ["--options", *(str(x) for pair in options.items() for x in pair)]

    def __enter__(self) -> Self:
        """Starts the process.

        Raises:
            OnsetError: UNAVAILABLE when it ends, with what it printed, or is not ready in time.
        """
        path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        # A pipe that nobody empties would stop it; a file does not.
        self._log = tempfile.TemporaryFile()
        # A session of its own: Ctrl-C is for the client, which has the arm to bring to rest.
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stderr=self._log,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,
        )
        try:
            self._wait()
            super().__init__(self.segment)
        except BaseException:
            self._end()
            raise
        return self

    def close(self) -> None:
        """Ends the device and removes its shared memory, also when it was killed."""
        super().close()
        self._end()

    def printed(self) -> str:
        """Returns what the process has written to its standard error."""
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - _LOG_BYTES))
        return self._log.read().decode(errors="replace").strip()

    def _wait(self) -> None:
        give_up = time.monotonic() + _START_S
        while time.monotonic() < give_up:
            self._check_alive()
            try:
                segment, _ = attach_device(self.segment)
            except OnsetError as error:
                if error.code != ErrorCode.UNAVAILABLE:
                    raise
            else:
                mine = segment.creator_pid == self._process.pid
                segment.close()
                if mine:
                    return
            time.sleep(_POLL_S)
        raise OnsetError(
            ErrorCode.UNAVAILABLE,
            f"device[{self.segment}]",
            f"not ready in {_START_S} s; it printed {self.printed()!r}",
            "a device that becomes ready",
        )

    def _check_alive(self) -> None:
        if (code := self._process.poll()) is not None:
            raise OnsetError(
                ErrorCode.UNAVAILABLE,
                f"device[{self.segment}]",
                f"it ended with {code}: {self.printed()}",
                "a device that runs",
            )

    def _end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()
        remove_dead(self.segment)  # what a kill left; not what another device made since


def attach(segment: str) -> DeviceClient:
    """Returns a client for a device that runs; its ``close`` leaves the device running.

    Raises:
        OnsetError: UNAVAILABLE when there is no such device, or it is not ready.
    """
    return DeviceClient(segment)


@dataclass(frozen=True)
class Args:
    """Simulates an arm in wall-clock time, behind shared memory, until SIGTERM.

    Attributes:
        segment: Name of the shared memory, at most 20 characters.
        task: whack, intercept, conveyor or pick_place.
        options: The task's hardness parameters.
        priority: Real-time priority of physics, 1..99; 0 for none. Cameras never have any.
        owner: Process without which it ends; 0 for none. It has to be the parent.
    """

    segment: str
    task: str
    options: dict[str, float] = field(default_factory=dict)
    priority: int = 0
    owner: int = 0


def main(args: Args) -> None:
    # Only the device's own process needs MuJoCo.
    from sim.device_process import Device
    from sim.env import SimRobot
    from sim.tasks import make_task

    ended = False

    def end(*_: object) -> None:
        nonlocal ended
        ended = True

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    robot = SimRobot(make_task(args.task, **args.options))
    with Device(args.segment, robot, args.options) as device:
        # The cameras' thread has begun already, and stays without priority.
        if args.priority:
            for said in make_realtime(RealtimeConfig(args.priority, lock_memory=False)):
                print(said, file=sys.stderr)
        device.run(lambda: ended or (args.owner > 0 and os.getppid() != args.owner))


if __name__ == "__main__":
    try:
        main(tyro.cli(Args))
    except OnsetError as error:
        raise SystemExit(f"error: {error}") from error
