"""Prefix rows of a LeRobot policy that are kept while their part of the picture stays as it was.

What ``vla.cache`` does for the built-in model, with its rules, choice, selector and store::

    frames --fitted, a patch per image token--> choice of M rows --+
    frames --tower, where a camera has changed--> image tokens ----+--> layers, in place
    words and state, always ---------------------------------------+

The tower looks at whole pictures and is exact; only rows behind it grow old. Where nothing has
changed and no row is old, what would come out the same is not run: pi0's prefix not at all, of
SmolVLA's the state alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from lerobot.utils.constants import OBS_LANGUAGE_TOKENS
from numpy.typing import NDArray

from controller.errors import ErrorCode, OnsetError
from controller.types import CacheFigures, Observation
from vla.adapters.fitted import SIDE, fit
from vla.adapters.flow import Batch
from vla.adapters.kv import CancellableCache, PrefixContext, RowCache, laid
from vla.adapters.load import LeRobotPolicy
from vla.adapters.prefix import Prefix, PrefixAdapter
from vla.adapters.row_slot import RowSlot, Sight
from vla.adapters.tower import Slot
from vla.cache.asked import Whose
from vla.cache.choice import Choice, Chooser
from vla.cache.config import CacheConfig, CacheMode, DenseReason
from vla.cache.patches import Patcher
from vla.cache.prefix import Cancelled
from vla.cache.rules import Identity, Seen
from vla.cache.selector import Selector
from vla.cache.store import CacheStore, SessionCache
from vla.cache.subject import Subject

_log = logging.getLogger(__name__)

Patches = list[NDArray[np.uint8]]
_NONE = np.empty(0, np.int64)


class RowEncoder:
    """A policy's ``encode`` with kept rows for each session. Not thread-safe.

    A context is good until the next one of its session is encoded.

    Attributes:
        store: The sessions' caches.
        chosen: The image tokens that the last call computed, increasing. Shape (M,), int64.
    """

    def __init__(
        self,
        policy: LeRobotPolicy,
        cameras: Mapping[str, str],
        config: CacheConfig,
        selector: Selector | None = None,
        seed: int = 0,
    ) -> None:
        """Args:
        policy: What is served.
        cameras: Robot's camera to the key that the preprocessor takes, as ``in_order`` gives them.
        config: Settings.
        selector: For the learned mode.
        seed: Of the random mode.

        Raises:
            OnsetError: BAD_VALUE: the policy has no such rows, or the learned mode is without a
                selector or with another policy's.
        """
        self._adapter, self.patcher = rows_of(policy, tuple(cameras), config.mode)
        self.config, self._digest = config, policy.digest
        self._count = self.patcher.per_camera * len(cameras)  # N
        # All of them are an arm's: a checkpoint does not know which of its numbers is a gripper.
        joints = tuple(range(policy.adapter.state_dim))
        # By the policy's names: a selector knows which of them are on the arm.
        seen = tuple(key.rpartition(".")[2] for key in cameras.values())
        subject = Subject(policy.name, policy.digest, seen, joints)
        self._chooser = Chooser(subject, config, selector, self.patcher, seed)
        self.store = CacheStore(config.budget)
        self.chosen: NDArray[np.int64] = _NONE

    def encode(
        self,
        whose: Whose,
        observation: Observation,
        prompt: str,
        batch: Batch,
        slots: Sequence[Slot],
    ) -> tuple[PrefixContext, CacheFigures]:
        """Encodes an observation under ``torch.inference_mode``.

        Args:
            whose: Whose rows to use and renew.
            observation: What the robot sees.
            prompt: The instruction.
            batch: Of it, as the preprocessor gives it.
            slots: As for the adapter's ``encode``.
        """
        prefix = self._adapter.embed(batch, slots)
        self._check(prefix)
        sight = Sight(prefix, batch[OBS_LANGUAGE_TOKENS], tuple(s.features for s in slots))
        patches = cut(self.patcher, self._adapter, observation.frames)
        names = self.patcher.cameras
        identity = Identity.of(whose.episode, prompt, self._digest, observation.frames, names)
        cache = self.store.get(whose.session)
        choice = self._choose(whose, cache, identity, observation, patches, sight)
        if cache is not None and choice.reason is None:
            try:
                self._update(cache, choice, observation, patches, sight)
            except (RuntimeError, ValueError, IndexError) as error:
                _log.error("observation %d: cache update: %s", observation.id, error)
                choice = replace(choice, reason=DenseReason.ERROR)
        if cache is None or choice.reason is not None:
            cache = self._renew(whose, identity, observation, patches, sight)
        slot, oldest = _slot(cache), int(cache.ages.max())
        figures = CacheFigures(
            self._count, len(self.chosen), oldest, choice.reason or "", cache.base
        )
        return prefix.context(slot.keys, slot.values), figures

    def _check(self, prefix: Prefix) -> None:
        """Blank pictures may follow the cameras'; nothing sees their rows."""
        more = prefix.images - self._count
        if more < 0 or more % self.patcher.per_camera:
            raise OnsetError(
                ErrorCode.INTERNAL,
                "policy.image_tokens",
                prefix.images,
                f"{self._count} and so many pictures of {self.patcher.per_camera}",
            )

    def _choose(
        self,
        whose: Whose,
        cache: SessionCache | None,
        identity: Identity,
        observation: Observation,
        patches: Patches,
        sight: Sight,
    ) -> Choice:
        if cache is None:
            evicted = self.store.was_evicted(whose.session)
            return Choice(DenseReason.EVICTED if evicted else DenseReason.FIRST, _NONE, _NONE)
        choice = self._chooser.choose(cache, identity, observation, patches, _no_oracle)
        whole = choice.reason in (None, DenseReason.CHOSEN) and not cache.ages.any()
        if whole and sight.same(_slot(cache).sight):
            return Choice(None, _NONE, cache.ages)  # and nothing grows older
        return choice

    def _update(
        self,
        cache: SessionCache,
        choice: Choice,
        observation: Observation,
        patches: Patches,
        sight: Sight,
    ) -> None:
        """Computes some rows, in place."""
        slot, rows, ages = _slot(cache), choice.rows, choice.ages
        cache.valid = False  # until all layers are through
        active = slot.later
        if len(rows) or ages.any():
            device = sight.prefix.rows.device
            texts = np.arange(sight.prefix.images, sight.prefix.rows.shape[1])
            active = torch.from_numpy(np.concatenate([rows, texts])).to(device)
        if len(active):
            cells = RowCache(slot.keys, slot.values, active)
            self._adapter.run_layers(sight.prefix, cells, active)
        each = self.patcher.per_camera
        for number, (kept, new) in enumerate(zip(cache.reference, patches, strict=True)):
            own = rows[rows // each == number] - number * each
            kept[own] = new[own]
        ages[rows] = 0
        slot.sight = sight
        cache.ages, cache.latest, cache.since = ages, patches, cache.since + 1
        cache.seen = Seen(observation.id, observation.step, observation.state, cache.seen.grippers)
        cache.valid, self.chosen = True, rows

    def _renew(
        self,
        whose: Whose,
        identity: Identity,
        observation: Observation,
        patches: Patches,
        sight: Sight,
    ) -> SessionCache:
        """Computes everything, and keeps it."""
        prefix = sight.prefix
        slot = RowSlot(sight, prefix.later, *laid(self._adapter.run_layers(prefix)))
        state = observation.state
        cache = SessionCache(
            identity,
            cast(Any, slot),
            cast(Any, None),  # the instruction's rows are in the slot
            self._chooser.bias(lambda: prefix.instruction[0].float().cpu().numpy()),
            [p.copy() for p in patches],
            patches,
            np.zeros(self._count, np.int64),
            Seen(observation.id, observation.step, state, state[self._chooser.grippers]),
            observation.id,
        )
        self.store.put(whose.session, cache)
        self.chosen = np.arange(self._count)
        return cache

    def settle(self, whose: Whose, cancelled: Callable[[], bool]) -> bool:
        """Slack time: computes all rows of a session's last frame.

        Under ``torch.inference_mode``. Whatever is cancelled leaves the session as it was.

        Args:
            whose: Whose rows.
            cancelled: Asked before each layer.

        Returns:
            Whether it came to its end.
        """
        cache = self.store.get(whose.session)
        never = not self.config.slack or self.config.mode in (CacheMode.PERIODIC, CacheMode.DENSE)
        if never or cache is None or not cache.valid or not cache.ages.any():
            return True
        slot = _slot(cache)
        try:
            filled = self._adapter.run_layers(slot.sight.prefix, CancellableCache(cancelled))
        except Cancelled:
            return False
        slot.keys, slot.values = laid(filled)
        cache.reference = [p.copy() for p in cache.latest]
        cache.ages, cache.since = np.zeros_like(cache.ages), 0
        cache.base = cache.seen.observation_id
        return True

    def distrust(self, whose: Whose) -> None:
        """What came out was not finite: everything is computed the next time."""
        self.store.distrust(whose.session)

    def forget(self, session: Hashable) -> None:
        """Drops a session that has ended."""
        self.store.forget(session)


def rows_of(
    policy: LeRobotPolicy, cameras: Sequence[str], mode: str
) -> tuple[PrefixAdapter, Patcher]:
    """The policy's adapter, and what cuts its frames into a patch per image token.

    Raises:
        OnsetError: BAD_VALUE: it keeps no rows, with what it supports.
    """
    adapter = policy.adapter
    adapter.capabilities.check_cache(policy.name, mode)
    grid = adapter.grid if isinstance(adapter, PrefixAdapter) else None
    if not isinstance(adapter, PrefixAdapter) or grid is None:
        raise OnsetError(ErrorCode.INTERNAL, "policy.grid", grid, "image tokens in rows")
    return adapter, Patcher(cameras, SIDE, grid)


def cut(patcher: Patcher, adapter: PrefixAdapter, frames: Any) -> Patches:
    """Per camera the patches of its newest frame. Shape (P, K).

    Args:
        patcher: From ``rows_of``.
        adapter: From ``rows_of``.
        frames: Per camera. Shape (lags, h, w, 3), uint8.
    """
    grid = adapter.grid or 1
    return patcher.cut(
        {name: fit(frames[name][0], grid, adapter.centred) for name in patcher.cameras}
    )


def _slot(cache: SessionCache) -> RowSlot:
    return cast(RowSlot, cache.slot)


def _no_oracle() -> NDArray[np.float32]:
    raise OnsetError(ErrorCode.INTERNAL, "cache", "oracle", "another mode")
