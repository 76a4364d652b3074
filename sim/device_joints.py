"""The simulated arm as its executor and its client see it: ``Joints`` and ``Cameras``.

Neither imports MuJoCo: what they know of the arm stands in shared memory.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Mapping

import numpy as np

from controller.errors import ErrorCode, OnsetError
from controller.shared import Segment
from controller.shared_slots import packer
from controller.types import Command, Float, Image, RobotSpec
from sim.device_shared import COMMAND, JOINTS, attach_device, scene_segment

SILENT_NS = 1_000_000_000

_WHEN = struct.Struct("<qq")  # the first fields of STATE: time_ns, episode
_MEASURED = "f4", 2 * JOINTS, _WHEN.size  # the next one


class SimJoints:
    """The joints of a simulated arm in another process. Each call takes microseconds.

    A set-point is meant for the episode of the state that was read last. So one that was on its
    way while the scene was reset does not pull the arm out of its new start pose.
    """

    def __init__(self, segment: str, *, silent_ns: int = SILENT_NS) -> None:
        """Args:
        segment: Of the device.
        silent_ns: Age of the measured state from which on the arm counts as gone [ns].
        """
        self._name, self._silent_ns = segment, silent_ns
        self._shared, self._about = attach_device(segment)
        self._state, self._commands = self._shared.latest("state"), self._shared.ring("commands")
        self._command = np.zeros(1, COMMAND)
        self._pack_into, self._episode = packer(COMMAND).pack_into, 0
        self._spec = self._about.spec

    @property
    def spec(self) -> RobotSpec:
        return self._spec

    @property
    def episode(self) -> int:
        """Resets of the scene, as of the state that was read last; 0 before that."""
        return self._episode

    def connect(self) -> None:
        """Reads a first state.

        Raises:
            OnsetError: UNAVAILABLE when the device is gone.
        """
        self.read_state()

    def read_state(self) -> Float:
        """Returns the measured state. Shape (12,), units as in the spec.

        Raises:
            OnsetError: UNAVAILABLE when it is too old: the device is gone, or stopped.
        """
        data = self._state.read_bytes()
        time_ns, episode = (0, 0) if data is None else _WHEN.unpack_from(data)
        age = None if data is None else time.monotonic_ns() - time_ns
        if data is None or age is None or age > self._silent_ns:
            raise OnsetError(
                ErrorCode.UNAVAILABLE,
                f"device[{self._name}].state.age",
                "no state yet" if age is None else f"{age} ns",
                f"at most {self._silent_ns} ns",
            )
        self._episode = episode
        return np.frombuffer(data, *_MEASURED)

    def write(self, command: Command) -> None:
        """Sends one set-point. It acts from the next physics step."""
        now_ns, position = time.monotonic_ns(), command.position.tolist()
        self._pack_into(self._command, 0, now_ns, self._episode, *position)
        self._commands.write(self._command)

    def close(self, *, release: bool = False) -> None:
        """Lets go of the memory; the servos hold the last set-point, whatever ``release`` says."""
        self._shared.close()


class SimCameras:
    """The cameras of a simulated arm in another process."""

    def __init__(self, segment: str) -> None:
        """Args:
        segment: Of the device.
        """
        shared, about = attach_device(segment)
        shared.close()
        self._views = Segment.attach(scene_segment(segment), about.layout)
        self._frames, self._spec = self._views.latest("frames"), about.spec

    @property
    def spec(self) -> RobotSpec:
        return self._spec

    def connect(self) -> None:
        """Does nothing: the cameras run."""

    def frames(self) -> tuple[int, Mapping[str, Image]]:
        """Returns when the frames were captured [ns], and the newest of each camera.

        A stalled camera, or a device that is gone, shows in the first of them.

        Raises:
            OnsetError: UNAVAILABLE when there never was a frame.
        """
        record = self._frames.read()
        if record is None:
            raise OnsetError(ErrorCode.UNAVAILABLE, "device.frames", "none", "at least one")
        return int(record["capture_ns"]), {c.name: record[c.name] for c in self._spec.cameras}

    def close(self) -> None:
        self._views.close()


def make_joints(options: Mapping[str, object]) -> SimJoints:
    """Makes joints in a process that knows them by name.

    Args:
        options: ``{"segment": NAME}``.

    Raises:
        OnsetError: BAD_NAMES for other options, UNAVAILABLE when there is no such device.
    """
    return SimJoints(_segment(options))


def make_cameras(options: Mapping[str, object]) -> SimCameras:
    """Makes cameras in a process that knows them by name; as ``make_joints``."""
    return SimCameras(_segment(options))


def _segment(options: Mapping[str, object]) -> str:
    if set(options) != {"segment"}:
        raise OnsetError(ErrorCode.BAD_NAMES, "device.options", sorted(options), ["segment"])
    return str(options["segment"])
