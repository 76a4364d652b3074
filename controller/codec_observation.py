"""Observations to protobuf and back; their frames are decoded apart from the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor

import numpy as np

from controller.bounds import (
    MAX_COUNT,
    MAX_HORIZON,
    MAX_PROMPT_CHARS,
    check_range,
    check_rows,
    check_size,
    check_text,
    check_vector,
)
from controller.codec_robot import ENCODING_FROM_PB, ENCODING_TO_PB, from_enum
from controller.errors import ErrorCode, OnsetError
from controller.frames import check_bytes, decode_image, encode_image
from controller.shared_frames import (
    MAX_SLOTS,
    SharedFramesReader,
    SharedFramesWriter,
    empty_frames,
)
from controller.spread import spread
from controller.types import Float, FrameEncoding, Image, Observation, RobotSpec
from onset.v1 import policy_pb2 as pb


def check_observation(observation: Observation, robot: RobotSpec) -> None:
    """Checks an observation against what was agreed.

    Raises:
        OnsetError: A name, shape, value or size is not allowed; it names the field.
    """
    _check_vectors(observation, robot)
    given, expected = set(observation.frames), {camera.name for camera in robot.cameras}
    if given != expected:
        raise OnsetError(ErrorCode.BAD_NAMES, "observation.frames", sorted(given), sorted(expected))
    for camera in robot.cameras:
        frames = observation.frames[camera.name]
        if frames.shape != camera.frames_shape or frames.dtype != np.uint8:
            raise OnsetError(
                ErrorCode.BAD_FRAME,
                f"observation.frames[{camera.name}]",
                f"{frames.dtype} {frames.shape}",
                f"uint8 {camera.frames_shape}",
            )


def encode_observation(
    observation: Observation,
    robot: RobotSpec,
    helpers: Executor | None = None,
    shared: SharedFramesWriter | None = None,
) -> pb.Observation:
    """Encodes an observation that ``check_observation`` has passed.

    Args:
        observation: What is to be sent.
        robot: What was agreed; its cameras say how frames are encoded.
        helpers: Threads that compress frames as well; this one alone when None.
        shared: Where frames are put instead, as they are.

    Raises:
        OnsetError: A frame is past MAX_FRAME_BYTES, or shared memory takes none.
    """
    message = pb.Observation(
        id=observation.id,
        step=observation.step,
        capture_ns=observation.capture_ns,
        state=observation.state.tolist(),
        committed=observation.committed.ravel().tolist(),
        planned=observation.planned.ravel().tolist(),
        delay=observation.delay,
        deadline_ns=observation.deadline_ns,
    )
    if shared is None:
        message.frames.extend(_encode_frames(observation, robot, helpers))
    else:
        message.shared_slot = shared.put(observation.id, observation.frames)
    if observation.forecast is not None:
        message.forecast.extend(observation.forecast.tolist())
    if observation.set_point is not None:
        message.set_point.extend(observation.set_point.tolist())
    if observation.prompt is not None:
        message.prompt = observation.prompt
    return message


def _encode_frames(
    observation: Observation, robot: RobotSpec, helpers: Executor | None
) -> list[pb.Frame]:
    shots = [
        (camera, lag, image)
        for camera in robot.cameras
        for lag, image in zip(camera.lags, observation.frames[camera.name], strict=True)
    ]
    compressed = any(camera.encoding is not FrameEncoding.RAW for camera in robot.cameras)
    encoded = spread(
        lambda shot: encode_image(shot[2], shot[0].encoding), shots, helpers if compressed else None
    )
    return [
        pb.Frame(
            camera=camera.name,
            lag=lag,
            encoding=ENCODING_TO_PB[camera.encoding],
            height=camera.height,
            width=camera.width,
            data=data,
        )
        for (camera, lag, _), data in zip(shots, encoded, strict=True)
    ]


def decode_observation(message: pb.Observation, robot: RobotSpec) -> Observation:
    """Decodes all but the frames, which stay an empty mapping; see ``decode_frames``.

    Frames are checked here for names, lags and sizes, without a look into their data.

    Raises:
        OnsetError: A name, shape, value or size is not allowed; it carries the observation's id.
    """
    try:
        return _decode_observation(message, robot)
    except OnsetError as error:
        error.observation_id = message.id
        raise


def _decode_observation(message: pb.Observation, robot: RobotSpec) -> Observation:
    observation = Observation(
        id=message.id,
        step=message.step,
        capture_ns=message.capture_ns,
        state=np.array(message.state[:], dtype=np.float32),
        frames={},
        committed=_rows("observation.committed", message.committed, robot),
        planned=_rows("observation.planned", message.planned, robot),
        delay=message.delay,
        deadline_ns=message.deadline_ns,
        forecast=np.array(message.forecast[:], dtype=np.float32) if message.forecast else None,
        set_point=np.array(message.set_point[:], dtype=np.float32) if message.set_point else None,
        prompt=message.prompt if message.HasField("prompt") else None,
    )
    _check_vectors(observation, robot)
    if message.HasField("shared_slot"):
        check_range("observation.shared_slot", message.shared_slot, 0, MAX_SLOTS - 1)
        check_size("observation.frames", len(message.frames), 0)
    else:
        _check_frame_heads(message, robot)
    return observation


def _rows(field: str, values: Sequence[float], robot: RobotSpec) -> Float:
    """Packed rows of actions. Shape (n, A)."""
    width = len(robot.action)
    if len(values) % width:
        raise OnsetError(
            ErrorCode.BAD_SHAPE,
            field,
            f"{len(values)} values",
            f"a multiple of {width}: {list(robot.action_names)}",
        )
    return np.array(values[:], dtype=np.float32).reshape(-1, width)  # a list: faster than values


def _check_vectors(observation: Observation, robot: RobotSpec) -> None:
    check_range("observation.id", observation.id, 0, MAX_COUNT)
    check_range("observation.step", observation.step, 0, MAX_COUNT)
    check_range("observation.capture_ns", observation.capture_ns, -MAX_COUNT, MAX_COUNT)
    check_range("observation.delay", observation.delay, 0, MAX_HORIZON)
    check_range("observation.deadline_ns", observation.deadline_ns, 0, MAX_COUNT)
    check_vector("observation.state", observation.state, robot.state_names)
    if observation.forecast is not None:
        check_vector("observation.forecast", observation.forecast, robot.state_names)
    if observation.set_point is not None:
        check_vector("observation.set_point", observation.set_point, robot.action_names)
    check_rows("observation.committed", observation.committed, robot.action_names)
    check_rows("observation.planned", observation.planned, robot.action_names)
    check_size("observation.planned", len(observation.planned), MAX_HORIZON)
    if len(observation.committed) > observation.delay:
        raise OnsetError(
            ErrorCode.BAD_SHAPE,
            "observation.committed",
            f"{len(observation.committed)} rows",
            f"at most observation.delay = {observation.delay}",
        )
    if observation.prompt is not None:
        check_text("observation.prompt", observation.prompt, MAX_PROMPT_CHARS)


def _check_frame_heads(message: pb.Observation, robot: RobotSpec) -> None:
    expected = {(camera.name, lag): camera for camera in robot.cameras for lag in camera.lags}
    check_size("observation.frames", len(message.frames), len(expected))
    seen: set[tuple[str, int]] = set()
    for frame in message.frames:
        key = (frame.camera, frame.lag)
        if key not in expected or key in seen:
            raise OnsetError(
                ErrorCode.BAD_FRAME,
                "observation.frames",
                f"{frame.camera}, lag {frame.lag}{' twice' if key in seen else ''}",
                f"one each of {sorted(expected)}",
            )
        seen.add(key)
        camera = expected[key]
        from_enum(f"{_where(frame)}.encoding", frame.encoding, ENCODING_FROM_PB)
        if (frame.height, frame.width) != (camera.height, camera.width):
            raise OnsetError(
                ErrorCode.BAD_FRAME,
                f"{_where(frame)}.height, width",
                f"{frame.height}x{frame.width}",
                f"{camera.height}x{camera.width}",
            )
        check_bytes(f"{_where(frame)}.data", frame.data)
    if len(seen) != len(expected):
        missing = sorted(set(expected) - seen)
        raise OnsetError(
            ErrorCode.BAD_FRAME,
            "observation.frames",
            f"none for {missing}",
            f"one each of {sorted(expected)}",
        )


def decode_frames(
    message: pb.Observation,
    robot: RobotSpec,
    helpers: Executor | None = None,
    shared: SharedFramesReader | None = None,
) -> Mapping[str, Image]:
    """Decodes the frames of an observation that ``decode_observation`` has passed.

    Args:
        message: As received.
        robot: What was agreed.
        helpers: Threads that decode as well; this one alone when None.
        shared: Where they are, when the message says so.

    Returns:
        Per camera, its frames in the order of ``CameraSpec.lags``: uint8 RGB.
        Shape (lags, h, w, 3).

    Raises:
        OnsetError: BAD_FRAME or TOO_LARGE; it carries the observation's id.
    """
    cameras = {camera.name: camera for camera in robot.cameras}
    frames = empty_frames(robot)

    def decode(frame: pb.Frame) -> None:
        camera, encoding = cameras[frame.camera], ENCODING_FROM_PB[frame.encoding]
        into = frames[frame.camera][camera.lags.index(frame.lag)]
        decode_image(f"{_where(frame)}.data", frame.data, encoding, camera, into)

    try:
        if not message.HasField("shared_slot"):
            spread(decode, message.frames, helpers)
        elif shared is not None:
            shared.take(message.shared_slot, message.id, frames)
        else:
            raise OnsetError(
                ErrorCode.BAD_FRAME,
                "observation.shared_slot",
                message.shared_slot,
                "frames in the message: shared ones were not agreed on",
            )
    except OnsetError as error:
        error.observation_id = message.id
        raise
    return frames


def _where(frame: pb.Frame) -> str:
    return f"observation.frames[{frame.camera}, lag {frame.lag}]"
