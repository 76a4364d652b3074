"""Why everything is computed, or which rows are. On the host.

observation --> rules --(a reason)--> all rows
                  |
                  +--> differences --> selector or a control --> scores --> top M

From age 2 on the oldest rows come first, so that none is older than the bound.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from controller.types import Observation
from vla.cache.config import CacheConfig, CacheMode, DenseReason
from vla.cache.patches import Float, Patcher
from vla.cache.rules import Identity, is_cut, order_reason
from vla.cache.selector import Selector
from vla.cache.store import SessionCache
from vla.cache.subject import Subject

_log = logging.getLogger(__name__)

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Choice:
    """What one frame's update computes.

    Attributes:
        reason: Why all rows are; None where ``rows`` says which.
        rows: Increasing. Shape (M,).
        ages: Of all rows, before the update. Shape (N,).
    """

    reason: DenseReason | None
    rows: Rows
    ages: Rows


class Chooser:
    """Chooses rows for one policy. Holds nothing of any session.

    Attributes:
        grippers: Which dimensions of the state are grippers. Shape (G,).
        scoring_ns: How long the last scores, row count and pick of rows took: of a choice, what
            rules and differences do not need [ns].
    """

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
        selector: For the learned mode; it also knows which cameras are on the arm.
        patcher: Cuts the policy's frames.
        seed: Of the random mode.

        Raises:
            OnsetError: BAD_VALUE: the learned mode without a selector, or with another policy's.
        """
        self._config, self._per_camera = config, patcher.per_camera
        self._count = patcher.per_camera * len(subject.cameras)
        learned = config.mode is CacheMode.LEARNED
        self._selector = subject.check(selector, self._count) if learned else None
        self._ranking = None
        if config.mode in _RANKED:
            _log.info("the choice of rows: two seconds, or ten where it is compiled first")
            # Not at the top of this file: it takes two seconds to import.
            from vla.cache.ranking import Ranking

            self._ranking = Ranking(subject, config, self._selector, patcher, seed)
        self.grippers = np.array(subject.grippers, np.int64)
        self._held = subject.grippers
        moving = selector.meta.moving if selector is not None else ()
        self._cut_shares = [np.inf if n in moving else config.cut_share for n in subject.cameras]
        self.scoring_ns = 0

    def bias(self, instruction: Callable[[], Float]) -> Float | None:
        """What the selector makes of an instruction (D,); None where it does not choose."""
        return None if self._selector is None else self._selector.bind(instruction())

    def choose(
        self,
        cache: SessionCache,
        identity: Identity,
        observation: Observation,
        patches: list[NDArray[np.uint8]],
        effect: Callable[[], Float],
    ) -> Choice:
        """A reason to compute everything, or the rows to compute.

        Args:
            cache: Of the session.
            identity: Of the request.
            observation: The new one.
            patches: Its frames' patches, per camera.
            effect: Measures each row's effect on the velocity, for the oracle. Shape (N,).
        """
        ages, config = cache.ages + 1, self._config
        reason = cache.identity.differs(identity)
        if reason is None and not cache.valid:
            reason = DenseReason.NON_FINITE
        reason = reason or order_reason(observation, cache.seen, self._held, config)
        if reason is None and config.mode is CacheMode.PERIODIC:
            again = cache.since + 1 >= config.period
            return Choice(DenseReason.PERIOD if again else None, _NONE, ages)
        if reason is not None or self._ranking is None:
            return Choice(reason or DenseReason.MODE, _NONE, ages)
        changes = self._ranking.changes(patches, cache.reference)
        if is_cut(changes, self._per_camera, self._cut_shares, config.cut_level):
            return Choice(DenseReason.CUT, _NONE, ages)
        began = time.perf_counter_ns()
        scores, count = self._ranking.scores(cache, changes, ages, observation, effect)
        if count == self._count:
            return Choice(DenseReason.CHOSEN, _NONE, ages)
        chosen, oldest = self._ranking.pick(scores, ages, count)
        self.scoring_ns = time.perf_counter_ns() - began
        if oldest > config.max_age:
            return Choice(DenseReason.AGE, _NONE, ages)
        return Choice(None, chosen, ages)


_NONE = np.empty(0, np.int64)
_RANKED = (CacheMode.LEARNED, CacheMode.PIXEL, CacheMode.RANDOM, CacheMode.ORACLE)
