"""Bounds of the wire, the same figures as in ``policy.proto``, and the checks that hold them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from controller.errors import ErrorCode, OnsetError
from controller.types import Float, RobotSpec

PROTOCOL_VERSION = 1
MAX_DIMENSIONS = 128
MAX_HORIZON = 1024
MAX_CAMERAS = 16
MAX_LAGS = 8
MAX_FRAME_SIDE = 4096
MAX_FRAME_BYTES = 8 * 1024 * 1024
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
MAX_PROMPT_CHARS = 512
MAX_NAME_CHARS = 128
MAX_TEXT_CHARS = 1024
MAX_STRATEGIES = 32
MAX_PROMPTS = 1024
MAX_COUNT = 2**62


def check_text(field: str, value: str, limit: int = MAX_NAME_CHARS) -> str:
    """Returns ``value`` when it holds 1..limit characters.

    Raises:
        OnsetError: BAD_VALUE when it is empty, TOO_LARGE when it is longer.
    """
    if not value:
        raise OnsetError(ErrorCode.BAD_VALUE, field, "''", f"1..{limit} characters")
    if len(value) > limit:
        raise OnsetError(
            ErrorCode.TOO_LARGE, field, f"{len(value)} characters", f"1..{limit} characters"
        )
    return value


def check_range[N: (int, float)](field: str, value: N, lower: N, upper: N) -> N:
    """Returns ``value`` when it lies in ``lower..upper``.

    Raises:
        OnsetError: BAD_VALUE when it does not.
    """
    if not lower <= value <= upper:
        raise OnsetError(ErrorCode.BAD_VALUE, field, value, f"{lower}..{upper}")
    return value


def check_size(field: str, size: int, limit: int, *, least: int = 0) -> int:
    """Returns ``size`` when it lies in ``least..limit``.

    Raises:
        OnsetError: TOO_LARGE above the limit, BAD_SHAPE below ``least``.
    """
    if size > limit:
        raise OnsetError(ErrorCode.TOO_LARGE, field, size, f"{least}..{limit}")
    if size < least:
        raise OnsetError(ErrorCode.BAD_SHAPE, field, size, f"{least}..{limit}")
    return size


def check_vector(field: str, values: NDArray[np.floating], names: Sequence[str]) -> Float:
    """Returns one finite value per name. Shape (len(names),), float32.

    Raises:
        OnsetError: BAD_SHAPE for another length, NON_FINITE for NaN or infinity.
    """
    array = _as_float32(values)
    if array.shape != (len(names),):
        raise OnsetError(
            ErrorCode.BAD_SHAPE, field, f"shape {array.shape}", f"({len(names)},): {list(names)}"
        )
    return _check_finite(field, array, names)


def check_rows(field: str, values: NDArray[np.floating], names: Sequence[str]) -> Float:
    """Returns rows of one finite value per name. Shape (n, len(names)), float32.

    Raises:
        OnsetError: BAD_SHAPE for another width, NON_FINITE for NaN or infinity.
    """
    array = _as_float32(values)
    if array.ndim != 2 or array.shape[1] != len(names):
        raise OnsetError(
            ErrorCode.BAD_SHAPE, field, f"shape {array.shape}", f"(n, {len(names)}): {list(names)}"
        )
    return _check_finite(field, array, names)


def _as_float32(values: NDArray[np.floating]) -> Float:
    if values.dtype == np.float32:
        return values
    with np.errstate(over="ignore"):  # becomes infinite, which is refused
        return np.asarray(values, dtype=np.float32)


def _check_finite(field: str, array: Float, names: Sequence[str]) -> Float:
    finite = np.isfinite(array)
    if not finite.all():
        index = tuple(np.argwhere(~finite)[0])
        raise OnsetError(
            ErrorCode.NON_FINITE,
            f"{field}[{names[index[-1]]}]",
            array[index],
            "finite values",
        )
    return array


def check_agreement(given: RobotSpec, expected: RobotSpec) -> None:
    """Checks that a robot is one that a policy was made for.

    Names, units, action kinds and their order, camera sizes and lags, and the period must be the
    same. Limits and frame encodings may differ: they are the robot's own.

    Raises:
        OnsetError: BAD_NAMES, BAD_SHAPE or BAD_VALUE, fatal, with both sides in the message.
    """
    pairs = (
        (ErrorCode.BAD_NAMES, "state", given.state_names, expected.state_names),
        (ErrorCode.BAD_NAMES, "action", given.action_names, expected.action_names),
        (ErrorCode.BAD_NAMES, "cameras", _camera_names(given), _camera_names(expected)),
        (ErrorCode.BAD_VALUE, "state.unit", _units(given, 0), _units(expected, 0)),
        (ErrorCode.BAD_VALUE, "action.unit", _units(given, 1), _units(expected, 1)),
        (ErrorCode.BAD_VALUE, "action.kind", _kinds(given), _kinds(expected)),
        (ErrorCode.BAD_SHAPE, "cameras.size", _sizes(given), _sizes(expected)),
        (ErrorCode.BAD_VALUE, "cameras.lags", _lags(given), _lags(expected)),
        (ErrorCode.BAD_VALUE, "period_ns", given.period_ns, expected.period_ns),
    )
    for code, name, ours, theirs in pairs:
        if ours != theirs:
            raise OnsetError(code, f"open.robot.{name}", ours, theirs, fatal=True)


def _camera_names(spec: RobotSpec) -> tuple[str, ...]:
    return tuple(camera.name for camera in spec.cameras)


def _units(spec: RobotSpec, which: int) -> tuple[str, ...]:
    return tuple(f"{d.name}[{d.unit}]" for d in (spec.state, spec.action)[which])


def _kinds(spec: RobotSpec) -> tuple[str, ...]:
    return tuple(f"{d.name}:{d.kind}" for d in spec.action)


def _sizes(spec: RobotSpec) -> tuple[str, ...]:
    return tuple(f"{c.name} {c.height}x{c.width}" for c in spec.cameras)


def _lags(spec: RobotSpec) -> tuple[str, ...]:
    return tuple(f"{c.name} {list(c.lags)}" for c in spec.cameras)
