"""Policy-rate actions to a smooth motion: preview control, a smoothing spline made as time goes on.

The reference goes straight from action to action, and of it the next few steps are known: they
stand in the plan. Every control period the jerk is chosen that minimises, over all time to come,

    sum over ticks of (position - reference)^2 + weight * jerk^2

for a motion of piecewise constant jerk, so of cubics, continuous up to the acceleration. The
solution is linear (Tomizuka, J. Dyn. Sys. Meas. Control 97, 1975): state feedback and a weight for
each tick of the reference ahead::

    action     a_{k-1}        a_k          a_{k+1}
    reference     o------------o--------------o------ held
    weights                 |..::||||||||::....|          those of the ticks ahead
                          tick

What the plan knows, the motion begins early, without lag; the scatter of a policy's actions, step
by step and from chunk to chunk, is smoothed over about 1 / bandwidth. To what nobody could know, a
new chunk that says something else, it answers like a Butterworth filter of third order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from controller.errors import ErrorCode, OnsetError

Array = NDArray[np.float64]

_HORIZON = 6.0  # of the preview, in units of 1 / bandwidth: the weight beyond is below 1 %
_ITERATIONS = 64  # of the doubling algorithm, which squares its error each time


class PreviewTracker:
    """The jerk that takes a motion along a reference of which the next ticks are known.

    Attributes:
        ticks: How many ticks of the reference are looked at, from the next on.
        feedback: Weights of position, velocity and acceleration. Shape (3,).
        weights: Weights of the reference at the next ticks. Shape (ticks,).
    """

    def __init__(self, period_ns: int, bandwidth: float) -> None:
        """Solves the control problem once.

        Args:
            period_ns: Control period [ns].
            bandwidth: Of the response to what is not known beforehand [rad/s]; at most half the
                control rate.

        Raises:
            OnsetError: BAD_VALUE when an argument is out of range.
        """
        if period_ns <= 0:
            raise OnsetError(ErrorCode.BAD_VALUE, "period_ns", period_ns, "a positive duration")
        t = period_ns * 1e-9
        if not 0 < bandwidth * t <= 0.5:
            raise OnsetError(
                ErrorCode.BAD_VALUE,
                "bandwidth",
                f"{bandwidth} rad/s",
                f"0 < bandwidth <= {0.5 / t:.4g} rad/s at this control rate",
            )
        # In units of 1 / bandwidth the numbers are near 1, and the weight of the jerk is 1.
        tick = bandwidth * t
        a = np.array([[1, tick, tick**2 / 2], [0, 1, tick], [0, 0, 1.0]])
        b = np.array([tick**3 / 6, tick**2 / 2, tick])
        seen = np.array([1.0, 0.0, 0.0])
        p = _riccati(a, b[:, None], np.outer(seen, seen), 1.0)
        gain = 1.0 + b @ p @ b
        k = (b @ p @ a) / gain
        closed = a - np.outer(b, k)
        self.ticks = max(2, round(_HORIZON / tick))
        weights, ahead = np.empty(self.ticks), seen
        for i in range(self.ticks):
            weights[i] = b @ ahead / gain
            ahead = closed.T @ ahead
        # What lies beyond is held to be the last one seen, so that a constant is met exactly.
        weights[-1] += k[0] - weights.sum()
        self.feedback = k * bandwidth ** np.array([3.0, 2.0, 1.0])
        self.weights = weights * bandwidth**3


def _riccati(a: Array, b: Array, q: Array, r: float) -> Array:
    """The discrete algebraic Riccati equation, by the structure-preserving doubling algorithm."""
    g, h, eye = b @ b.T / r, q, np.eye(len(a))
    for _ in range(_ITERATIONS):
        inverse = np.linalg.inv(eye + g @ h)
        a, g, h, before = (
            a @ inverse @ a,
            g + a @ inverse @ g @ a.T,
            h + a.T @ h @ inverse @ a,
            h,
        )
        if np.allclose(h, before, rtol=1e-13, atol=0):
            break
    return h


def between(at: NDArray[np.floating], knots: int) -> tuple[NDArray[np.int64], Array]:
    """The knot before each time, and the share of the way on to the next one.

    Args:
        at: Since the first knot [steps]; beyond the last knot this one is held. Shape (n,).
        knots: How many there are, >= 2.

    Returns:
        Each of shape (n,).
    """
    at = np.minimum(at, knots - 1)
    low = np.minimum(at.astype(np.int64), knots - 2)
    return low, np.asarray(at - low, dtype=np.float64)


def sample_weights(elapsed: float, ticks: int, tick: float, knots: int) -> Array:
    """A reference that goes straight from knot to knot, at the next ticks, as weights of the knots.

    Args:
        elapsed: Of the step under way [steps].
        ticks: How many.
        tick: From one to the next [steps].
        knots: How many knots there are, >= 2: where the step under way began and ends, and the
            ends of those behind it. The last one is held.

    Returns:
        Shape (ticks, knots).
    """
    low, share = between(elapsed + tick * np.arange(1, ticks + 1), knots)
    weights, rows = np.zeros((ticks, knots)), np.arange(ticks)
    weights[rows, low] = 1 - share
    weights[rows, low + 1] = share
    return weights
