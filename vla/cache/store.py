"""What is kept of each session, within a budget of bytes. One thread owns it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from controller.errors import ErrorCode, OnsetError
from vla.cache.prefix import PromptRows, Slot
from vla.cache.rules import Identity, Seen


@dataclass
class SessionCache:
    """One robot's cache.

    Attributes:
        identity: What it is good for.
        slot: Everything that was computed.
        prompt: Rows of the instruction.
        bias: What the selector makes of the instruction. Shape (N, hidden), or None.
        reference: Per camera, the patches that the slot's rows were computed from.
            Shape (P, K), uint8.
        latest: Per camera, the newest patches. Shape (P, K), uint8.
        ages: Observations since each row was computed. Shape (N,), int64.
        seen: The robot at the last observation.
        base: Id of the observation of the last full computation.
        since: Observations since then [count].
        valid: Whether slot, reference and ages belong together.
    """

    identity: Identity
    slot: Slot
    prompt: PromptRows
    bias: NDArray[np.float32] | None
    reference: list[NDArray[np.uint8]]
    latest: list[NDArray[np.uint8]]
    ages: NDArray[np.int64]
    seen: Seen
    base: int
    since: int = 0
    valid: bool = True

    @property
    def nbytes(self) -> int:
        """Size [bytes]: buffers and patches; a few hundred bytes more are not counted."""
        host = sum(p.nbytes for p in (*self.reference, *self.latest)) + self.ages.nbytes
        host += 0 if self.bias is None else self.bias.nbytes
        return self.slot.nbytes + host


class CacheStore:
    """Sessions' caches; the one unused for longest goes when the budget is spent."""

    def __init__(self, budget: int) -> None:
        """Args:
        budget: Bytes for all sessions together.
        """
        self._budget = budget
        self._caches: OrderedDict[Hashable, SessionCache] = OrderedDict()
        self._evicted: set[Hashable] = set()
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._caches)

    def get(self, session: Hashable) -> SessionCache | None:
        """A session's cache, which is then the one used last."""
        cache = self._caches.get(session)
        if cache is not None:
            self._caches.move_to_end(session)
        return cache

    def was_evicted(self, session: Hashable) -> bool:
        """Whether a session had a cache that had to go."""
        return session in self._evicted

    def put(self, session: Hashable, cache: SessionCache) -> None:
        """Keeps a session's cache, and lets others go where there is no room for all.

        Raises:
            OnsetError: TOO_LARGE when it alone is more than the budget.
        """
        if cache.nbytes > self._budget:
            raise OnsetError(
                ErrorCode.TOO_LARGE, "cache_budget", f"{cache.nbytes} bytes", f"{self._budget}"
            )
        self._remove(session)
        while self.nbytes + cache.nbytes > self._budget:
            oldest = next(iter(self._caches))
            self._remove(oldest)
            self._evicted.add(oldest)
        self._caches[session] = cache
        self.nbytes += cache.nbytes
        self._evicted.discard(session)

    def distrust(self, session: Hashable) -> None:
        """Keeps a session's cache from being used until it has been filled anew."""
        cache = self.get(session)
        if cache is not None:
            cache.valid = False

    def forget(self, session: Hashable) -> None:
        """Drops a session that has ended."""
        self._remove(session)
        self._evicted.discard(session)

    def _remove(self, session: Hashable) -> None:
        cache = self._caches.pop(session, None)
        if cache is not None:
            self.nbytes -= cache.nbytes
