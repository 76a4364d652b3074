"""Policy-rate actions to control-rate set-points.

The action of step k is the set-point to be reached at the *end* of step k. Inside the step the
set-point goes to it in a straight line from where the step before ended::

    set-point
        a_k  ............................o      o  set-point at the end of a step
                                    x    |      x  set-points written, here 4 per step
                               x         |
                          x              |
    a_{k-1}  ........o                   |
                     |----- step k ------|----> time
                     |    |    |    |         ticks

A set-point written at a tick is the one to be reached when the next tick comes. So the last tick
of step k writes a_k, and with one tick per step every tick writes its action whole.
"""

from __future__ import annotations

import numpy as np

from controller.types import Float


def set_point(
    start: Float, action: Float, elapsed_ns: int, control_period_ns: int, period_ns: int
) -> Float:
    """Returns the set-point to write at a tick. Shape (A,).

    Args:
        start: Set-point at the beginning of the step. Shape (A,).
        action: Set-point at its end. Shape (A,).
        elapsed_ns: Time since the step began [ns].
        control_period_ns: Time until the next tick [ns].
        period_ns: Length of the step [ns].
    """
    fraction = min((elapsed_ns + control_period_ns) / period_ns, 1.0)
    if fraction == 1.0:
        return action
    return (start + np.float32(fraction) * (action - start)).astype(np.float32, copy=False)
