"""Measured round trips to a delay in steps."""

from __future__ import annotations

import math
from collections import deque

from controller.bounds import MAX_HORIZON, check_range
from controller.errors import ErrorCode, OnsetError


class DelayEstimator:
    """The delay d = ceil((latency + margin) / period), from a windowed quantile of round trips.

    A window forgets: one slow reply does not lengthen every later delay, as an all-time maximum
    would. The first replies after a start are left out, because a cold model says nothing about a
    warm one.

    A slow reply counts when it comes, with its whole round trip, also when a newer one has
    overtaken it; left out, only the fast ones would be measured. An observation without a reply
    is counted in ``lost`` and is no measurement. The time waited for it bounds nothing that a
    longer delay would help: a server that works on the newest observation never answers the ones
    replaced meanwhile, and a lost reply is bridged by the rest of the old chunk. With such times
    in the window, more than one loss in twenty would hold the delay at its greatest.
    """

    def __init__(
        self,
        period_ns: int,
        *,
        max_delay: int,
        min_delay: int = 0,
        window: int = 50,
        quantile: float = 0.95,
        margin_ns: int = 0,
        skip_first: int = 3,
    ) -> None:
        """Makes an estimator without any measurement.

        Args:
            period_ns: Policy period [ns].
            max_delay: Greatest delay that the policy was trained for [steps].
            min_delay: Least delay, and the delay before anything was measured [steps].
            window: Round trips remembered [count].
            quantile: In (0, 1]: the latency is the least round trip that at least this share of
                the window does not exceed.
            margin_ns: Added to the latency; may be less than 0 [ns].
            skip_first: Round trips left out after a start or reset [count].

        Raises:
            OnsetError: BAD_VALUE when an argument is out of range.
        """
        check_range("period_ns", period_ns, 1, 2**62)
        check_range("max_delay", max_delay, 0, MAX_HORIZON)
        check_range("min_delay", min_delay, 0, max_delay)
        check_range("window", window, 1, 100_000)
        check_range("skip_first", skip_first, 0, 100_000)
        check_range("margin_ns", margin_ns, -(2**62), 2**62)
        if not 0.0 < quantile <= 1.0:
            raise OnsetError(ErrorCode.BAD_VALUE, "quantile", quantile, "0 < quantile <= 1")
        self._period_ns = period_ns
        self._max_delay = max_delay
        self._min_delay = min_delay
        self._quantile = quantile
        self._margin_ns = margin_ns
        self._skip_first = skip_first
        self._round_trips: deque[int] = deque(maxlen=window)
        self._to_skip = skip_first
        self._lost = 0

    def reset(self) -> None:
        """Forgets everything: for a reloaded model or another server."""
        self._round_trips.clear()
        self._to_skip = self._skip_first
        self._lost = 0

    def observe(self, round_trip_ns: int) -> None:
        """Takes one measurement: capture of an observation to its first slice [ns]."""
        if self._to_skip > 0:
            self._to_skip -= 1
        else:
            self._round_trips.append(round_trip_ns)

    def lose(self) -> None:
        """Counts an observation whose reply is waited for no longer."""
        self._lost += 1

    @property
    def lost(self) -> int:
        """Observations without a reply since the start or reset [count]."""
        return self._lost

    @property
    def newest_ns(self) -> int:
        """The newest round trip [ns]; -1 before anything was measured."""
        return self._round_trips[-1] if self._round_trips else -1

    @property
    def latency_ns(self) -> int | None:
        """The quantile of the window [ns]; None before anything was measured."""
        if not self._round_trips:
            return None
        rank = math.ceil(self._quantile * len(self._round_trips))
        return sorted(self._round_trips)[rank - 1]

    def delay(self) -> int:
        """Returns d, clamped to ``min_delay..max_delay`` [steps]."""
        return min(max(self._unclamped(), self._min_delay), self._max_delay)

    @property
    def over_limit(self) -> bool:
        """Whether the measured delay is past what the policy was trained for."""
        return self._unclamped() > self._max_delay

    def _unclamped(self) -> int:
        latency = self.latency_ns
        if latency is None:
            return self._min_delay
        return -(-(latency + self._margin_ns) // self._period_ns)
