"""How a call of gRPC ends, told in two ways: opening again may mend it, or will not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import grpc
import grpc.aio

from controller.errors import ErrorCode, OnsetError
from controller.messages import Open, Opened

_LOST_CODES = {
    grpc.StatusCode.OK,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
}


class Lost(Exception):
    """The session ended in a way that opening again may mend."""


async def guard[T](call: grpc.aio.StreamStreamCall, operation: Awaitable[T]) -> T:
    """Awaits an operation on a call, and turns each way in which a call ends into one of two.

    Raises:
        Lost: Opening again may mend it.
        OnsetError: It will not; fatal.
    """
    try:
        return await operation
    except grpc.aio.AioRpcError as error:
        code, details = error.code(), error.details()
    except asyncio.InvalidStateError:
        code, details = await call.code(), await call.details()
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise  # this task was cancelled, not the call
        code, details = grpc.StatusCode.CANCELLED, ""
    if code in _LOST_CODES:
        raise Lost(f"{code.name}: {details}")
    raise OnsetError(
        ErrorCode.INTERNAL,
        "session.status",
        f"{code.name}: {details}",
        "a status that opening again may mend",
        fatal=True,
    )


def check_opened(opened: Opened, opening: Open) -> None:
    """Checks that the server has understood what it was told.

    Raises:
        OnsetError: BAD_NAMES, fatal.
    """
    robot = opening.robot
    pairs = (
        ("state_names", opened.state_names, robot.state_names),
        ("action_names", opened.action_names, robot.action_names),
        ("camera_names", opened.camera_names, tuple(c.name for c in robot.cameras)),
        ("period_ns", opened.period_ns, robot.period_ns),
        ("strategy", opened.strategy, opening.strategy),
    )
    for name, given, expected in pairs:
        if given != expected:
            raise OnsetError(ErrorCode.BAD_NAMES, f"opened.{name}", given, expected, fatal=True)
    if opened.shared_frames and not opening.shared_frames:
        raise OnsetError(
            ErrorCode.BAD_VALUE, "opened.shared_frames", True, "false: none offered", fatal=True
        )
