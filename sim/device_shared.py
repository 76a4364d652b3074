"""The memory that a simulated arm's process shares with those that drive and watch it.

Two segments, so that the executor maps neither frames nor scene:

    NAME      set-points in, measured state out; requests and answers
    NAME.cam  the newest frames, the newest scene

Who attaches knows the first one's layout, and finds there what the second one's depends on.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from controller.errors import ErrorCode, OnsetError
from controller.shared import (
    LatestLayout,
    RingLayout,
    Segment,
    WordLayout,
    remove_segment,
    stale_segments,
)
from controller.types import RobotSpec
from sim.robots import so101

JOINTS = len(so101.JOINTS)
TEXT_BYTES = 512
_SCENE_SUFFIX = ".cam"

# A set-point acts from the first physics step that begins at or after ``time_ns``. The ones that
# came while physics was late stay in order, so that lateness does not change what the arm does.
COMMAND = np.dtype(
    [
        ("time_ns", "i8"),  # when it was written
        ("episode", "i8"),  # of the state that its writer read last
        ("position", "f8", (JOINTS,)),  # action units
    ]
)
STATE = np.dtype(
    [
        ("time_ns", "i8"),  # the instant that was simulated
        ("episode", "i8"),  # resets so far
        ("state", "f4", (2 * JOINTS,)),  # as in the spec
        ("set_point", "f8", (JOINTS,)),  # what the servos follow, action units
        ("steps", "i8"),  # physics steps since the process began
        ("late_steps", "i8"),  # of them, more than one period late
        ("late_ns", "i8"),  # the latest so far
        ("frames", "i8"),  # camera instants rendered
        ("missed_frames", "i8"),  # left out, because they were past
        ("stale", "i8"),  # set-points ignored, because they were meant for another episode
        ("refused", "i8"),  # set-points ignored, because they were not finite
        ("lost", "i8"),  # set-points overwritten before they were read
    ]
)
REQUEST = np.dtype([("seed", "i8"), ("named", "u1"), ("prompt", f"S{TEXT_BYTES}")])
REPLY = np.dtype(
    [
        ("request", "i8"),  # version of the request that is answered
        ("episode", "i8"),
        ("seed", "i8"),
        ("begun_ns", "i8"),
        ("prompt", f"S{TEXT_BYTES}"),
        ("code", "S32"),  # of the error, empty for none
        ("field", "S64"),
        ("given", f"S{TEXT_BYTES}"),
        ("allowed", f"S{TEXT_BYTES}"),
    ]
)
_ABOUT = np.dtype([("json", "S4096")])

DEVICE = {
    "about": LatestLayout(_ABOUT),  # written last of all: from then on the device can be used
    "commands": RingLayout(COMMAND, 256),
    "state": LatestLayout(STATE),
    "request": LatestLayout(REQUEST),
    "reply": LatestLayout(REPLY),
    "stall": WordLayout(),  # no new frames while it is not 0
    "quit": WordLayout(),
}


@dataclass(frozen=True)
class About:
    """What a device simulates.

    Attributes:
        task: Name of the task.
        options: Its hardness parameters.
        steps: Policy steps in an episode.
        cameras: The task's cameras.
        lags: The frames of the fixed camera, as steps before now.
        positions: Generalised positions of arm and scene [count].
        bodies: Bodies that the task moves [count].
    """

    task: str
    options: dict[str, float]
    steps: int
    cameras: tuple[str, ...]
    lags: tuple[int, ...]
    positions: int
    bodies: int

    @property
    def spec(self) -> RobotSpec:
        return so101.spec(self.cameras, self.lags)

    @property
    def layout(self) -> dict[str, LatestLayout]:
        """Layout of the segment with frames and scene."""
        frames = [(c.name, "u1", (c.height, c.width, 3)) for c in self.spec.cameras]
        scene = [
            ("time_ns", "i8"),
            ("episode", "i8"),
            ("done", "u1"),
            ("success", "u1"),
            ("swapped", "u1"),
            ("score", "f8"),
            ("event_ns", "i8"),  # as ``Task.event_ns``; -1 for none
            ("qpos", "f8", (self.positions,)),
            ("mocap_pos", "f8", (self.bodies, 3)),
            ("mocap_quat", "f8", (self.bodies, 4)),
        ]
        return {
            "frames": LatestLayout(np.dtype([("capture_ns", "i8"), *frames])),
            "scene": LatestLayout(np.dtype(scene)),
        }

    def record(self) -> np.ndarray:
        """As it stands in the segment. Shape (1,)."""
        return np.array([(json.dumps(asdict(self)).encode(),)], _ABOUT)


def attach_device(name: str, *, wait_s: float = 0.0) -> tuple[Segment, About]:
    """Opens the first segment of a device that runs.

    Raises:
        OnsetError: UNAVAILABLE when there is no such device, or it is not ready.
    """
    segment = Segment.attach(name, DEVICE, wait_s=wait_s)
    record = segment.latest("about").read()
    if record is None:
        segment.close()
        raise OnsetError(ErrorCode.UNAVAILABLE, f"device[{name}]", "not ready", "a device that is")
    return segment, parse_about(record)


def parse_about(record: np.void) -> About:
    """Reads what ``About.record`` made."""
    values = json.loads(record["json"])
    values["cameras"], values["lags"] = tuple(values["cameras"]), tuple(values["lags"])
    return About(**values)


def scene_segment(name: str) -> str:
    """Name of the segment with frames and scene."""
    return name + _SCENE_SUFFIX


def pack(text: str, size: int = TEXT_BYTES) -> bytes:
    """Text as it stands in a record, cut to ``size`` bytes."""
    return text.encode()[:size]


def unpack(data: bytes) -> str:
    """What ``pack`` was given, but for what it cut."""
    return data.decode(errors="ignore")


def remove_dead(name: str) -> None:
    """Takes the names of a device that is gone, also when somebody still looks at what it left."""
    try:
        with Segment.attach(name, DEVICE) as segment:
            dead = not _alive(segment.creator_pid)
    except OnsetError:  # none, half made, or another layout
        dead = name in stale_segments()
    if dead:
        remove_segment(name)
    if dead or scene_segment(name) in stale_segments():
        remove_segment(scene_segment(name))


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # One that was killed stays in the list until its parent asks what became of it.
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] not in "ZX"
