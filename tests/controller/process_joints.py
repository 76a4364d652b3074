"""Joints for an executor in a process of its own: at once where they are told to be."""

from __future__ import annotations

import os
import signal
import time

import numpy as np

from controller.errors import ErrorCode, OnsetError
from controller.robot_file import load_robot
from controller.types import Command, Float, RobotSpec


class ProcessJoints:
    """Options: ``at``, where they stand [action units]; ``fail_after``, writes that succeed;
    ``raise_after``, writes after which the program itself is wrong."""

    def __init__(self, options: dict) -> None:
        self._robot = load_robot("so101-sim")
        self._position = np.array(options.get("at", self._robot.home))
        self._left = options.get("fail_after", 2**62)
        self._wrong = options.get("raise_after", 2**62)
        self._writes = 0
        self.closed: list[bool] = []

    @property
    def spec(self) -> RobotSpec:
        return self._robot.spec

    def connect(self) -> None: ...

    def read_state(self) -> Float:
        return np.concatenate([self._position, np.zeros(6)]).astype(np.float32)

    def write(self, command: Command) -> None:
        self._writes += 1
        if self._writes == self._wrong:
            raise ZeroDivisionError("a bug")
        if self._writes > self._left:
            raise OnsetError(ErrorCode.UNAVAILABLE, "bus", "no answer", "a robot that answers")
        self._position = np.array(command.position)

    def close(self, *, release: bool = False) -> None:
        print(f"closed, released: {release}", flush=True)


def make_joints(options: dict) -> ProcessJoints:
    if options.get("sleep"):
        time.sleep(options["sleep"])
    if options.get("die"):
        os.kill(os.getpid(), signal.SIGKILL)
    return ProcessJoints(options)
