"""RobotSpec, Open, Opened and Description to protobuf and back, checked both ways."""

from __future__ import annotations

from collections.abc import Sequence

from controller.bounds import (
    MAX_CAMERAS,
    MAX_COUNT,
    MAX_DIMENSIONS,
    MAX_FRAME_SIDE,
    MAX_HORIZON,
    MAX_LAGS,
    MAX_PROMPT_CHARS,
    MAX_PROMPTS,
    MAX_STRATEGIES,
    PROTOCOL_VERSION,
    check_range,
    check_size,
    check_text,
)
from controller.errors import ErrorCode, OnsetError
from controller.messages import Description, Open, Opened
from controller.shared_frames import check_name
from controller.types import ActionKind, CameraSpec, Dimension, FrameEncoding, RobotSpec
from onset.v1 import policy_pb2 as pb

KIND_TO_PB = {
    ActionKind.ABSOLUTE: pb.ACTION_KIND_ABSOLUTE,
    ActionKind.DELTA_PREVIOUS: pb.ACTION_KIND_DELTA_PREVIOUS,
    ActionKind.DELTA_STATE: pb.ACTION_KIND_DELTA_STATE,
}
KIND_FROM_PB: dict[int, ActionKind] = {number: kind for kind, number in KIND_TO_PB.items()}
ENCODING_TO_PB = {
    FrameEncoding.RAW: pb.FRAME_ENCODING_RAW,
    FrameEncoding.JPEG: pb.FRAME_ENCODING_JPEG,
    FrameEncoding.PNG: pb.FRAME_ENCODING_PNG,
}
ENCODING_FROM_PB: dict[int, FrameEncoding] = {
    number: encoding for encoding, number in ENCODING_TO_PB.items()
}


def from_enum[T](field: str, number: int, table: dict[int, T]) -> T:
    """Looks an enum number up.

    Raises:
        OnsetError: BAD_VALUE when the number has no meaning here.
    """
    if number not in table:
        allowed = {key: str(value) for key, value in table.items()}
        raise OnsetError(ErrorCode.BAD_VALUE, field, number, allowed)
    return table[number]


def encode_robot(robot: RobotSpec) -> pb.RobotSpec:
    """Encodes a robot's description.

    Raises:
        OnsetError: A name or a count is past its bound.
    """
    _check_robot(robot)
    return pb.RobotSpec(
        name=robot.name,
        state=[_encode_dimension(d) for d in robot.state],
        action=[_encode_dimension(d) for d in robot.action],
        cameras=[
            pb.Camera(
                name=c.name,
                height=c.height,
                width=c.width,
                encoding=ENCODING_TO_PB[c.encoding],
                lags=c.lags,
            )
            for c in robot.cameras
        ],
        period_ns=robot.period_ns,
    )


def decode_robot(message: pb.RobotSpec) -> RobotSpec:
    """Decodes a robot's description.

    Raises:
        OnsetError: A name, limit, enum or count is missing or not allowed.
    """
    check_size("robot.state", len(message.state), MAX_DIMENSIONS, least=1)
    check_size("robot.action", len(message.action), MAX_DIMENSIONS, least=1)
    check_size("robot.cameras", len(message.cameras), MAX_CAMERAS, least=1)
    for camera in message.cameras:
        check_size(f"camera[{camera.name}].lags", len(camera.lags), MAX_LAGS, least=1)
    robot = RobotSpec(
        name=message.name,
        state=tuple(_decode_dimension("robot.state", d) for d in message.state),
        action=tuple(_decode_dimension("robot.action", d) for d in message.action),
        cameras=tuple(
            CameraSpec(
                name=c.name,
                height=c.height,
                width=c.width,
                encoding=from_enum(f"camera[{c.name}].encoding", c.encoding, ENCODING_FROM_PB),
                lags=tuple(c.lags),
            )
            for c in message.cameras
        ),
        period_ns=message.period_ns,
    )
    _check_robot(robot)
    return robot


def _check_robot(robot: RobotSpec) -> None:
    check_text("robot.name", robot.name)
    check_size("robot.state", len(robot.state), MAX_DIMENSIONS, least=1)
    check_size("robot.action", len(robot.action), MAX_DIMENSIONS, least=1)
    check_size("robot.cameras", len(robot.cameras), MAX_CAMERAS, least=1)
    check_range("robot.period_ns", robot.period_ns, 1, MAX_COUNT)
    for dimension in (*robot.state, *robot.action):
        check_text("dimension.name", dimension.name)
        check_text(f"dimension[{dimension.name}].unit", dimension.unit)
    for camera in robot.cameras:
        where = f"camera[{camera.name}]"
        check_text("camera.name", camera.name)
        check_size(f"{where}.height", camera.height, MAX_FRAME_SIDE, least=1)
        check_size(f"{where}.width", camera.width, MAX_FRAME_SIDE, least=1)
        check_size(f"{where}.lags", len(camera.lags), MAX_LAGS, least=1)
        if len(set(camera.lags)) != len(camera.lags) or max(camera.lags) > MAX_HORIZON:
            raise OnsetError(
                ErrorCode.BAD_VALUE,
                f"{where}.lags",
                list(camera.lags),
                f"distinct lags in 0..{MAX_HORIZON}",
            )


def _encode_dimension(dimension: Dimension) -> pb.Dimension:
    return pb.Dimension(
        name=dimension.name,
        unit=dimension.unit,
        lower=dimension.lower,
        upper=dimension.upper,
        kind=KIND_TO_PB[dimension.kind],
    )


def _decode_dimension(field: str, message: pb.Dimension) -> Dimension:
    return Dimension(
        name=message.name,
        unit=message.unit,
        lower=message.lower,
        upper=message.upper,
        kind=from_enum(f"{field}[{message.name}].kind", message.kind, KIND_FROM_PB),
    )


