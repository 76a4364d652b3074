"""Settings of the cache, and the reasons for computing everything."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from controller.bounds import check_range
from controller.errors import ErrorCode, OnsetError


class CacheMode(StrEnum):
    """Which image tokens are computed anew; all but OFF and LEARNED are controls."""

    OFF = "off"  # no cache at all
    LEARNED = "learned"  # the trained selector and ratio predictor
    PIXEL = "pixel"  # greatest difference to the reference patch (VLA-Cache's rule, mended)
    RANDOM = "random"
    ORACLE = "oracle"  # greatest measured effect on the velocity; slow, a bound for the others
    PERIODIC = "periodic"  # the whole prefix every n-th time, nothing in between
    DENSE = "dense"  # everything every time, through the cache's code


class DenseReason(StrEnum):
    """Why everything was computed. The text is what a reply carries."""

    OFF = "cache off"
    NO_SESSION = "no session"
    FIRST = "first frame of the session"
    EVICTED = "evicted"
    EPISODE = "new episode"
    PROMPT = "new prompt"
    CAMERAS = "cameras changed"
    WEIGHTS = "weights changed"
    ORDER = "step not after the last one"
    GAP = "frame gap"
    CUT = "cut or ego-motion"
    GRIPPER = "gripper event"
    AGE = "age limit"
    NON_FINITE = "non-finite output"
    ERROR = "error during an update"
    PERIOD = "period"
    CHOSEN = "all rows chosen"
    MODE = "dense mode"


RECOVERY_AGE = 2  # below it everything is as old as the last observation
SHARES = (1.0, 0.75, 0.5, 0.25)  # of the image tokens: the row counts that are ever computed


@dataclass(frozen=True)
class CacheConfig:
    """Settings of the cache.

    Attributes:
        mode: Which tokens are computed.
        rows: Share of the image tokens to compute, for every frame alike; one of ``SHARES``, or
            None for what the ratio predictor says. The controls have no predictor and need one.
        max_age: Bound on the age of a reused row [observations].
        slack: Whether everything is computed again once a chunk is sent and the model is idle.
        gap: Greatest distance of two observations [steps]; past it all is computed.
        gripper: Change of a gripper since the last full computation that makes the next one.
        cut_level: A patch is wholly changed when its mean difference is more, of full scale.
        cut_share: Share of a fixed camera's patches wholly changed that makes a cut.
        budget: Bytes for all sessions together.
    """

    mode: CacheMode = CacheMode.OFF
    rows: float | None = None
    max_age: int = 16
    slack: bool = True
    gap: int = 25
    gripper: float = 0.25
    cut_level: float = 0.1
    cut_share: float = 0.6
    budget: int = 256 * 2**20

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            OnsetError: BAD_VALUE, with what is allowed.
        """
        if self.mode not in list(CacheMode):
            raise OnsetError(ErrorCode.BAD_VALUE, "cache", self.mode, [str(m) for m in CacheMode])
        if self.rows is not None and self.rows not in SHARES:
            raise OnsetError(ErrorCode.BAD_VALUE, "cache_rows", self.rows, f"one of {SHARES}")
        if self.rows is None and self.mode in _NEED_ROWS:
            raise OnsetError(
                ErrorCode.BAD_VALUE, "cache_rows", "none", f"one of {SHARES} for {self.mode}"
            )
        check_range("max_age", self.max_age, 2, 1000)
        check_range("gap", self.gap, 1, 10_000)
        check_range("budget", self.budget, 1, 2**50)

    @property
    def period(self) -> int:
        """Observations from one whole prefix to the next, in the periodic mode."""
        return round(1 / (self.rows or 1.0))

    def recovered(self, rows: int) -> int:
        """q, rows that are computed only because they are the oldest.

        Recovery begins at RECOVERY_AGE, and the oldest go first: no row is then older than
        ``1 + ceil(rows / q)``, which is at most ``max_age``.
        """
        return math.ceil(rows / (self.max_age - 1))


_NEED_ROWS = (CacheMode.PIXEL, CacheMode.RANDOM, CacheMode.ORACLE, CacheMode.PERIODIC)


def row_counts(rows: int) -> tuple[int, ...]:
    """How many of so many image tokens each share is. Shapes are static: there are no others."""
    return tuple(math.ceil(share * rows) for share in SHARES)
