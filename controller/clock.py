"""Time sources. Everything downstream takes ``now_ns`` as an argument and reads no clock."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """A monotonic clock in integer nanoseconds."""

    def now_ns(self) -> int: ...

    def sleep_until_ns(self, deadline_ns: int) -> None: ...

    def spin_until_ns(self, deadline_ns: int) -> None: ...


class MonotonicClock:
    """The machine's monotonic clock."""

    def now_ns(self) -> int:
        return time.monotonic_ns()

    def sleep_until_ns(self, deadline_ns: int) -> None:
        """Sleeps until the absolute deadline; returns at once when it has passed."""
        remaining = deadline_ns - time.monotonic_ns()
        if remaining > 0:
            time.sleep(remaining * 1e-9)

    def spin_until_ns(self, deadline_ns: int) -> None:
        """Waits without giving up the CPU; for some microseconds."""
        while time.monotonic_ns() < deadline_ns:
            pass


class ManualClock:
    """Virtual time: it advances only when told to."""

    def __init__(self, start_ns: int = 0) -> None:
        self._now_ns = start_ns

    def now_ns(self) -> int:
        return self._now_ns

    def sleep_until_ns(self, deadline_ns: int) -> None:
        self._now_ns = max(self._now_ns, deadline_ns)

    spin_until_ns = sleep_until_ns
