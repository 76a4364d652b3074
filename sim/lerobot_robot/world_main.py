"""The process of a world: ``python -m sim.lerobot_robot.world_main --port desk --task whack``.

It prints one JSON line when it runs, and one for each line {"seed": 1, "prompt": null} that it
reads. Owned by the process that began it, it ends when its standard input does.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import mujoco
import numpy as np
import tyro

from controller.errors import OnsetError
from controller.shared import Segment
from sim.env import TASK_DT, Camera, SimRobot
from sim.lerobot_robot.world import JOINTS, STATUS, frame_dtype, layout
from sim.tasks import make_task

_TICK_NS = round(TASK_DT * 1e9)


@dataclass(frozen=True)
class Args:
    """A simulated desk with an arm, in wall-clock time.

    Attributes:
        port: Its name, by which arms and cameras connect.
        task: whack, intercept, conveyor or pick_place.
        seed: Of the first episode.
        size: Height and width of the frames [px].
        fps: Frames per second of each camera.
        owned: End with standard input.
    """

    port: str
    task: str = "whack"
    seed: int = 0
    size: tuple[int, int] = (96, 96)
    fps: float = 30.0
    owned: bool = False


class Physics:
    """The physics, advanced by one thread and looked at by another."""

    def __init__(self, args: Args, segment: Segment) -> None:
        self.robot = SimRobot(make_task(args.task))
        self._segment, self._lock = segment, threading.Lock()
        self._goal, self._torque = segment.latest("goal"), segment.word("torque")
        self._joints, self._status = segment.latest("joints"), segment.latest("status")
        self._began_ns, self._episode, self._goal_version = 0, 0, 0
        self._torque.value = 1  # as motors that have been plugged in

    def reset(self, seed: int, prompt: str | None) -> str:
        """Begins an episode, in which the arm holds where it begins."""
        with self._lock:
            self._began_ns = time.monotonic_ns()
            prompt = self.robot.reset(seed, prompt, now_ns=self._began_ns)
            self._episode += 1
            # The driver's goal was for the arm that was here before.
            self._goal_version = self._goal.version
        self._publish()
        return prompt

    def advance(self) -> None:
        """Takes the newest goal and runs physics up to now."""
        with self._lock:
            if (version := self._goal.version) != self._goal_version:
                goal = self._goal.read()
                if goal is not None:
                    self.robot.data.ctrl[:6] = goal["angles"]
                self._goal_version = version
            off = int(mujoco.mjtDisableBit.mjDSBL_ACTUATION)
            flags = self.robot.model.opt.disableflags & ~off
            self.robot.model.opt.disableflags = flags if self._torque.value else flags | off
            self.robot.advance_to(time.monotonic_ns())
        self._publish()

    def copy_to(self, data: mujoco.MjData) -> int:
        """Copies the state, and returns its time [ns]."""
        with self._lock:
            mujoco.mj_copyData(data, self.robot.model, self.robot.data)
        return self._began_ns + round(data.time * 1e9)

    def _publish(self) -> None:
        task, age_ns = self.robot.task, round(self.robot.data.time * 1e9)
        joints = np.zeros((), JOINTS)
        joints["time_ns"], joints["angles"] = self._began_ns + age_ns, self.robot.data.qpos[:6]
        self._joints.write(joints)
        status, event_ns = np.zeros((), STATUS), task.event_ns()
        status["episode"], status["time_ns"], status["score"] = self._episode, age_ns, task.score()
        status["success"], status["done"] = task.success(), task.done()
        status["event_ns"] = -1 if event_ns is None else event_ns
        self._status.write(status)


def render(args: Args, physics: Physics, segment: Segment, stop: threading.Event) -> None:
    """Renders every camera at its rate; the GL context lives and dies in this thread."""
    model = physics.robot.model
    data, camera = mujoco.MjData(model), Camera(model, *args.size, film=False)
    names = [spec.name for spec in physics.robot.spec.cameras]
    frame = np.zeros((), frame_dtype(*args.size))
    due_s = time.monotonic()
    while not stop.is_set():
        frame["time_ns"] = physics.copy_to(data)
        for name in names:
            frame["rgb"] = camera.render(data, name)
            segment.latest(name).write(frame)
        due_s = max(due_s + 1 / args.fps, time.monotonic())
        stop.wait(due_s - time.monotonic())
    camera.close()


def main(args: Args) -> None:
    """Runs the world until it is told to stop."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with Segment.create(args.port, layout(*args.size)) as segment:
        physics = Physics(args, segment)
        say({"prompt": physics.reset(args.seed, None)})
        eyes = threading.Thread(target=render, args=(args, physics, segment, stop))
        eyes.start()
        lines = Lines() if args.owned else None
        due_ns = time.monotonic_ns()
        while not (stop.is_set() or segment.word("stop").value):
            physics.advance()
            if lines is not None and not lines.serve(physics.reset):
                break
            due_ns = max(due_ns + _TICK_NS, time.monotonic_ns())
            time.sleep(max(due_ns - time.monotonic_ns(), 0) * 1e-9)
        stop.set()
        eyes.join()
        segment.unlink()


class Lines:
    """Requests on standard input, taken without waiting."""

    def __init__(self) -> None:
        self._rest = b""

    def serve(self, reset: Callable[[int, str | None], str]) -> bool:
        """Answers what is there; False at the end of the input."""
        while select.select([0], [], [], 0)[0]:
            data = os.read(0, 65536)
            if not data:
                return False
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                request = json.loads(line)
                try:
                    say({"prompt": reset(int(request["seed"]), request["prompt"])})
                except OnsetError as error:
                    say({"error": str(error)})
        return True


def say(reply: dict[str, str]) -> None:
    """Prints one JSON line."""
    print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    try:
        main(tyro.cli(Args))
    except OnsetError as error:
        say({"error": str(error)})
        sys.exit(1)
