"""Latencies that vary from one observation to the next, in virtual time.

Each wraps or replaces one of ``sim.delay``. What is drawn for an observation holds for its whole
chunk, so its pieces keep their order; a later observation's may overtake them::

    observation 1   |--------------------------------x--x--x     factor 1.8
    observation 2           |------------x--x--x                 factor 0.7
    observation 3                   |------------------          lost

The draws depend on the episode's seed and the observation's id alone.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from controller.bounds import MAX_COUNT, check_range
from controller.errors import ErrorCode, OnsetError
from sim.delay import Fixed, Latency, Times

_MAX_SIGMA = 4.0  # the 95th percentile is 720 medians: what is past that is a mistake

# Different things drawn with one seed must not be one another's copies.
_FACTOR, _LOSS, _PLACE = range(3)


def _rng(seed: int, observation_id: int, purpose: int) -> np.random.Generator:
    return np.random.default_rng((seed, observation_id, purpose))


@dataclass(frozen=True)
class Jitter:
    """Another latency, times a log-normal factor of median 1 for each observation.

    Attributes:
        inner: The latency, which stays the median.
        sigma: Standard deviation of the factor's logarithm, 0..4; the 95th percentile is
            ``exp(1.645 sigma)`` times the median.
    """

    inner: Latency
    sigma: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.sigma <= _MAX_SIGMA:
            raise OnsetError(ErrorCode.BAD_VALUE, "sigma", self.sigma, f"0..{_MAX_SIGMA}")

    def draw(self, seed: int, observation_id: int) -> Times:
        normal = _rng(seed, observation_id, _FACTOR).standard_normal()
        return _Scaled(self.inner.draw(seed, observation_id), math.exp(self.sigma * normal))


@dataclass(frozen=True)
class Recorded:
    """Recorded round trips, one for each observation in order, over and over.

    A seed chooses where they begin. Every piece takes the whole round trip; the server is never
    busy, for its waiting is in the record.

    Attributes:
        round_trips_ns: One or more [ns].
    """

    round_trips_ns: tuple[int, ...]

    def __post_init__(self) -> None:
        check_range("round_trips_ns.count", len(self.round_trips_ns), 1, MAX_COUNT)
        for index, round_trip_ns in enumerate(self.round_trips_ns):
            check_range(f"round_trips_ns[{index}]", round_trip_ns, 0, MAX_COUNT)

    @classmethod
    def load(cls, path: Path) -> Recorded:
        """Reads a JSON file that holds one list of numbers [ns]; fractions are rounded.

        Raises:
            OnsetError: BAD_VALUE when there is no such file, or it holds anything else.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(values, list) or any(type(v) not in (int, float) for v in values):
                raise TypeError("not a list of numbers")
            return cls(tuple(round(value) for value in values))
        except (OSError, ValueError, TypeError, OverflowError) as error:
            raise OnsetError(
                ErrorCode.BAD_VALUE,
                "round_trips",
                f"{path.name}: {type(error).__name__} {error}",
                "a JSON file with a list of round trips [ns]",
            ) from error

    def draw(self, seed: int, observation_id: int) -> Times:
        count = len(self.round_trips_ns)
        first = int(_rng(seed, 0, _PLACE).integers(count))
        return Fixed(self.round_trips_ns[(first + observation_id) % count])


@dataclass(frozen=True)
class Lossy:
    """Another latency, some of whose answers never arrive. The server was busy with them.

    Attributes:
        inner: The latency of the others.
        probability: Of the loss of an observation's answer, all its pieces together, 0..1.
    """

    inner: Latency
    probability: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.probability <= 1.0:
            raise OnsetError(ErrorCode.BAD_VALUE, "probability", self.probability, "0..1")

    def draw(self, seed: int, observation_id: int) -> Times:
        times = self.inner.draw(seed, observation_id)
        lost = _rng(seed, observation_id, _LOSS).random() < self.probability
        return _Lost(times) if lost else times


@dataclass(frozen=True)
class _Scaled:
    inner: Times
    factor: float

    def arrival_ns(self, expert_steps: int) -> int | None:
        arrival_ns = self.inner.arrival_ns(expert_steps)
        return None if arrival_ns is None else round(self.factor * arrival_ns)

    def busy_ns(self, expert_steps: int) -> int:
        return round(self.factor * self.inner.busy_ns(expert_steps))


@dataclass(frozen=True)
class _Lost:
    inner: Times

    def arrival_ns(self, expert_steps: int) -> int | None:
        return None

    def busy_ns(self, expert_steps: int) -> int:
        return self.inner.busy_ns(expert_steps)
