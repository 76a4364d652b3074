"""The nouns of the robot side, as frozen dataclasses.

Conventions: *step* is an absolute count of policy periods since the episode began; *time* is
integer nanoseconds on the robot's monotonic clock; S is the number of state dimensions, A of
action dimensions, d of committed steps, n of steps in a slice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from controller.errors import ErrorCode, OnsetError

Float = NDArray[np.float32]
Image = NDArray[np.uint8]


class ActionKind(StrEnum):
    """How an action dimension is to be read."""

    ABSOLUTE = "absolute"
    DELTA_PREVIOUS = "delta_previous"
    DELTA_STATE = "delta_state"


class FrameEncoding(StrEnum):
    """How frames travel. RAW and PNG are lossless."""

    RAW = "raw"
    JPEG = "jpeg"
    PNG = "png"


@dataclass(frozen=True)
class Dimension:
    """One named state or action dimension.

    Attributes:
        name: As in LeRobot, e.g. ``"shoulder_pan.pos"``.
        unit: ``"rad"``, ``"rad/s"``, ``"m"``, or ``"1"`` for a gripper normalised to 0..1.
        lower: Least allowed value, in ``unit``.
        upper: Greatest allowed value, in ``unit``.
        kind: For action dimensions only.
    """

    name: str
    unit: str
    lower: float
    upper: float
    kind: ActionKind = ActionKind.ABSOLUTE

    def __post_init__(self) -> None:
        if not self.name:
            raise OnsetError(ErrorCode.BAD_NAMES, "dimension.name", "''", "a non-empty name")
        if not (np.isfinite([self.lower, self.upper]).all() and self.lower < self.upper):
            raise OnsetError(
                ErrorCode.BAD_VALUE,
                f"dimension[{self.name}].limits",
                f"[{self.lower}, {self.upper}]",
                "finite limits with lower < upper",
            )


@dataclass(frozen=True)
class CameraSpec:
    """One camera.

    Attributes:
        name: Camera name, e.g. ``"front"``.
        height: Frame height [px].
        width: Frame width [px].
        encoding: How its frames travel.
        lags: The frames sent with each observation, as steps before it; 0 is the newest.
    """

    name: str
    height: int
    width: int
    encoding: FrameEncoding = FrameEncoding.RAW
    lags: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        if self.height <= 0 or self.width <= 0:
            raise OnsetError(
                ErrorCode.BAD_SHAPE,
                f"camera[{self.name}]",
                f"{self.height}x{self.width}",
                "a positive height and width",
            )
        if not self.lags or any(lag < 0 for lag in self.lags):
            raise OnsetError(
                ErrorCode.BAD_VALUE, f"camera[{self.name}].lags", self.lags, "one or more lags >= 0"
            )

    @property
    def frames_shape(self) -> tuple[int, int, int, int]:
        """Of an observation's frames, uint8 RGB: lags, height, width, 3."""
        return len(self.lags), self.height, self.width, 3


@dataclass(frozen=True)
class RobotSpec:
    """What the two sides agree on before the first action.

    Attributes:
        name: Robot model, e.g. ``"so101"``.
        state: State dimensions, in order. Length S.
        action: Action dimensions, in order. Length A.
        cameras: Cameras, in order.
        period_ns: Policy period [ns].
    """

    name: str
    state: tuple[Dimension, ...]
    action: tuple[Dimension, ...]
    cameras: tuple[CameraSpec, ...]
    period_ns: int

    def __post_init__(self) -> None:
        for what, names in (
            ("state", self.state_names),
            ("action", self.action_names),
            ("cameras", tuple(c.name for c in self.cameras)),
        ):
            if not names or len(set(names)) != len(names):
                raise OnsetError(
                    ErrorCode.BAD_NAMES, f"robot.{what}", list(names), "one or more distinct names"
                )
        if self.period_ns <= 0:
            raise OnsetError(
                ErrorCode.BAD_VALUE, "robot.period_ns", self.period_ns, "a positive duration [ns]"
            )

    @property
    def state_names(self) -> tuple[str, ...]:
        return tuple(d.name for d in self.state)

    @property
    def action_names(self) -> tuple[str, ...]:
        return tuple(d.name for d in self.action)

    @property
    def action_lower(self) -> Float:
        """Shape (A,), in each dimension's unit."""
        return np.array([d.lower for d in self.action], dtype=np.float32)

    @property
    def action_upper(self) -> Float:
        """Shape (A,), in each dimension's unit."""
        return np.array([d.upper for d in self.action], dtype=np.float32)

    def remembering(self, other: RobotSpec) -> RobotSpec:
        """The same robot, which keeps those frames of the past that another's cameras have.

        Cameras are matched by name. Past frames are the client's to keep: no camera is another one
        by its lags.
        """
        lags = {camera.name: camera.lags for camera in other.cameras}
        cameras = tuple(replace(c, lags=lags.get(c.name, c.lags)) for c in self.cameras)
        return replace(self, cameras=cameras)

    def camera(self, name: str) -> CameraSpec:
        """Returns the camera of that name.

        Raises:
            OnsetError: There is no such camera.
        """
        for camera in self.cameras:
            if camera.name == name:
                return camera
        raise OnsetError(
            ErrorCode.BAD_NAMES, "camera", name, [camera.name for camera in self.cameras]
        )