def encode_open(message: Open) -> pb.Open:
    """Encodes an Open.

    Raises:
        OnsetError: A field is not allowed.
    """
    _check_open(message)
    return pb.Open(
        protocol=message.protocol,
        robot_id=message.robot_id,
        robot=encode_robot(message.robot),
        prompt=message.prompt,
        episode=message.episode,
        strategy=message.strategy,
        shared_frames=message.shared_frames,
    )


def decode_open(message: pb.Open) -> Open:
    """Decodes an Open.

    Raises:
        OnsetError: A field is not allowed, or the protocol is another one.
    """
    # First of all: another protocol may mean anything by the rest.
    check_range("open.protocol", message.protocol, PROTOCOL_VERSION, PROTOCOL_VERSION)
    opening = Open(
        robot_id=message.robot_id,
        robot=decode_robot(message.robot),
        prompt=message.prompt,
        episode=message.episode,
        strategy=message.strategy,
        shared_frames=message.shared_frames,
        protocol=message.protocol,
    )
    _check_open(opening)
    return opening


def _check_open(message: Open) -> None:
    check_text("open.robot_id", message.robot_id)
    check_text("open.prompt", message.prompt, MAX_PROMPT_CHARS)
    check_text("open.episode", message.episode)
    check_text("open.strategy", message.strategy)
    if message.shared_frames:
        check_name("open.shared_frames", message.shared_frames)


def encode_opened(message: Opened) -> pb.Opened:
    """Encodes an Opened.

    Raises:
        OnsetError: A field is not allowed.
    """
    _check_opened(message)
    return pb.Opened(
        protocol=message.protocol,
        strategy=message.strategy,
        prompt=message.prompt,
        state_names=message.state_names,
        action_names=message.action_names,
        camera_names=message.camera_names,
        model=message.model,
        model_hash=message.model_hash,
        horizon=message.horizon,
        period_ns=message.period_ns,
        expert_steps=message.expert_steps,
        min_delay=message.min_delay,
        max_delay=message.max_delay,
        shared_frames=message.shared_frames,
    )


def decode_opened(message: pb.Opened) -> Opened:
    """Decodes an Opened.

    Raises:
        OnsetError: A field is not allowed, or the protocol is another one.
    """
    check_range("opened.protocol", message.protocol, PROTOCOL_VERSION, PROTOCOL_VERSION)
    opened = Opened(
        strategy=message.strategy,
        prompt=message.prompt,
        state_names=tuple(message.state_names),
        action_names=tuple(message.action_names),
        camera_names=tuple(message.camera_names),
        model=message.model,
        model_hash=message.model_hash,
        horizon=message.horizon,
        period_ns=message.period_ns,
        expert_steps=message.expert_steps,
        min_delay=message.min_delay,
        max_delay=message.max_delay,
        shared_frames=message.shared_frames,
        protocol=message.protocol,
    )
    _check_opened(opened)
    return opened


def _check_opened(message: Opened) -> None:
    check_text("opened.strategy", message.strategy)
    check_text("opened.prompt", message.prompt, MAX_PROMPT_CHARS)
    _check_names("opened.state_names", message.state_names, MAX_DIMENSIONS)
    _check_names("opened.action_names", message.action_names, MAX_DIMENSIONS)
    _check_names("opened.camera_names", message.camera_names, MAX_CAMERAS)
    check_range("opened.period_ns", message.period_ns, 1, MAX_COUNT)
    _check_policy("opened", message)


def encode_description(message: Description) -> pb.DescribeReply:
    """Encodes a Description.

    Raises:
        OnsetError: A field is not allowed.
    """
    _check_description(message)
    return pb.DescribeReply(
        protocol=message.protocol,
        model=message.model,
        model_hash=message.model_hash,
        prompts=message.prompts,
        horizon=message.horizon,
        robot=encode_robot(message.robot),
        strategies=message.strategies,
        expert_steps=message.expert_steps,
        min_delay=message.min_delay,
        max_delay=message.max_delay,
    )


def decode_description(message: pb.DescribeReply) -> Description:
    """Decodes a Description.

    Raises:
        OnsetError: A field is not allowed, or the protocol is another one.
    """
    check_range("describe.protocol", message.protocol, PROTOCOL_VERSION, PROTOCOL_VERSION)
    description = Description(
        model=message.model,
        model_hash=message.model_hash,
        prompts=tuple(message.prompts),
        horizon=message.horizon,
        robot=decode_robot(message.robot),
        strategies=tuple(message.strategies),
        expert_steps=message.expert_steps,
        min_delay=message.min_delay,
        max_delay=message.max_delay,
        protocol=message.protocol,
    )
    _check_description(description)
    return description


def _check_description(message: Description) -> None:
    check_size("describe.prompts", len(message.prompts), MAX_PROMPTS)
    for prompt in message.prompts:
        check_text("describe.prompts", prompt, MAX_PROMPT_CHARS)
    _check_names("describe.strategies", message.strategies, MAX_STRATEGIES)
    _check_policy("describe", message)


def _check_policy(where: str, message: Opened | Description) -> None:
    check_text(f"{where}.model", message.model)
    check_text(f"{where}.model_hash", message.model_hash)
    check_range(f"{where}.horizon", message.horizon, 1, MAX_HORIZON)
    check_range(f"{where}.expert_steps", message.expert_steps, 1, MAX_HORIZON)
    check_range(f"{where}.max_delay", message.max_delay, 0, MAX_HORIZON)
    check_range(f"{where}.min_delay", message.min_delay, 0, message.max_delay)


def _check_names(field: str, names: Sequence[str], limit: int) -> None:
    check_size(field, len(names), limit, least=1)
    for name in names:
        check_text(field, name)
