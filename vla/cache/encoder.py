"""Encodes one robot's observation, computing again what is to be.

    observation --> rules --(a reason)--> all rows ------------> shadow slot --swap--> session
                      |                                              ^
                      +--> differences --> selector --> some rows ---+  (a copy of the session's)

Nothing of a session is changed before an update is complete: rows are written into a shadow slot,
which is exchanged for the session's own at the end. There is one shadow for all sessions, so one
inference at a time, and a context is good until the next one of its session has been encoded.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from controller.errors import ErrorCode, OnsetError
from controller.types import CacheFigures, Observation
from vla.cache.blend import Past, measured_effect
from vla.cache.config import (
    RECOVERY_AGE,
    SHARES,
    CacheConfig,
    CacheMode,
    DenseReason,
    row_counts,
)
from vla.cache.patches import Patcher
from vla.cache.prefix import Cancelled, PrefixEncoder, PromptRows
from vla.cache.rules import Identity, Seen, is_cut, order_reason
from vla.cache.selector import Selector, token_features
from vla.cache.store import CacheStore, SessionCache
from vla.checkpoint import Checkpoint
from vla.policy import Context, PolicyInput
from vla.transforms import frames_to_tensor

_log = logging.getLogger(__name__)

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Whose:
    """Whose cache a request may use.

    Attributes:
        session: Tells sessions apart.
        episode: Tells the episodes of a session apart.
    """

    session: Hashable
    episode: str


@dataclass(frozen=True)
class Asked:
    """What is to be encoded.

    Attributes:
        observation: What the robot sees.
        prompt: The instruction.
        state: Normalised state at the chunk's beginning. Shape (1, S).
        start: The chunk's beginning, in steps after the images. Shape (1,), int64.
    """

    observation: Observation
    prompt: str
    state: torch.Tensor
    start: torch.Tensor


class CachedEncoder:
    """A policy's ``encode`` with a cache for each session. Not thread-safe.

    Attributes:
        config: Its settings.
        store: The sessions' caches.
        chosen: The rows that the last call computed, increasing. Shape (M,), int64.
        choice_ns: How long the last choice of rows took, differences included [ns].
        encode_cpu_ns: The processor's time of the last ``encode`` [ns].
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: CacheConfig,
        selector: Selector | None = None,
        seed: int = 0,
    ) -> None:
        """Args:
        checkpoint: The policy, its model on the device where it runs.
        config: Settings.
        selector: For the learned mode; it also knows which cameras are on the arm.
        seed: Of the random mode and the oracle's noise.

        Raises:
            OnsetError: BAD_VALUE: the learned mode without a selector, or with another policy's.
        """
        self.config, self._checkpoint, self._selector = config, checkpoint, selector
        self._prefix = PrefixEncoder(checkpoint.model)
        self._rows, self._counts = self._prefix.rows, row_counts(self._prefix.rows)
        if config.mode is CacheMode.LEARNED:
            _check_selector(selector, checkpoint, self._rows)
        model, robot = checkpoint.meta.model, checkpoint.meta.robot
        self._patcher = Patcher(model.cameras, model.lags, model.patch, model.grid)
        self.store = CacheStore(config.budget)
        self._shadow = self._prefix.slot()
        self._shadows: SessionCache | None = None  # whose copy the shadow is
        self._prompts: dict[str, PromptRows] = {}
        self._grippers = np.flatnonzero([d.unit == "1" for d in robot.state])
        self._arm = np.flatnonzero([d.unit == "rad" for d in robot.state])
        moving = selector.meta.moving if selector is not None else ()
        shares = [np.inf if name in moving else config.cut_share for name in model.cameras]
        self._cut_shares = np.array(shares, np.float32)
        self._texts = np.arange(self._rows, self._rows + self._prefix.texts)
        self._recovered = config.recovered(self._rows)
        self._seed = seed
        self.chosen: NDArray[np.int64] = np.arange(self._rows)
        self.choice_ns = self.encode_cpu_ns = 0

    def encode(self, whose: Whose | None, asked: Asked) -> tuple[Context, CacheFigures]:
        """Encodes an observation under ``torch.inference_mode``.

        Args:
            whose: Whose cache to use and renew; nothing is kept when None.
            asked: The observation.
        """
        began = time.thread_time_ns()
        found = self._encode(whose, asked)
        self.encode_cpu_ns = time.thread_time_ns() - began
        return found

    def _encode(self, whose: Whose | None, asked: Asked) -> tuple[Context, CacheFigures]:
        observation = asked.observation
        patches = self._patcher.cut(observation.frames)
        if whose is None or self.config.mode is CacheMode.OFF:
            off = self.config.mode is CacheMode.OFF
            return self._uncached(
                patches, asked, DenseReason.OFF if off else DenseReason.NO_SESSION
            )
        names, frames = self._patcher.cameras, observation.frames
        identity = Identity.of(whose.episode, asked.prompt, self._checkpoint.digest, frames, names)
        cache, began = self.store.get(whose.session), time.perf_counter_ns()
        reason, chosen, ages = self._choose(whose, cache, identity, asked, patches)
        self.choice_ns = time.perf_counter_ns() - began
        if cache is not None and reason is None:
            try:
                self._update(cache, patches, chosen, ages, observation)
            except (RuntimeError, ValueError, IndexError) as error:
                _log.error("observation %d: cache update: %s", observation.id, error)
                reason = DenseReason.ERROR
        if cache is None or reason is not None:
            cache = self._renew(whose, identity, asked, patches)
        context = self._prefix.context(cache.slot, asked.state, asked.start)
        figures = CacheFigures(
            self._rows, len(self.chosen), int(cache.ages.max()), reason or "", cache.base
        )
        return context, figures

    def _uncached(
        self, patches: list[NDArray[np.uint8]], asked: Asked, reason: DenseReason
    ) -> tuple[Context, CacheFigures]:
        slot = self._prefix.slot()
        self._prefix.encode(slot, self._prompt(asked.prompt), self._floats(patches))
        self.chosen = np.arange(self._rows)
        context = self._prefix.context(slot, asked.state, asked.start)
        return context, CacheFigures(self._rows, self._rows, 0, reason)

    def _choose(
        self,
        whose: Whose,
        cache: SessionCache | None,
        identity: Identity,
        asked: Asked,
        patches: list[NDArray[np.uint8]],
    ) -> tuple[DenseReason | None, NDArray[np.int64], NDArray[np.int64]]:
        """A reason to compute everything, or the rows to compute and all ages before that."""
        none = np.empty(0, np.int64)
        if cache is None:
            evicted = self.store.was_evicted(whose.session)
            return DenseReason.EVICTED if evicted else DenseReason.FIRST, none, none
        ages, config = cache.ages + 1, self.config
        reason = cache.identity.differs(identity)
        if reason is None and not cache.valid:
            reason = DenseReason.NON_FINITE
        if reason is None and config.mode is CacheMode.DENSE:
            reason = DenseReason.MODE
        reason = reason or order_reason(asked.observation, cache.seen, self._grippers, config)
        if reason is None and config.mode is CacheMode.PERIODIC:
            again = cache.since + 1 >= config.period
            return DenseReason.PERIOD if again else None, none, ages
        if reason is not None:
            return reason, none, ages
        changes = self._patcher.changes(patches, cache.reference)
        if is_cut(changes, self._prefix.patches, self._cut_shares, config.cut_level):
            return DenseReason.CUT, none, ages
        scores, count = self._scores(cache, changes, ages, asked)
        if count == self._rows:
            return DenseReason.CHOSEN, none, ages
        oldest = int(ages.max())
        if oldest >= RECOVERY_AGE:  # the oldest rows come first
            recovered = np.argsort(-ages, kind="stable")[: self._recovered]
            scores[recovered] = np.inf
        chosen = np.argpartition(scores, self._rows - count)[self._rows - count :]
        chosen.sort()
        if oldest > config.max_age and np.delete(ages, chosen).max() > config.max_age:
            return DenseReason.AGE, none, ages
        return None, chosen, ages

    def _scores(
        self,
        cache: SessionCache,
        changes: Array,
        ages: NDArray[np.int64],
        asked: Asked,
    ) -> tuple[Array, int]:
        """A score for each row, and how many rows to compute."""
        observation = asked.observation
        config = self.config
        count = 0 if config.rows is None else self._counts[SHARES.index(config.rows)]
        if config.mode is CacheMode.PIXEL:
            return changes[:, 4].copy(), count
        if config.mode is CacheMode.RANDOM:
            rng = np.random.default_rng([self._seed, observation.id])
            return rng.random(self._rows, dtype=np.float32), count
        if config.mode is CacheMode.ORACLE:
            return self._effect(cache, asked), count
        selector = self._selector
        if selector is None or cache.bias is None:
            raise OnsetError(ErrorCode.INTERNAL, "cache", "no selector", "one, for this mode")
        moved = np.abs(observation.state - cache.seen.state)
        arm = float(moved[self._arm].max(initial=0.0))
        grippers = float(moved[self._grippers].max(initial=0.0))
        tokens = token_features(changes, ages, arm, grippers)
        scores = selector.scores(tokens, cache.bias)
        return scores, count or self._counts[selector.choice(tokens, scores)]

    def _effect(self, cache: SessionCache, asked: Asked) -> Array:
        model, slot = self._checkpoint.model, cache.slot
        # Out of inference mode: its tensors have no gradients.
        with torch.inference_mode(False), torch.no_grad():
            plain = PolicyInput(
                {n: frames_to_tensor(frames) for n, frames in asked.observation.frames.items()},
                asked.state.clone(),
                self._checkpoint.tokeniser.encode(asked.prompt)[None],
                asked.start.clone(),
            )
            context = self._prefix.context(slot, asked.state, asked.start)
            past = Past(
                tuple(k.clone() for k in context.keys),
                tuple(v.clone() for v in context.values),
                slot.images[None, :, : model.config.width].clone(),
            )
            generator = torch.Generator().manual_seed(self._seed * 1_000_003 + asked.observation.id)
            return measured_effect(model, plain, past, generator)[0].numpy()

    def _update(
        self,
        cache: SessionCache,
        patches: list[NDArray[np.uint8]],
        chosen: NDArray[np.int64],
        ages: NDArray[np.int64],
        observation: Observation,
    ) -> None:
        """Computes some rows in the shadow, and exchanges."""
        if self._shadows is not cache:
            self._shadow.copy_from(cache.slot)
        self._shadows = None  # half written, if anything fails
        each = self._prefix.patches
        ends = np.searchsorted(chosen, each * np.arange(1, len(patches)))
        local = [rows - i * each for i, rows in enumerate(np.split(chosen, ends))]
        self._prefix.encode(
            self._shadow,
            cache.prompt,
            self._floats([p[rows] for p, rows in zip(patches, local, strict=True)]),
            [torch.from_numpy(rows).to(self._prefix.device) for rows in local],
            torch.from_numpy(np.concatenate([chosen, self._texts])).to(self._prefix.device),
        )
        cache.valid = False
        cache.slot, self._shadow = self._shadow, cache.slot
        for kept, new, rows in zip(cache.reference, patches, local, strict=True):
            kept[rows] = new[rows]
        ages[chosen] = 0
        cache.ages, cache.latest, cache.since = ages, patches, cache.since + 1
        grippers = cache.seen.grippers
        cache.seen = Seen(observation.id, observation.step, observation.state, grippers)
        cache.valid, self.chosen = True, chosen

    def _renew(
        self,
        whose: Whose,
        identity: Identity,
        asked: Asked,
        patches: list[NDArray[np.uint8]],
    ) -> SessionCache:
        """Computes everything, and keeps it."""
        observation = asked.observation
        prompt = self._prompt(asked.prompt)
        self._shadows = None
        self._prefix.encode(self._shadow, prompt, self._floats(patches))
        slot, old = self._shadow, self.store.get(whose.session)
        self._shadow = self._prefix.slot() if old is None else old.slot
        learned = self._selector if self.config.mode is CacheMode.LEARNED else None
        state = observation.state
        cache = SessionCache(
            identity,
            slot,
            prompt,
            None if learned is None else learned.bind(prompt.instruction.cpu().numpy()),
            [p.copy() for p in patches],
            patches,
            np.zeros(self._rows, np.int64),
            Seen(observation.id, observation.step, state, state[self._grippers]),
            observation.id,
        )
        self.store.put(whose.session, cache)
        self.chosen = np.arange(self._rows)
        return cache

    def settle(self, whose: Whose, cancelled: Callable[[], bool] | None = None) -> bool:
        """Slack time: computes a session's last frame wholly, and readies the shadow for the next.

        Under ``torch.inference_mode``. Whatever is cancelled leaves the session as it was.

        Args:
            whose: Whose cache.
            cancelled: Asked before each layer.

        Returns:
            Whether it came to its end.
        """
        cache = self.store.get(whose.session)
        if cache is None or not cache.valid or self.config.mode in _NEVER_SETTLE:
            return True
        try:
            if self.config.slack and cache.ages.any():
                self._shadows = None
                latest = self._floats(cache.latest)
                self._prefix.encode(self._shadow, cache.prompt, latest, cancelled=cancelled)
                cache.valid = False
                cache.slot, self._shadow = self._shadow, cache.slot
                cache.reference = [p.copy() for p in cache.latest]
                cache.ages, cache.since = np.zeros_like(cache.ages), 0
                seen, cache.base = cache.seen, cache.seen.observation_id
                seen.grippers = seen.state[self._grippers]
                cache.valid = True
            if self._shadows is not cache and not (cancelled is not None and cancelled()):
                self._shadow.copy_from(cache.slot)
                self._shadows = cache
        except Cancelled:
            return False
        return True

    @property
    def shared_bytes(self) -> int:
        """Size of what all sessions share: the shadow [bytes]."""
        return self._shadow.nbytes

    def distrust(self, whose: Whose) -> None:
        """What came out was not finite: everything is computed the next time."""
        cache = self.store.get(whose.session)
        if cache is not None:
            cache.valid = False

    def forget(self, session: Hashable) -> None:
        """Drops a session that has ended."""
        self.store.forget(session)

    def _prompt(self, prompt: str) -> PromptRows:
        if prompt not in self._prompts:  # a policy knows a few instructions
            tokens = self._checkpoint.tokeniser.encode(prompt).to(self._prefix.device)
            self._prompts[prompt] = self._prefix.prompt(tokens)
        return self._prompts[prompt]

    def _floats(self, patches: list[NDArray[np.uint8]]) -> list[torch.Tensor]:
        return [torch.from_numpy(p).to(self._prefix.device).float() for p in patches]


# Whole frames at set times, or always: what slack time would add is what they are compared without.
_NEVER_SETTLE = (CacheMode.OFF, CacheMode.PERIODIC, CacheMode.DENSE)


def _check_selector(selector: Selector | None, checkpoint: Checkpoint, rows: int) -> None:
    name, digest = checkpoint.meta.name, checkpoint.digest
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
