"""Slices, notices and errors to protobuf and back."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from controller.bounds import MAX_COUNT, MAX_HORIZON, MAX_TEXT_CHARS, check_range, check_rows
from controller.codec_robot import from_enum
from controller.errors import ErrorCode, OnsetError
from controller.messages import Notice, NoticeKind
from controller.types import ActionSlice, CacheFigures, RobotSpec, Timing
from onset.v1 import policy_pb2 as pb

_NOTICE_TO_PB = {kind: getattr(pb, f"NOTICE_KIND_{kind.name}") for kind in NoticeKind}
_NOTICE_FROM_PB = {number: kind for kind, number in _NOTICE_TO_PB.items()}
_ERROR_TO_PB = {code: getattr(pb, f"ERROR_CODE_{code.name}") for code in ErrorCode}
_ERROR_FROM_PB = {number: code for code, number in _ERROR_TO_PB.items()}


def encode_slice(piece: ActionSlice, robot: RobotSpec) -> pb.ActionSlice:
    """Encodes a slice.

    Raises:
        OnsetError: A shape, step or value is not allowed.
    """
    _check_slice(piece, robot)
    timing, cache = piece.timing, piece.cache
    return pb.ActionSlice(
        observation_id=piece.observation_id,
        start_step=piece.start_step,
        steps=piece.steps.tolist(),
        actions=piece.actions.ravel().tolist(),
        final=piece.final,
        timing=pb.Timing(
            queue_ns=timing.queue_ns,
            decode_ns=timing.decode_ns,
            encode_ns=timing.encode_ns,
            expert_ns=timing.expert_ns,
            total_ns=timing.total_ns,
            expert_steps=timing.expert_steps,
        ),
        cache=None
        if cache is None
        else pb.CacheFigures(
            rows=cache.rows,
            rows_computed=cache.rows_computed,
            max_age=cache.max_age,
            dense_reason=cache.dense_reason[:MAX_TEXT_CHARS],
            base_observation_id=cache.base_id,
        ),
    )


def decode_slice(message: pb.ActionSlice, robot: RobotSpec) -> ActionSlice:
    """Decodes a slice.

    Raises:
        OnsetError: A shape, step or value is not allowed.
    """
    timing, cache = message.timing, message.cache
    count, width = len(message.steps), len(robot.action)
    if len(message.actions) != count * width:
        raise OnsetError(
            ErrorCode.BAD_SHAPE,
            "slice.actions",
            f"{len(message.actions)} values",
            f"{count} steps * {width} dimensions",
            observation_id=message.observation_id,
        )
    piece = ActionSlice(
        observation_id=message.observation_id,
        start_step=message.start_step,
        steps=np.array(message.steps[:], dtype=np.int64),
        actions=np.array(message.actions[:], dtype=np.float32).reshape(count, width),
        final=message.final,
        timing=Timing(
            queue_ns=timing.queue_ns,
            decode_ns=timing.decode_ns,
            encode_ns=timing.encode_ns,
            expert_ns=timing.expert_ns,
            total_ns=timing.total_ns,
            expert_steps=timing.expert_steps,
        ),
        cache=CacheFigures(
            rows=cache.rows,
            rows_computed=cache.rows_computed,
            max_age=cache.max_age,
            dense_reason=cache.dense_reason,
            base_id=cache.base_observation_id,
        )
        if message.HasField("cache")
        else None,
    )
    _check_slice(piece, robot)
    return piece


def _check_slice(piece: ActionSlice, robot: RobotSpec) -> None:
    try:
        check_range("slice.observation_id", piece.observation_id, 0, MAX_COUNT)
        check_range("slice.start_step", piece.start_step, 0, MAX_COUNT)
        _check_steps(piece.steps, piece.start_step)
        check_rows("slice.actions", piece.actions, robot.action_names)
        if len(piece.actions) != len(piece.steps):
            raise OnsetError(
                ErrorCode.BAD_SHAPE,
                "slice.actions",
                f"{len(piece.actions)} rows",
                f"one per step: {len(piece.steps)}",
            )
    except OnsetError as error:
        error.observation_id = piece.observation_id
        raise


def _check_steps(steps: NDArray[np.int64], start_step: int) -> None:
    if steps.ndim != 1 or not 1 <= len(steps) <= MAX_HORIZON:
        code = ErrorCode.TOO_LARGE if steps.size > MAX_HORIZON else ErrorCode.BAD_SHAPE
        raise OnsetError(
            code, "slice.steps", f"shape {steps.shape}", f"(n,), n in 1..{MAX_HORIZON}"
        )
    last_allowed = start_step + MAX_HORIZON - 1
    if steps[0] < start_step or steps[-1] > last_allowed or (steps[1:] <= steps[:-1]).any():
        raise OnsetError(
            ErrorCode.BAD_VALUE,
            "slice.steps",
            steps.tolist(),
            f"increasing steps in {start_step}..{last_allowed}",
        )


def encode_notice(notice: Notice) -> pb.Notice:
    """Encodes a notice; a message past MAX_TEXT_CHARS is cut."""
    return pb.Notice(
        kind=_NOTICE_TO_PB[notice.kind],
        message=notice.message[:MAX_TEXT_CHARS],
        observation_id=notice.observation_id,
    )


def decode_notice(message: pb.Notice) -> Notice:
    """Decodes a notice.

    Raises:
        OnsetError: BAD_VALUE when its kind is unknown.
    """
    return Notice(
        kind=from_enum("notice.kind", message.kind, _NOTICE_FROM_PB),
        message=message.message[:MAX_TEXT_CHARS],
        observation_id=message.observation_id,
    )


def encode_error(error: OnsetError) -> pb.Error:
    """Encodes an error; texts past MAX_TEXT_CHARS are cut."""
    return pb.Error(
        code=_ERROR_TO_PB[error.code],
        field=error.field[:MAX_TEXT_CHARS],
        given=error.given[:MAX_TEXT_CHARS],
        allowed=error.allowed[:MAX_TEXT_CHARS],
        fatal=error.fatal,
        observation_id=error.observation_id,
    )


def decode_error(message: pb.Error) -> OnsetError:
    """Decodes an error; the result is returned, not raised.

    Raises:
        OnsetError: BAD_VALUE when its code is unknown.
    """
    return OnsetError(
        from_enum("error.code", message.code, _ERROR_FROM_PB),
        message.field[:MAX_TEXT_CHARS],
        message.given[:MAX_TEXT_CHARS],
        message.allowed[:MAX_TEXT_CHARS],
        fatal=message.fatal,
        observation_id=message.observation_id,
    )
