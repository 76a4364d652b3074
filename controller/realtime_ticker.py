"""Absolute deadlines, and how late each was met."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple, Self

from controller.bounds import check_range
from controller.clock import Clock
from controller.errors import ErrorCode, OnsetError


class Tick(NamedTuple):
    """One deadline that was met.

    Attributes:
        deadline_ns: When it was due [ns], the clock's.
        late_ns: How long after that it began [ns]; less than a period.
        missed: Deadlines left out right before it, since their whole period had passed [count].
    """

    deadline_ns: int
    late_ns: int
    missed: int


class Ticker:
    """Waits for one deadline after the other, each a period behind the one before.

    The deadlines are absolute, so that lateness does not add up. Deadlines wholly past are left
    out and counted as missed: a loop that was held up does not hurry through what it could not do
    in time, and keeps its phase::

        deadlines   0     1     2     3     4
        work        000   1111111111111133  44
                                      1 took long: 2 is missed, 3 is late, 4 is on time

    By itself it does not spin for the last microseconds. At a real-time priority that takes the
    CPU from all else that runs there, and saves the tens of microseconds in which a sleeping
    real-time thread wakes, a hundredth of a period. What is done ``before`` a deadline to warm the
    caches would be lost in a sleep, so it begins as late as it can, and the rest is spun.
    """

    def __init__(
        self,
        clock: Clock,
        period_ns: int,
        *,
        start_ns: int | None = None,
        before: Callable[[], None] | None = None,
    ) -> None:
        """Makes a ticker.

        Args:
            clock: Where time comes from; may be virtual.
            period_ns: From one deadline to the next [ns].
            start_ns: The first deadline [ns]; None for now.
            before: Called shortly before each deadline, so that it has just returned by then;
                left out where time is short.

        Raises:
            OnsetError: BAD_VALUE when the period is not positive.
        """
        self._clock = clock
        self._period_ns = check_range("ticker.period_ns", period_ns, 1, 2**62)
        self._next_ns = clock.now_ns() if start_ns is None else start_ns
        self._before, self._lead_ns = before, period_ns / 8

    def __iter__(self) -> Iterator[Tick]:
        return self

    def __next__(self) -> Tick:
        """Sleeps until the next deadline that is not wholly past."""
        if self._before is not None:
            self._prepare(self._before)
        self._clock.sleep_until_ns(self._next_ns)
        late_ns = max(0, self._clock.now_ns() - self._next_ns)
        missed = late_ns // self._period_ns
        deadline_ns = self._next_ns + missed * self._period_ns
        self._next_ns = deadline_ns + self._period_ns
        return Tick(deadline_ns, late_ns - missed * self._period_ns, missed)

    def _prepare(self, before: Callable[[], None]) -> None:
        # The lead goes, by small steps up and down, to what is enough 19 times of 20.
        self._clock.sleep_until_ns(self._next_ns - round(self._lead_ns))
        if self._clock.now_ns() > self._next_ns - self._lead_ns / 2:
            return
        before()
        left_ns = self._next_ns - self._clock.now_ns()
        self._lead_ns += self._period_ns / 256 * (0.95 if left_ns < 0 else -0.05)
        if 0 < left_ns <= self._lead_ns:
            self._clock.spin_until_ns(self._next_ns)


# 16 bins to each doubling from 2^10 ns (1 us) to 2^30 ns (1 s): a bin is at most 1/16 wide. Below
# and above there is one bin each.
_FIRST_BIT, _LAST_BIT, _SUB_BITS = 10, 30, 4
_INNER = (_LAST_BIT - _FIRST_BIT) << _SUB_BITS


class LatenessHistogram:
    """Counts lateness in fixed bins, about evenly spaced in its logarithm.

    ``add`` is a few integer operations and keeps nothing but counts, so that it can stand in a
    control loop for days.
    """

    def __init__(self) -> None:
        self._bins = [0] * (_INNER + 2)
        self._count = 0
        self._missed = 0
        self._max_ns = 0

    def add(self, late_ns: int, missed: int = 0) -> None:
        """Counts one tick.

        Args:
            late_ns: Its lateness [ns]; less than 0 counts as 0.
            missed: Deadlines left out before it [count].
        """
        self._bins[_bin(late_ns)] += 1
        self._count += 1
        self._missed += missed
        if late_ns > self._max_ns:
            self._max_ns = late_ns

    def merge(self, other: LatenessHistogram) -> Self:
        """Adds another histogram's counts to this one."""
        for index, count in enumerate(other._bins):
            self._bins[index] += count
        self._count += other._count
        self._missed += other._missed
        self._max_ns = max(self._max_ns, other._max_ns)
        return self

    @property
    def count(self) -> int:
        """Ticks that took place."""
        return self._count

    @property
    def missed(self) -> int:
        """Deadlines left out; they are in no quantile."""
        return self._missed

    @property
    def missed_fraction(self) -> float:
        """Deadlines left out, of all deadlines; 0 when there were none."""
        total = self._count + self._missed
        return self._missed / total if total else 0.0

    @property
    def max_ns(self) -> int:
        """The greatest lateness, exact [ns]."""
        return self._max_ns

    def quantile(self, share: float) -> int | None:
        """Returns what that share of the ticks did not exceed [ns]; None before the first.

        Rounded up to the end of its bin, by at most 1/16, and never past the greatest.

        Raises:
            OnsetError: BAD_VALUE when ``share`` is not in (0, 1].
        """
        if not 0.0 < share <= 1.0:
            raise OnsetError(ErrorCode.BAD_VALUE, "histogram.share", share, "0 < share <= 1")
        if not self._count:
            return None
        rank = math.ceil(share * self._count)
        for index, count in enumerate(self._bins):
            rank -= count
            if rank <= 0 and index <= _INNER:
                return min(_lower_ns(index + 1), self._max_ns)
        return self._max_ns

    def to_dict(self) -> dict[str, object]:
        """Returns it for JSON; ``bins`` are the lower edge [ns] and count of those not empty."""
        return {
            "count": self._count,
            "missed": self._missed,
            "missed_fraction": self.missed_fraction,
            "max_ns": self._max_ns,
            "p50_ns": self.quantile(0.5),
            "p99_ns": self.quantile(0.99),
            "p999_ns": self.quantile(0.999),
            "bins": [[_lower_ns(i), count] for i, count in enumerate(self._bins) if count],
        }


def _bin(late_ns: int) -> int:
    shift = late_ns.bit_length() - _SUB_BITS - 1
    octave = shift + _SUB_BITS - _FIRST_BIT
    if octave < 0 or late_ns < 0:
        return 0
    if octave >= _LAST_BIT - _FIRST_BIT:
        return _INNER + 1
    return (octave << _SUB_BITS) + (late_ns >> shift) - (1 << _SUB_BITS) + 1


def _lower_ns(index: int) -> int:
    if index == 0:
        return 0
    octave, part = divmod(index - 1, 1 << _SUB_BITS)
    return (1 << octave + _FIRST_BIT) + (part << octave + _FIRST_BIT - _SUB_BITS)
