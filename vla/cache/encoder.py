"""Encodes one robot's observation, computing again what is to be.

    observation --> chooser --(a reason)--> all rows ---> shadow slot --swap--> session
                      |                                     ^
                      +----> some rows ---------------------+  (the others are the session's)

Nothing of a session is changed before an update is complete: rows are written into a shadow slot,
which is exchanged for the session's own at the end. There is one shadow for all sessions, so one
inference at a time, and a context is good until the next one of its session has been encoded.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from controller.types import CacheFigures
from vla.cache.asked import Asked, Beginning, Whose
from vla.cache.blend import Past, measured_effect
from vla.cache.choice import Choice, Chooser
from vla.cache.config import CacheConfig, CacheMode, DenseReason
from vla.cache.patches import Bytes, Float, Patcher
from vla.cache.prefix import Cancelled, PrefixEncoder, PromptRows, Slot
from vla.cache.rules import Identity, Seen
from vla.cache.selector import Selector
from vla.cache.store import CacheStore, SessionCache
from vla.cache.subject import Subject
from vla.checkpoint import Checkpoint
from vla.policy import Context, PolicyInput
from vla.transforms import frames_to_tensor

_log = logging.getLogger(__name__)


class CachedEncoder:
    """A policy's ``encode`` with a cache for each session. Not thread-safe.

    Attributes:
        config: Its settings.
        store: The sessions' caches.
        prefix: What computes the rows.
        chosen: The rows that the last call computed, increasing. Shape (M,), int64.
        choice_ns: How long the last choice of rows took, differences included [ns].
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: CacheConfig,
        selector: Selector | None = None,
        seed: int = 0,
        prefix: PrefixEncoder | None = None,
    ) -> None:
        """Args:
        checkpoint: The policy, its model on the device where it runs.
        config: Settings.
        selector: For the learned mode; it also knows which cameras are on the arm.
        seed: Of the random mode and the oracle's noise.
        prefix: Of this checkpoint's model, where another encoder has one already.

        Raises:
            OnsetError: BAD_VALUE: the learned mode without a selector, or with another policy's.
        """
        model = checkpoint.meta.model
        self.config, self._checkpoint, self._seed = config, checkpoint, seed
        self.prefix = prefix or PrefixEncoder(checkpoint.model)
        self._patcher = Patcher(model.cameras, model.patch, model.grid)
        self._chooser = Chooser(Subject.of(checkpoint), config, selector, self._patcher, seed)
        self._all = np.arange(self.prefix.rows)
        self._texts = np.arange(self.prefix.rows, self.prefix.rows + self.prefix.texts)
        self._ends = self.prefix.patches * np.arange(1, len(model.cameras))
        self.store = CacheStore(config.budget)
        self._shadow = self.prefix.slot()
        self._buffers: dict[Hashable, Slot] = {}  # of sessions, where the cache is off
        self._prompts: dict[str, PromptRows] = {}
        self.chosen: NDArray[np.int64] = self._all
        self.choice_ns = 0
        self._latest = self._shadow  # where the last encoding is

    def encode(self, whose: Whose | None, asked: Asked) -> tuple[Context, CacheFigures]:
        """Encodes an observation under ``torch.inference_mode``.

        Args:
            whose: Whose cache to use and renew; nothing is kept when None.
            asked: The observation.
        """
        observation = asked.observation
        patches = self._patcher.cut(observation.frames)
        if whose is None or self.config.mode is CacheMode.OFF:
            off = self.config.mode is CacheMode.OFF
            reason = DenseReason.OFF if off else DenseReason.NO_SESSION
            return self._uncached(self._buffer(whose), patches, asked, reason)
        return self._cached(whose, asked, patches)

    def begin_elsewhere(self, begins: Beginning) -> Context:
        """The last encoding again, for a chunk that begins elsewhere."""
        self.prefix.begin(self._latest, begins)
        return self.prefix.context(self._latest)

    def _read(self, slot: Slot) -> Context:
        self._latest = slot
        return self.prefix.context(slot)

    def _cached(
        self, whose: Whose, asked: Asked, patches: list[Bytes]
    ) -> tuple[Context, CacheFigures]:
        observation = asked.observation
        names, frames = self._patcher.cameras, observation.frames
        identity = Identity.of(whose.episode, asked.prompt, self._checkpoint.digest, frames, names)
        cache, began = self.store.get(whose.session), time.perf_counter_ns()
        if cache is None:
            evicted = self.store.was_evicted(whose.session)
            reason = DenseReason.EVICTED if evicted else DenseReason.FIRST
        else:
            choice = self._chooser.choose(
                cache, identity, observation, patches, partial(self._effect, cache, asked)
            )
            self.choice_ns = time.perf_counter_ns() - began
            reason = choice.reason
            if reason is None:
                try:
                    self._update(cache, patches, choice, asked)
                except (RuntimeError, ValueError, IndexError) as error:
                    _log.error("observation %d: cache update: %s", observation.id, error)
                    reason = DenseReason.ERROR
        if cache is None or reason is not None:
            cache = self._renew(whose, identity, asked, patches)
        context = self._read(cache.slot)
        rows, computed = self.prefix.rows, len(self.chosen)
        figures = CacheFigures(rows, computed, int(cache.ages.max()), reason or "", cache.base)
        return context, figures

    def _uncached(
        self, slot: Slot, patches: list[Bytes], asked: Asked, reason: DenseReason
    ) -> tuple[Context, CacheFigures]:
        prompt, tensors = self._prompt(asked.prompt), self._tensors(patches)
        self.prefix.encode(slot, prompt, tensors, begins=asked.begins)
        self.chosen, context = self._all, self._read(slot)
        return context, CacheFigures(self.prefix.rows, self.prefix.rows, 0, reason)

    def _buffer(self, whose: Whose | None) -> Slot:
        """For one encoding; a session has its own, as fresh memory costs time."""
        if whose is None:
            return self.prefix.slot()
        slot = self._buffers.get(whose.session)
        if slot is None:
            slot = self._buffers[whose.session] = self.prefix.slot()
        return slot

    def _effect(self, cache: SessionCache, asked: Asked) -> Float:
        model, slot = self._checkpoint.model, cache.slot
        # Out of inference mode: its tensors have no gradients.
        with torch.inference_mode(False), torch.no_grad():
            plain = PolicyInput(
                {n: frames_to_tensor(frames) for n, frames in asked.observation.frames.items()},
                asked.begins.state.clone(),
                self._checkpoint.tokeniser.encode(asked.prompt)[None],
                asked.begins.start.clone(),
            )
            kept = tuple(kv.clone() for kv in slot.context)
            past = Past(kept, self.prefix.seen(slot)[None])
            generator = torch.Generator().manual_seed(self._seed * 1_000_003 + asked.observation.id)
            return measured_effect(model, plain, past, generator)[0].numpy()

    def _update(
        self, cache: SessionCache, patches: list[Bytes], choice: Choice, asked: Asked
    ) -> None:
        """Computes some rows in the shadow, and exchanges."""
        chosen, ages, observation = choice.rows, choice.ages, asked.observation
        local, begin = [], 0
        for number, end in enumerate((*chosen.searchsorted(self._ends).tolist(), len(chosen))):
            local.append(chosen[begin:end] - number * self.prefix.patches)
            begin = end
        fresh = [p.take(rows, 0) for p, rows in zip(patches, local, strict=True)]
        active = torch.from_numpy(np.concatenate((chosen, self._texts))).to(self.prefix.device)
        tensors, prompt = self._tensors(fresh), cache.prompt
        self.prefix.encode(self._shadow, prompt, tensors, active, cache.slot, asked.begins)
        cache.valid = False
        cache.slot, self._shadow = self._shadow, cache.slot
        for kept, new, rows in zip(cache.reference, fresh, local, strict=True):
            kept[rows] = new
        ages[chosen] = 0
        cache.ages, cache.latest, cache.since = ages, patches, cache.since + 1
        grippers = cache.seen.grippers
        cache.seen = Seen(observation.id, observation.step, observation.state, grippers)
        cache.valid, self.chosen = True, chosen

    def _renew(
        self, whose: Whose, identity: Identity, asked: Asked, patches: list[Bytes]
    ) -> SessionCache:
        """Computes everything, and keeps it."""
        observation = asked.observation
        prompt = self._prompt(asked.prompt)
        self.prefix.encode(self._shadow, prompt, self._tensors(patches), begins=asked.begins)
        slot, old = self._shadow, self.store.get(whose.session)
        self._shadow = self.prefix.slot() if old is None else old.slot
        state = observation.state
        cache = SessionCache(
            identity,
            slot,
            prompt,
            self._chooser.bias(lambda: prompt.instruction.cpu().numpy()),
            [p.copy() for p in patches],
            patches,
            np.zeros(self.prefix.rows, np.int64),
            Seen(observation.id, observation.step, state, state[self._chooser.grippers]),
            observation.id,
        )
        self.store.put(whose.session, cache)
        self.chosen = self._all
        return cache

    def settle(self, whose: Whose, cancelled: Callable[[], bool] | None = None) -> bool:
        """Slack time: computes a session's last frame wholly.

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
        if not self.config.slack or not cache.ages.any():
            return True
        latest = self._tensors(cache.latest)
        try:
            self.prefix.encode(self._shadow, cache.prompt, latest, cancelled=cancelled)
        except Cancelled:
            return False
        cache.valid = False
        cache.slot, self._shadow = self._shadow, cache.slot
        cache.reference = [p.copy() for p in cache.latest]
        cache.ages, cache.since = np.zeros_like(cache.ages), 0
        seen, cache.base = cache.seen, cache.seen.observation_id
        seen.grippers = seen.state[self._chooser.grippers]
        cache.valid = True
        return True

    @property
    def scoring_ns(self) -> int:
        """Of ``choice_ns``, what selector and predictor took [ns]."""
        return self._chooser.scoring_ns

    @property
    def shared_bytes(self) -> int:
        """Size of what all sessions share: the shadow [bytes]."""
        return self._shadow.nbytes

    def distrust(self, whose: Whose) -> None:
        """What came out was not finite: everything is computed the next time."""
        self.store.distrust(whose.session)

    def forget(self, session: Hashable) -> None:
        """Drops a session that has ended."""
        self.store.forget(session)
        self._buffers.pop(session, None)

    def _prompt(self, prompt: str) -> PromptRows:
        if prompt not in self._prompts:  # a policy knows a few instructions
            tokens = self._checkpoint.tokeniser.encode(prompt).to(self.prefix.device)
            self._prompts[prompt] = self.prefix.prompt(tokens)
        return self._prompts[prompt]

    def _tensors(self, patches: list[Bytes]) -> list[torch.Tensor]:
        return [torch.from_numpy(p).to(self.prefix.device) for p in patches]


# Whole frames at set times, or always: what slack time would add is what they are compared without.
_NEVER_SETTLE = (CacheMode.OFF, CacheMode.PERIODIC, CacheMode.DENSE)
