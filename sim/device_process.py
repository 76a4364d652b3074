"""The process of the simulated arm: physics and cameras in wall-clock time.

It is to its users what an arm on a bus is: it takes set-points whenever they come, goes on whatever
becomes of those who wrote them, and its servos hold the last one. Physics that is late, because the
machine was busy, catches up with the set-points as they were timed.

    |<- 2 ms ->|
    |--------- s1 -------- s2 -------- s3    physics, each step run when its end is due
         w          ........acts.......
    a set-point written at w acts from the next step that begins, in s2 for the first time
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable
from typing import Self

import numpy as np

from controller.clock import MonotonicClock
from controller.errors import OnsetError
from controller.shared import Segment
from controller.types import Command
from sim.device_cameras import CameraThread
from sim.device_shared import (
    DEVICE,
    REPLY,
    REQUEST,
    STATE,
    About,
    pack,
    remove_dead,
    scene_segment,
    unpack,
)
from sim.env import PHYSICS_DT, TASK_DT, SimRobot
from sim.robots.so101 import to_normalised

STEP_NS = round(PHYSICS_DT * 1e9)
_TASK_STEPS = round(TASK_DT / PHYSICS_DT)
_BURST = 100  # steps caught up with before requests are looked at again


class Device:
    """A simulated arm behind shared memory; a context manager that makes the memory."""

    def __init__(self, name: str, robot: SimRobot, options: dict[str, float]) -> None:
        """Args:
        name: Segment to make; at most 20 characters.
        robot: The arm with its task.
        options: The task's hardness parameters, for the record.
        """
        task, model = robot.task, robot.model
        about = About(
            task.name, options, task.steps, task.cameras, task.lags, model.nq, model.nmocap
        )
        self._name, self._robot, self._about = name, robot, about
        self._clock = MonotonicClock()
        self._state = np.zeros(1, STATE)
        self._scene = np.zeros(1, about.layout["scene"].dtype)
        self._pending: deque[np.void] = deque()
        self._episode = self._step = 0
        self._origin_ns = self._frame_ns = 0

    def __enter__(self) -> Self:
        """Makes the segments and begins a first episode, with seed 0.

        Raises:
            OnsetError: ALREADY_OPEN when another process has them.
        """
        remove_dead(self._name)
        with contextlib.ExitStack() as stack:  # if a line below raises, what is there goes
            self._shared = stack.enter_context(Segment.create(self._name, DEVICE))
            scene = Segment.create(scene_segment(self._name), self._about.layout)
            self._views = stack.enter_context(scene)
            self._cameras = CameraThread(
                self._robot,
                self._views.latest("frames"),
                self._about.layout["frames"].dtype,
            )
            stack.callback(self._cameras.close)
            self._robot.reset(0)
            self._cameras.begin(0)
            self._cameras.wait()  # the first ones take about a second
            self._commands = self._shared.ring("commands").reader()
            self._answer(0, np.zeros(1, REQUEST)[0])
            self._shared.latest("about").write(self._about.record())
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, ended: Callable[[], bool]) -> None:
        """Simulates until ``ended``, or until somebody asks it to quit."""
        quit_, request = self._shared.word("quit"), self._shared.latest("request")
        handled = request.version
        while not (quit_.value or ended()):
            if request.version != handled:
                record = request.read()
                handled = request.read_version
                if record is not None:
                    self._answer(handled, record)
            self._advance()
            self._clock.sleep_until_ns(self._origin_ns + (self._step + 1) * STEP_NS)

    def _answer(self, number: int, request: np.void) -> None:
        reply = np.zeros(1, REPLY)
        try:
            self._begin(
                int(request["seed"]), unpack(request["prompt"]) if request["named"] else None
            )
        except OnsetError as error:
            # The task was not touched: a prompt is looked at before anything is placed.
            reply["code"], reply["field"] = pack(error.code), pack(error.field, 64)
            reply["given"], reply["allowed"] = pack(error.given), pack(error.allowed)
        reply["request"], reply["seed"] = number, request["seed"]
        reply["episode"], reply["begun_ns"] = self._episode, self._origin_ns
        reply["prompt"] = pack(self._robot.prompt)
        self._shared.latest("reply").write(reply)

    def _begin(self, seed: int, prompt: str | None) -> None:
        self._cameras.wait()  # the task may change what is rendered
        self._robot.reset(seed, prompt)
        now = self._clock.now_ns()
        self._episode += 1
        self._step, self._origin_ns, self._frame_ns = 0, now, now
        self._publish()
        self._publish_scene()
        self._render()
        self._cameras.wait()  # who is told of the episode shall find its frames

    def _advance(self) -> None:
        """Runs the physics steps that are due, then tells what has become."""
        late = self._clock.now_ns() - self._origin_ns - (self._step + 1) * STEP_NS
        count = min(late // STEP_NS + 1, _BURST)
        if count <= 0:
            return
        records, lost = self._commands.read_all()
        self._pending.extend(records)
        tasks = self._step // _TASK_STEPS
        for _ in range(count):
            self._command(self._origin_ns + self._step * STEP_NS)
            self._robot.step()
            self._step += 1
        state = self._state[0]
        state["steps"] += count
        state["late_steps"] += count - 1
        state["late_ns"] = max(state["late_ns"], late)
        state["lost"] += lost
        self._publish()
        if self._step // _TASK_STEPS != tasks:
            self._publish_scene()
        if self._now_ns >= self._frame_ns:
            self._render()

    @property
    def _now_ns(self) -> int:
        """The instant that physics has reached."""
        return self._origin_ns + self._step * STEP_NS

    def _command(self, now_ns: int) -> None:
        """Gives the servos the newest set-point that was written by ``now_ns``."""
        while self._pending and self._pending[0]["time_ns"] <= now_ns:
            record = self._pending.popleft()
            position = record["position"]
            if record["episode"] != self._episode:
                self._state["stale"] += 1
            elif not np.isfinite(position).all():
                self._state["refused"] += 1
            else:
                self._robot.write(Command(int(record["time_ns"]), position))

    def _publish(self) -> None:
        robot, state = self._robot, self._state[0]
        state["time_ns"], state["episode"] = self._now_ns, self._episode
        state["state"] = np.concatenate([robot.position, robot.velocity])
        state["set_point"] = to_normalised(robot.data.ctrl[:6])
        self._shared.latest("state").write(self._state)

    def _publish_scene(self) -> None:
        data, task, scene = self._robot.data, self._robot.task, self._scene[0]
        scene["time_ns"], scene["episode"] = self._now_ns, self._episode
        scene["done"], scene["success"] = task.done(), task.success()
        scene["swapped"], scene["score"] = task.swapped_success(), task.score()
        event = task.event_ns()
        scene["event_ns"] = -1 if event is None else event
        scene["qpos"], scene["mocap_pos"] = data.qpos, data.mocap_pos
        scene["mocap_quat"] = data.mocap_quat
        self._views.latest("scene").write(self._scene)

    def _render(self) -> None:
        period = self._robot.spec.period_ns
        missed = (self._now_ns - self._frame_ns) // period
        self._frame_ns += (missed + 1) * period
        if self._shared.word("stall").value:
            return
        begun = self._cameras.begin(self._now_ns)
        self._state["frames"] += begun
        self._state["missed_frames"] += missed + (not begun)
