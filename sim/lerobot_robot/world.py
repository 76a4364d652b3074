"""A simulated desk with an arm on it, in a process of its own and in wall-clock time.

The process (``world_main``) has two threads, which share the state of the physics: one advances
it, the other renders. Neither ever runs in the process of those who drive the arm, who see
shared memory only::

    driver --goal, torque--> world: physics --joints--> driver
                                    render  --frames--> cameras
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np

from controller.errors import ErrorCode, OnsetError
from controller.shared import LatestLayout, Segment, WordLayout, remove_segment

CAMERAS = ("front", "wrist")  # those of the arm's model
START_S = 60.0  # a world that has not begun after this never will [s]


@dataclass(frozen=True)
class Status:
    """How the task stands.

    Attributes:
        episode: Resets so far [count].
        time_ns: Age of the episode [ns].
        score: Progress in 0..1.
        success: Whether the episode so far is one.
        done: Whether nothing more can change the outcome.
        event_ns: When the last event that calls for a reaction happened [ns of episode time]; -1.
    """

    episode: int
    time_ns: int
    score: float
    success: bool
    done: bool
    event_ns: int


STATUS = np.dtype(
    [
        ("episode", "i8"),
        ("time_ns", "i8"),
        ("score", "f8"),
        ("success", "u1"),
        ("done", "u1"),
        ("event_ns", "i8"),
    ]
)
GOAL = np.dtype([("angles", "f8", (6,))])  # [rad], also the gripper's
JOINTS = np.dtype([("time_ns", "i8"), ("angles", "f8", (6,))])


def frame_dtype(height: int, width: int) -> np.dtype:
    """One frame and the time of the state that it shows [ns]."""
    return np.dtype([("time_ns", "i8"), ("rgb", "u1", (height, width, 3))])


def layout(height: int, width: int) -> dict[str, LatestLayout | WordLayout]:
    """What a world shares, with frames of a size [px]."""
    frame = frame_dtype(height, width)
    return {
        "stop": WordLayout(),
        "torque": WordLayout(),
        "goal": LatestLayout(GOAL),
        "joints": LatestLayout(JOINTS),
        "status": LatestLayout(STATUS),
        **{camera: LatestLayout(frame) for camera in CAMERAS},
    }


class World:
    """A world that this process began; it ends with it, or with ``close``.

    Attributes:
        port: Its name, by which arms and cameras connect.
        prompt: The instruction of the episode under way.
    """

    def __init__(
        self,
        port: str,
        task: str = "whack",
        *,
        seed: int = 0,
        size: tuple[int, int] = (96, 96),
        fps: float = 30.0,
    ) -> None:
        """Begins a world and waits until it runs.

        Args:
            port: Lower case letters, digits and ``_.-``, at most 24.
            task: Task name.
            seed: Of its first episode.
            size: Height and width of its frames [px].
            fps: Frames per second of each camera.

        Raises:
            OnsetError: It could not begin, with what it said.
        """
        self.port = port
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "sim.lerobot_robot.world_main", "--owned"),
                *("--port", port, "--task", task, "--seed", str(seed), "--fps", str(fps)),
                *("--size", str(size[0]), str(size[1])),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )
        try:
            self.prompt = str(self._reply()["prompt"])
            self._segment = Segment.attach(port, layout(*size), wait_s=START_S)
        except OnsetError:
            self._process.kill()
            self._process.wait()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    @property
    def torque(self) -> bool:
        """Whether the motors are on."""
        return bool(self._segment.word("torque").value)

    @property
    def status(self) -> Status:
        """How the task stands."""
        row: Any = self._segment.latest("status").read()
        return Status(
            int(row["episode"]),
            int(row["time_ns"]),
            float(row["score"]),
            bool(row["success"]),
            bool(row["done"]),
            int(row["event_ns"]),
        )

    @property
    def angles(self) -> np.ndarray:
        """Where the joints are [rad], also the gripper's. Shape (6,)."""
        row: Any = self._segment.latest("joints").read()
        return row["angles"].copy()

    def reset(self, seed: int, prompt: str | None = None) -> str:
        """Begins another episode and returns its instruction; the arm jumps to where it begins.

        Raises:
            OnsetError: The prompt is unknown, or the world is gone.
        """
        pipe = self._process.stdin
        try:
            if pipe is None:
                raise BrokenPipeError
            pipe.write(json.dumps({"seed": seed, "prompt": prompt}) + "\n")
            pipe.flush()
        except BrokenPipeError as error:
            raise self._gone() from error
        self.prompt = str(self._reply()["prompt"])
        return self.prompt

    def close(self) -> None:
        """Ends it."""
        if self._process.poll() is None:
            self._segment.word("stop").value = 1
            try:
                self._process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):  # a request that was never read
                    pipe.close()
        self._segment.close()
        remove_segment(self.port)  # left by a world that was killed

    def _reply(self) -> dict[str, object]:
        line = self._process.stdout.readline() if self._process.stdout is not None else ""
        if not line:
            raise self._gone()
        reply = json.loads(line)
        if "error" in reply:
            raise OnsetError(ErrorCode.BAD_VALUE, "world", reply["error"], "see the message")
        return reply

    def _gone(self) -> OnsetError:
        code = self._process.poll()
        return OnsetError(
            ErrorCode.UNAVAILABLE, f"world[{self.port}]", f"ended with {code}", "a running world"
        )
