"""Messages to protobuf and back, checked for names, shapes, finite values and sizes.

Both directions check, so that a fault shows where it was made. Frames are decoded apart from the
rest: a server does that off its event loop.
"""

from __future__ import annotations

from concurrent.futures import Executor

from controller.bounds import MAX_PROMPT_CHARS, check_text
from controller.codec_observation import (
    check_observation,
    decode_frames,
    decode_observation,
    encode_observation,
)
from controller.codec_reply import (
    decode_error,
    decode_notice,
    decode_slice,
    encode_error,
    encode_notice,
    encode_slice,
)
from controller.codec_robot import (
    decode_description,
    decode_open,
    decode_opened,
    encode_description,
    encode_open,
    encode_opened,
)
from controller.errors import ErrorCode, OnsetError
from controller.messages import ClientMessage, Close, Notice, Open, Opened, Reset, ServerMessage
from controller.shared_frames import SharedFramesWriter
from controller.types import Observation, RobotSpec
from onset.v1 import policy_pb2 as pb

__all__ = [
    "check_observation",
    "decode_client",
    "decode_description",
    "decode_frames",
    "decode_server",
    "encode_client",
    "encode_description",
    "encode_server",
]


def encode_client(
    message: ClientMessage,
    robot: RobotSpec,
    *,
    checked: bool = False,
    helpers: Executor | None = None,
    shared: SharedFramesWriter | None = None,
) -> pb.ClientMessage:
    """Encodes what a robot sends.

    Args:
        message: What is to be sent.
        robot: What was agreed.
        checked: Whether it is an observation that ``check_observation`` has passed already.
        helpers: Threads that compress its frames as well; this one alone when None.
        shared: Where its frames are put instead, as they are.

    Raises:
        OnsetError: A field is not allowed; it names the field.
    """
    if isinstance(message, Observation):
        if not checked:
            check_observation(message, robot)
        return pb.ClientMessage(observation=encode_observation(message, robot, helpers, shared))
    if isinstance(message, Open):
        return pb.ClientMessage(open=encode_open(message))
    if isinstance(message, Reset):
        _check_reset(message)
        return pb.ClientMessage(reset=pb.Reset(episode=message.episode, prompt=message.prompt))
    return pb.ClientMessage(close=pb.Close())


def decode_client(message: pb.ClientMessage, robot: RobotSpec | None) -> ClientMessage:
    """Decodes what a robot sends; an observation without its frames, see ``decode_frames``.

    Args:
        message: As received.
        robot: What Open agreed on; None before Open.

    Raises:
        OnsetError: A field is not allowed. Fatal for Open and for anything before it.
    """
    which = message.WhichOneof("message")
    if which is None:
        raise OnsetError(
            ErrorCode.BAD_VALUE, "message", "none", "open, observation, reset or close"
        )
    if which == "open":
        if robot is not None:
            raise OnsetError(ErrorCode.ALREADY_OPEN, "open", "a second open", "reset or close")
        try:
            return decode_open(message.open)
        except OnsetError as error:
            error.fatal = True
            raise
    if robot is None:
        raise OnsetError(ErrorCode.NOT_OPEN, which, f"{which} before open", "open", fatal=True)
    if which == "observation":
        return decode_observation(message.observation, robot)
    if which == "reset":
        reset = Reset(episode=message.reset.episode, prompt=message.reset.prompt)
        _check_reset(reset)
        return reset
    return Close()


def _check_reset(message: Reset) -> None:
    check_text("reset.episode", message.episode)
    check_text("reset.prompt", message.prompt, MAX_PROMPT_CHARS)


def encode_server(message: ServerMessage, robot: RobotSpec | None) -> pb.ServerMessage:
    """Encodes what a server sends. ``robot`` may be None for all but a slice.

    Raises:
        OnsetError: A field is not allowed; it names the field.
    """
    if isinstance(message, OnsetError):
        return pb.ServerMessage(error=encode_error(message))
    if isinstance(message, Opened):
        return pb.ServerMessage(opened=encode_opened(message))
    if isinstance(message, Notice):
        return pb.ServerMessage(notice=encode_notice(message))
    if robot is None:
        raise OnsetError(ErrorCode.NOT_OPEN, "slice", "a slice before open", "opened or error")
    return pb.ServerMessage(slice=encode_slice(message, robot))


def decode_server(message: pb.ServerMessage, robot: RobotSpec) -> ServerMessage:
    """Decodes what a server sends. An Error comes back as an OnsetError, returned not raised.

    Raises:
        OnsetError: A field is not allowed; it names the field.
    """
    which = message.WhichOneof("message")
    if which == "slice":
        return decode_slice(message.slice, robot)
    if which == "opened":
        return decode_opened(message.opened)
    if which == "notice":
        return decode_notice(message.notice)
    if which == "error":
        return decode_error(message.error)
    raise OnsetError(ErrorCode.BAD_VALUE, "message", "none", "opened, slice, notice or error")
