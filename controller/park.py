"""The way to the park pose: slow, straight in joint space, from rest to rest."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from controller.errors import ErrorCode, OnsetError
from controller.limits import MotionLimits

Array = NDArray[np.float64]

# Greatest velocity, acceleration and jerk of x(u) = u^3 (10 - 15 u + 6 u^2), u in 0..1.
_PEAK_VELOCITY = 1.875
_PEAK_ACCELERATION = 5.7735027  # 10 / sqrt(3)
_PEAK_JERK = 60.0


class ParkMotion:
    """From one pose to another along the polynomial of least jerk.

    All joints arrive together; the slowest one sets the time.
    """

    def __init__(
        self, start: Array, end: Array, limits: MotionLimits, begin_ns: int, share: float = 0.2
    ) -> None:
        """Args:
        start: Where the arm stands. Shape (A,).
        end: The park pose. Shape (A,).
        limits: Of the motion.
        begin_ns: When it begins [ns].
        share: Share of the limits of velocity, acceleration and jerk that is used.

        Raises:
            OnsetError: BAD_VALUE when the share is out of range.
        """
        if not 0 < share <= 1:
            raise OnsetError(ErrorCode.BAD_VALUE, "park.share", share, "0 < share <= 1")
        self._start, self._away = start.copy(), end - start
        far = np.abs(self._away)
        seconds = np.stack(
            [
                _PEAK_VELOCITY * far / (share * limits.velocity),
                np.sqrt(_PEAK_ACCELERATION * far / (share * limits.acceleration)),
                np.cbrt(_PEAK_JERK * far / (share * limits.jerk)),  # the longest of a short way
            ]
        )
        self.begin_ns, self._seconds = begin_ns, max(float(seconds.max()), 1e-3)

    @property
    def duration_ns(self) -> int:
        """How long it takes [ns]."""
        return round(self._seconds * 1e9)

    def at(self, now_ns: int) -> tuple[Array, Array]:
        """Position and velocity at an instant. Each of shape (A,)."""
        u = min(max((now_ns - self.begin_ns) * 1e-9 / self._seconds, 0.0), 1.0)
        share = u**3 * (10 - 15 * u + 6 * u * u)
        rate = 30 * u * u * (1 - u) ** 2 / self._seconds
        return self._start + share * self._away, rate * self._away
