"""Action quantization: several actions of a chunk merged into one, and the limit that then holds.

With q = 2 the arm goes through a chunk in half the time. Groups are counted from the chunk's own
first action, so the phase is the same in every chunk; the last group may be incomplete::

    index               0    1    2    3    4    5    6
    absolute            p0   p1   p2   p3   p4   p5   p6
                        |---------|---------|---------|----|
    q = 2                    p1        p3        p5     p6
    deltas, q = 2          d0+d1     d2+d3     d4+d5    d6

Twice as far per step is twice the commanded speed. What no longer fits the joints' velocity is cut
short, step by step, because each limit begins where the step before has ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from controller.bounds import MAX_COUNT, MAX_HORIZON, check_range, check_rows
from controller.errors import ErrorCode, OnsetError
from controller.types import ActionKind, ActionSlice, Dimension, Float, RobotSpec

_GRIPPER_UNIT = "1"


def speed_up(actions: Float, q: int, dimensions: Sequence[Dimension]) -> Float:
    """Merges each q actions of a whole chunk into one.

    Of absolute positions, and of deltas to the observation's state, the last of a group stays.
    Deltas to the previous action are summed. Of a gripper (unit "1") the last value stays
    whatever its kind: it is a state to be in, and no way to go.

    Args:
        actions: A chunk from its first action on. Shape (n, A), in the dimensions' units.
        q: Actions merged into one, >= 1.
        dimensions: The action dimensions, in order. Length A.

    Returns:
        The merged actions. Shape (ceil(n / q), A). Where q does not divide n, the last one stands
        for the fewer than q actions that are left.

    Raises:
        OnsetError: BAD_VALUE when q is out of range, BAD_SHAPE for another width, NON_FINITE for
            NaN or infinity.
    """
    check_range("q", q, 1, MAX_HORIZON)
    rows = check_rows("actions", actions, [d.name for d in dimensions])
    first = np.arange(0, len(rows), q)
    last = np.minimum(first + q, len(rows)) - 1
    summed = [d.kind is ActionKind.DELTA_PREVIOUS and d.unit != _GRIPPER_UNIT for d in dimensions]
    return np.where(summed, np.add.reduceat(rows, first, axis=0), rows[last])


def speed_up_slice(piece: ActionSlice, q: int, continued: int = 0) -> ActionSlice:
    """A slice of absolute actions of a chunk, each q of which become one step.

    Groups are counted from the chunk's first free step, so slices of one chunk fit together
    however it was cut. Of each group the last action stays; one that has no such action is left
    out.

    Args:
        piece: At the policy's steps.
        q: Actions merged into one, >= 1.
        continued: Actions that the chunk continues: a step of the robot's each, not merged.
    """
    if q == 1:
        return piece
    first = piece.start_step + continued
    group, place = np.divmod(piece.steps - first, q)
    last = place == q - 1
    return replace(piece, steps=first + group[last], actions=piece.actions[last])


@dataclass(frozen=True)
class VelocityLimits:
    """How fast each action dimension may change, in its unit per second.

    Attributes:
        lower: Least velocity, <= 0; -inf where the robot declares none. Shape (A,).
        upper: Greatest velocity, >= 0; inf where the robot declares none. Shape (A,).
    """

    lower: Float
    upper: Float


def velocity_limits(spec: RobotSpec) -> VelocityLimits:
    """Takes the limits of an action ``<joint>.pos`` from the state dimension ``<joint>.vel``.

    Raises:
        OnsetError: BAD_VALUE when a velocity has another unit than the action's per second, or
            its limits do not allow standing still.
    """
    velocities = {d.name: d for d in spec.state}
    lower = np.full(len(spec.action), -np.inf, dtype=np.float32)
    upper = np.full(len(spec.action), np.inf, dtype=np.float32)
    for index, action in enumerate(spec.action):
        velocity = velocities.get(action.name.removesuffix(".pos") + ".vel")
        if velocity is None:
            continue
        if velocity.unit != f"{action.unit}/s":
            raise OnsetError(
                ErrorCode.BAD_VALUE,
                f"robot.state[{velocity.name}].unit",
                velocity.unit,
                f"{action.unit}/s",
            )
        if not velocity.lower <= 0.0 <= velocity.upper:
            raise OnsetError(
                ErrorCode.BAD_VALUE,
                f"robot.state[{velocity.name}].limits",
                f"[{velocity.lower}, {velocity.upper}]",
                "limits with 0 between them",
            )
        lower[index], upper[index] = velocity.lower, velocity.upper
    return VelocityLimits(lower, upper)


def limit_step(
    start: Float, action: Float, limits: VelocityLimits, duration_ns: int
) -> tuple[Float, bool]:
    """Cuts a step short where it would be faster than the limits.

    Args:
        start: Set-point where the step begins, absolute. Shape (A,).
        action: Set-point where it shall end, absolute and finite. Shape (A,).
        limits: Velocities allowed.
        duration_ns: How long the step takes [ns]: a policy period, or what is left of it.

    Returns:
        The set-point that can be reached, and whether it is another than ``action``. Shape (A,).
        A change keeps to ``velocity * duration`` within float32's rounding.

    Raises:
        OnsetError: BAD_VALUE when the duration is not positive.
    """
    seconds = np.float32(check_range("duration_ns", duration_ns, 1, MAX_COUNT) * 1e-9)
    least, most = start + limits.lower * seconds, start + limits.upper * seconds
    reached = np.clip(action, least, most).astype(np.float32)
    return reached, bool((reached != action).any())