@dataclass(frozen=True)
class Reading:
    """What ``Robot.read`` returns: one instant of the robot.

    Attributes:
        capture_ns: When it was measured [ns], robot's clock.
        state: Measured state. Shape (S,), units as in the spec.
        frames: Newest frame of each camera: uint8 RGB. Shape (h, w, 3).
    """

    capture_ns: int
    state: Float
    frames: Mapping[str, Image]


@dataclass(frozen=True)
class Observation:
    """One request to the policy.

    Attributes:
        id: Counts up within a session; replies echo it.
        step: Step at which it was captured.
        capture_ns: Capture time [ns], robot's clock.
        state: Measured state. Shape (S,).
        frames: Per camera, the frames of ``CameraSpec.lags``: uint8 RGB. Shape (lags, h, w, 3).
        committed: Actions of steps ``step .. step+n-1``, which the robot counts on. Shape (n, A);
            n is d, or less where the old chunk ends before.
        planned: What the old chunk says of the steps behind ``committed``, where the strategy
            asks for it. Shape (m, A).
        delay: d, the step offset at which the new chunk is expected to take over [steps].
        deadline_ns: How long after receipt the reply is still of use [ns]; a duration.
        set_point: The command that stands at capture, where it is known. Shape (A,), or None.
        forecast: State expected where the strategy lets the chunk begin, see
            ``Strategy.start``. Shape (S,), or None.
        prompt: The instruction, when it changed; else None.
    """

    id: int
    step: int
    capture_ns: int
    state: Float
    frames: Mapping[str, Image]
    committed: Float
    planned: Float
    delay: int
    deadline_ns: int
    forecast: Float | None = None
    set_point: Float | None = None
    prompt: str | None = None


@dataclass(frozen=True)
class Timing:
    """Durations on the server [ns]; never compared with the robot's clock.

    Attributes:
        queue_ns: Receipt until the model began.
        decode_ns: Decoding of frames.
        encode_ns: Vision and prefix.
        expert_ns: Expert steps until this slice was ready.
        total_ns: Receipt until this slice was handed to the transport.
        expert_steps: Expert steps run until this slice was ready.
    """

    queue_ns: int = 0
    decode_ns: int = 0
    encode_ns: int = 0
    expert_ns: int = 0
    total_ns: int = 0
    expert_steps: int = 0


@dataclass(frozen=True)
class CacheFigures:
    """How much of the prefix was computed anew.

    Attributes:
        rows: Image tokens in the prefix.
        rows_computed: Image tokens computed for this chunk.
        max_age: Largest age of a reused row [observations].
        dense_reason: Why everything was computed; empty when it was not.
        base_id: The observation of which everything was last computed; -1 where nothing is kept.
    """

    rows: int
    rows_computed: int
    max_age: int = 0
    dense_reason: str = ""
    base_id: int = -1

    @property
    def reused(self) -> float:
        """Share of the image tokens that were not computed anew, 0..1."""
        return 1 - self.rows_computed / self.rows if self.rows else 0.0


@dataclass(frozen=True)
class ActionSlice:
    """Finished actions of one chunk.

    Attributes:
        observation_id: The observation they answer.
        start_step: First step of the whole chunk.
        steps: Absolute steps carried, increasing. Shape (n,), int64.
        actions: One row per step. Shape (n, A), units as in the spec.
        final: Whether the chunk is complete with this slice.
        timing: Durations on the server.
        cache: Cache figures.
    """

    observation_id: int
    start_step: int
    steps: NDArray[np.int64]
    actions: Float
    final: bool
    timing: Timing = field(default_factory=Timing)
    cache: CacheFigures | None = None


@dataclass(frozen=True)
class Command:
    """One set-point for the robot.

    Attributes:
        time_ns: When it was computed [ns], robot's clock.
        position: Set-point. Shape (A,), units as in the spec.
    """

    time_ns: int
    position: NDArray[np.floating]
