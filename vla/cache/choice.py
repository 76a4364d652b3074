"""Why everything is computed, or which rows are. On the host, in numpy.

observation --> rules --(a reason)--> all rows
                  |
                  +--> differences --> selector or a control --> scores --> top M

From age 2 on the oldest rows come first, so that none is older than the bound.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from controller.errors import ErrorCode, OnsetError
from controller.types import Observation
from vla.cache.config import (
    RECOVERY_AGE,
    SHARES,
    CacheConfig,
    CacheMode,
    DenseReason,
    row_counts,
)
from vla.cache.patches import Patcher
from vla.cache.rules import Identity, is_cut, order_reason
from vla.cache.selector import Selector, token_features
from vla.cache.store import SessionCache
from vla.checkpoint import Checkpoint

Array = NDArray[np.float32]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Subject:
    """The policy whose rows are chosen, and the robot that it sees.

    Attributes:
        policy: Its name.
        digest: SHA-256 of its weights, hexadecimal.
        cameras: Names, in the model's order.
        joints: Which dimensions of the state are joints [rad].
        grippers: Which are grippers.
    """

    policy: str
    digest: str
    cameras: tuple[str, ...]
    joints: tuple[int, ...]
    grippers: tuple[int, ...] = ()

    @staticmethod
    def of(checkpoint: Checkpoint) -> Subject:
        """A policy of our own, whose state says what is a gripper."""
        meta = checkpoint.meta
        units = [d.unit for d in meta.robot.state]
        joints, grippers = (
            tuple(i for i, unit in enumerate(units) if unit == kind) for kind in ("rad", "1")
        )
        return Subject(meta.name, checkpoint.digest, meta.model.cameras, joints, grippers)


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
        patcher: Cuts and compares the policy's frames.
        seed: Of the random mode.

        Raises:
            OnsetError: BAD_VALUE: the learned mode without a selector, or with another policy's.
        """
        self._config, self._selector, self._patcher, self._seed = config, selector, patcher, seed
        self._count = patcher.per_camera * len(subject.cameras)
        self._counts = row_counts(self._count)
        if config.mode is CacheMode.LEARNED:
            _check_selector(selector, subject, self._count)
        self.grippers = np.array(subject.grippers, np.int64)
        # As plain numbers: a call into numpy costs more than the arithmetic of a few joints.
        self._held, self._arm = subject.grippers, subject.joints
        moving = selector.meta.moving if selector is not None else ()
        self._cut_shares = [np.inf if n in moving else config.cut_share for n in subject.cameras]
        self._recovered = config.recovered(self._count)
        self.scoring_ns = 0

    def bias(self, instruction: Callable[[], Array]) -> Array | None:
        """What the selector makes of an instruction (D,); None where it does not choose."""
        if self._selector is None or self._config.mode is not CacheMode.LEARNED:
            return None
        return self._selector.bind(instruction())

    def choose(
        self,
        cache: SessionCache,
        identity: Identity,
        observation: Observation,
        patches: list[NDArray[np.uint8]],
        effect: Callable[[], Array],
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
        if reason is None and config.mode is CacheMode.DENSE:
            reason = DenseReason.MODE
        reason = reason or order_reason(observation, cache.seen, self._held, config)
        if reason is None and config.mode is CacheMode.PERIODIC:
            again = cache.since + 1 >= config.period
            return Choice(DenseReason.PERIOD if again else None, _NONE, ages)
        if reason is not None:
            return Choice(reason, _NONE, ages)
        changes = self._patcher.changes(patches, cache.reference)
        if is_cut(changes, self._patcher.per_camera, self._cut_shares, config.cut_level):
            return Choice(DenseReason.CUT, _NONE, ages)
        began = time.perf_counter_ns()
        scores, count = self._scores(cache, changes, ages, observation, effect)
        if count == self._count:
            return Choice(DenseReason.CHOSEN, _NONE, ages)
        oldest = int(ages.max())
        if oldest >= RECOVERY_AGE:  # the oldest rows come first
            recovered = np.argsort(-ages, kind="stable")[: self._recovered]
            scores[recovered] = np.inf
        chosen = scores.argpartition(self._count - count)[self._count - count :]
        chosen.sort()
        self.scoring_ns = time.perf_counter_ns() - began
        if oldest > config.max_age and np.delete(ages, chosen).max() > config.max_age:
            return Choice(DenseReason.AGE, _NONE, ages)
        return Choice(None, chosen, ages)

    def _scores(
        self,
        cache: SessionCache,
        changes: Array,
        ages: Rows,
        observation: Observation,
        effect: Callable[[], Array],
    ) -> tuple[Array, int]:
        """A score for each row, and how many rows to compute."""
        config = self._config
        count = 0 if config.rows is None else self._counts[SHARES.index(config.rows)]
        if config.mode is CacheMode.PIXEL:
            return changes[:, 4].copy(), count
        if config.mode is CacheMode.RANDOM:
            rng = np.random.default_rng([self._seed, observation.id])
            return rng.random(self._count, dtype=np.float32), count
        if config.mode is CacheMode.ORACLE:
            return effect(), count
        selector = self._selector
        if selector is None or cache.bias is None:
            raise OnsetError(ErrorCode.INTERNAL, "cache", "no selector", "one, for this mode")
        now, then = observation.state.tolist(), cache.seen.state.tolist()
        arm = max((abs(now[i] - then[i]) for i in self._arm), default=0.0)
        grippers = max((abs(now[i] - then[i]) for i in self._held), default=0.0)
        tokens = token_features(changes, ages, arm, grippers)
        scores = selector.scores(tokens, cache.bias)
        return scores, count or self._counts[selector.choice(tokens, scores)]


_NONE = np.empty(0, np.int64)


def _check_selector(selector: Selector | None, subject: Subject, rows: int) -> None:
    name, digest = subject.policy, subject.digest
    if selector is None:
        raise OnsetError(ErrorCode.BAD_VALUE, "cache", "learned", f"with a selector for {name}")
    meta = selector.meta
    if (meta.model, meta.rows) != (digest, rows):
        raise OnsetError(
            ErrorCode.BAD_VALUE,
            "cache",
            f"a selector for {meta.policy} {meta.model[:12]} with {meta.rows} rows",
            f"one for {name} {digest[:12]} with {rows}",
        )
