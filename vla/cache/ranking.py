"""What each row is worth, and how many are computed: by the selector, or by a control.

A module of its own for what it imports: compiled code takes two seconds, which a server without
a cache need not wait for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from controller.errors import ErrorCode, OnsetError
from controller.types import Observation
from vla.cache.compiled import frame_changes, judge, pick_rows
from vla.cache.config import SHARES, CacheConfig, CacheMode, row_counts
from vla.cache.patches import Bytes, Float, Patcher
from vla.cache.selector import Selector
from vla.cache.store import SessionCache
from vla.cache.subject import Subject


class Ranking:
    """Compares frames with what was computed, and scores the rows. Holds nothing of any session."""

    def __init__(
        self,
        subject: Subject,
        config: CacheConfig,
        selector: Selector | None,
        patcher: Patcher,
        seed: int,
    ) -> None:
        """Args:
        subject: The policy.
        config: Settings.
        selector: For the learned mode.
        patcher: Cuts the policy's frames.
        seed: Of the random mode.
        """
        self._mode, self._selector, self._seed = config.mode, selector, seed
        self._newest, self._count = patcher.newest, patcher.per_camera * len(subject.cameras)
        self._counts, self._recovered = row_counts(self._count), config.recovered(self._count)
        # 0 where the ratio predictor says how many.
        self._rows = 0 if config.rows is None else self._counts[SHARES.index(config.rows)]
        # As plain numbers: a call into numpy costs more than the arithmetic of a few joints.
        self._arm, self._held = subject.joints, subject.grippers

    def changes(self, patches: Sequence[Bytes], reference: Sequence[Bytes]) -> Float:
        """As ``frame_changes``. Shape (N, 6)."""
        return frame_changes(patches, reference, self._newest)

    def scores(
        self,
        cache: SessionCache,
        changes: Float,
        ages: NDArray[np.int64],
        observation: Observation,
        effect: Callable[[], Float],
    ) -> tuple[Float, int]:
        """A score for each row, and how many rows to compute.

        Args:
            cache: Of the session.
            changes: Of the new frames. Shape (N, 6).
            ages: With the new observation. Shape (N,).
            observation: The new one.
            effect: As for ``Chooser.choose``.
        """
        if self._mode is CacheMode.PIXEL:
            return np.ascontiguousarray(changes[:, 4]), self._rows
        if self._mode is CacheMode.RANDOM:
            rng = np.random.default_rng([self._seed, observation.id])
            return rng.random(self._count, dtype=np.float32), self._rows
        if self._mode is CacheMode.ORACLE:
            return effect(), self._rows
        selector = self._selector
        if selector is None or cache.bias is None:
            raise OnsetError(ErrorCode.INTERNAL, "cache", "no selector", "one, for this mode")
        now, then = observation.state.tolist(), cache.seen.state.tolist()
        arm = max((abs(now[i] - then[i]) for i in self._arm), default=0.0)
        grippers = max((abs(now[i] - then[i]) for i in self._held), default=0.0)
        scores, said = judge(selector, changes, ages, arm, grippers, cache.bias)
        return scores, self._rows or self._counts[said]

    def pick(
        self, scores: Float, ages: NDArray[np.int64], count: int
    ) -> tuple[NDArray[np.int64], int]:
        """So many rows to compute, increasing, and the greatest age of the others."""
        return pick_rows(scores, ages, count, self._recovered)
