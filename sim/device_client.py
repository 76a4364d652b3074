"""What a client does with the simulated arm in another process: begin episodes, look at them."""

from __future__ import annotations

import time
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
from numpy.typing import NDArray

from controller.bounds import check_range
from controller.errors import ErrorCode, OnsetError
from controller.shared import Segment
from controller.types import RobotSpec
from sim.device_shared import REQUEST, attach_device, pack, scene_segment, unpack

_POLL_S = 0.001
_RESET_S = 10.0


@dataclass(frozen=True)
class Health:
    """How a device fared since it began.

    Attributes:
        steps: Physics steps.
        late_steps: Of them, more than one period late, and caught up with.
        late_ns: Greatest lateness of a physics step [ns].
        frames: Camera instants rendered.
        missed_frames: Camera instants left out, because they were past.
        stale: Set-points ignored, because they were meant for another episode.
        refused: Set-points ignored, because they were not finite.
        lost: Set-points overwritten before they were read.
    """

    steps: int
    late_steps: int
    late_ns: int
    frames: int
    missed_frames: int
    stale: int
    refused: int
    lost: int


@dataclass(frozen=True)
class Status:
    """How an episode stands.

    Attributes:
        time_ns: The instant of the scene [ns], monotonic clock.
        episode: Resets so far; the device begins with 1, of seed 0.
        prompt: The instruction.
        done: Whether nothing more can change the outcome.
        success: Whether the episode so far counts as a success.
        swapped: Whether the thing that was not named was dealt with instead.
        score: Progress, 0..1.
        event_ns: When the last event that calls for a reaction happened [ns of episode time].
        set_point: What the servos follow. Shape (6,), action units.
        health: How the device fared.
    """

    time_ns: int
    episode: int
    prompt: str
    done: bool
    success: bool
    swapped: bool
    score: float
    event_ns: int | None
    set_point: NDArray[np.float64]
    health: Health


@dataclass(frozen=True)
class Snapshot:
    """A state of the scene, for ``sim.film.Film.keep``.

    Attributes:
        time_ns: The instant that was simulated [ns], monotonic clock.
        qpos: Generalised positions of arm and scene. Shape (nq,).
        mocap_pos: Places of the bodies that the task moves [m]. Shape (n, 3).
        mocap_quat: How they are turned, as unit quaternions. Shape (n, 4).
    """

    time_ns: int
    qpos: NDArray[np.float64]
    mocap_pos: NDArray[np.float64]
    mocap_quat: NDArray[np.float64]


class DeviceClient:
    """Who sets scenes and looks at them; one at a time. The arm itself is ``SimJoints``'.

    Attributes:
        segment: Name of the device's shared memory.
        pid: The device's process.
        about: What it simulates.
    """

    def __init__(self, segment: str) -> None:
        """Args:
        segment: Of a device that is ready.
        """
        self.segment = segment
        self._shared, self.about = attach_device(segment)
        self.pid = self._shared.creator_pid
        self._views = Segment.attach(scene_segment(segment), self.about.layout)

    @property
    def spec(self) -> RobotSpec:
        return self.about.spec

    def reset(self, seed: int, prompt: str | None = None) -> str:
        """Begins an episode, at once, and returns its instruction.

        Raises:
            OnsetError: As the task's; BAD_VALUE for a negative seed; UNAVAILABLE when the device
                does not answer.
        """
        check_range("seed", seed, 0, 2**62)
        request = np.zeros(1, REQUEST)
        request["seed"], request["named"] = seed, prompt is not None
        request["prompt"] = pack(prompt or "")
        requests, replies = self._shared.latest("request"), self._shared.latest("reply")
        requests.write(request)
        number, give_up = requests.version, time.monotonic() + _RESET_S
        while (reply := replies.read()) is None or reply["request"] < number:
            self._check_alive()
            if time.monotonic() > give_up:
                raise OnsetError(
                    ErrorCode.UNAVAILABLE,
                    f"device[{self.segment}].reset",
                    f"no answer in {_RESET_S} s",
                    "a device that runs",
                )
            time.sleep(_POLL_S)
        if code := unpack(reply["code"]):
            raise OnsetError(
                ErrorCode(code),
                unpack(reply["field"]),
                unpack(reply["given"]),
                unpack(reply["allowed"]),
            )
        return unpack(reply["prompt"])

    def status(self) -> Status:
        """Returns how the episode stands, at most 10 ms ago."""
        state, scene = _newest(self._shared, "state"), _newest(self._views, "scene")
        event = int(scene["event_ns"])
        return Status(
            time_ns=int(scene["time_ns"]),
            episode=int(scene["episode"]),
            prompt=unpack(_newest(self._shared, "reply")["prompt"]),
            done=bool(scene["done"]),
            success=bool(scene["success"]),
            swapped=bool(scene["swapped"]),
            score=float(scene["score"]),
            event_ns=None if event < 0 else event,
            set_point=state["set_point"],
            health=Health(**{f.name: int(state[f.name]) for f in fields(Health)}),
        )

    def capture(self) -> Snapshot:
        """Returns the newest state of the scene."""
        scene = _newest(self._views, "scene")
        return Snapshot(
            int(scene["time_ns"]), scene["qpos"], scene["mocap_pos"], scene["mocap_quat"]
        )

    def stall(self, on: bool) -> None:
        """Stops the cameras, or lets them go on."""
        self._shared.word("stall").value = int(on)

    def quit(self) -> None:
        """Asks the device to end, which takes milliseconds."""
        self._shared.word("quit").value = 1

    def close(self) -> None:
        """Lets go of the device, which goes on."""
        self._views.close()
        self._shared.close()

    def _check_alive(self) -> None:
        """Raises when the device is known to have ended."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _newest(segment: Segment, part: str) -> np.void:
    record = segment.latest(part).read()
    if record is None:
        raise OnsetError(ErrorCode.UNAVAILABLE, f"device.{part}", "nothing yet", "a device's")
    return record
