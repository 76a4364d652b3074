"""Merges action slices by absolute step.

A chunk of observation 7 is being executed when observation 9 is taken at step 4 with a delay of 3
steps. Its committed actions stay; the new chunk takes over behind them::

    step            2    3    4    5    6    7    8    9    10   11
    observation 7   a7   a7   a7   a7   a7   a7   a7
    observation 9             a9   a9   a9   a9   a9   a9   a9   a9
                              |------------|
                               committed (7)
    executed        a7   a7   a7   a7   a7   a9   a9   a9   a9   a9

What stands at a step depends on observation ids and on what is committed, never on arrival order;
only a timeline that averages (``new_share`` below 1) takes actions as they come.

The step under way is still open. Without a commitment, an action for it that comes from a newer
observation before the step ends amends it: the robot goes on to the new action instead. Here the
answer to observation 9, taken as step 4 began, arrives within step 4::

                    | observation 9      | its answer
    step            |--------- 4 --------x--------|--------- 5 ---------|
    target          |         a7         |   a9   |         a9          |
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from controller.bounds import MAX_HORIZON, check_range
from controller.errors import ErrorCode, OnsetError
from controller.plan import Plan
from controller.types import ActionSlice, Float


@dataclass(frozen=True)
class MergeResult:
    """What became of the actions of one or more slices [count].

    Attributes:
        accepted: Stand now, at steps to come.
        amended: Stand now, at the step under way.
        late: Dropped: their step is past.
        committed: Dropped: their step is committed to an older observation.
        superseded: Dropped: a newer observation's action stands there.
        duplicate: Dropped: the same observation's action stands there already.
        beyond: Dropped: further ahead than the horizon limit.
        stale: Dropped: they answer an observation of an earlier episode.
    """

    accepted: int = 0
    amended: int = 0
    late: int = 0
    committed: int = 0
    superseded: int = 0
    duplicate: int = 0
    beyond: int = 0
    stale: int = 0

    def __add__(self, other: MergeResult) -> MergeResult:
        names = (field.name for field in fields(MergeResult))
        return MergeResult(*(getattr(self, name) + getattr(other, name) for name in names))


@dataclass
class _Entry:
    observation_id: int
    action: Float
    committed: bool = False


class Timeline:
    """The actions ahead, at most one per step; each step is executed once, in order."""

    def __init__(self, horizon_limit: int = MAX_HORIZON, new_share: float = 1.0) -> None:
        """Makes an empty timeline.

        Args:
            horizon_limit: Actions this far or further ahead of the present are refused [steps].
            new_share: Weight of an action where an older one stands: 1 replaces it, less averages
                the two.

        Raises:
            OnsetError: BAD_VALUE when an argument is out of range.
        """
        self._horizon_limit = check_range("horizon_limit", horizon_limit, 1, MAX_HORIZON)
        if not 0 < new_share <= 1:
            raise OnsetError(ErrorCode.BAD_VALUE, "new_share", new_share, "0 < new_share <= 1")
        self._new_share = new_share
        self._version = 0
        self.reset()

    def reset(self, first_observation_id: int = 0) -> None:
        """Begins a new episode at step 0.

        Args:
            first_observation_id: Slices that answer an older observation are stale from now on.
        """
        self._first_observation_id = first_observation_id
        self._entries: dict[int, _Entry] = {}
        self._under_way: _Entry | None = None
        self._next_step = 0
        self._missing = 0
        self._skipped = 0
        self._version += 1
        self._renewed_ns = -1

    @property
    def version(self) -> int:
        """Grows with every change of what stands."""
        return self._version

    def plan(self, step: int) -> Plan:
        """What stands from a step on, which is under way or to come."""
        count = max(max(self._entries, default=step) + 1 - step, 1)
        standing = [self._standing(at) for at in range(step, step + count)]
        width = next((len(entry.action) for entry in standing if entry is not None), 0)
        gap = np.zeros(width, dtype=np.float32)
        return Plan(
            step,
            np.stack([gap if entry is None else entry.action for entry in standing]),
            np.array([-1 if e is None else e.observation_id for e in standing], dtype=np.int64),
            self._renewed_ns,
            self._version,
        )

    @property
    def next_step(self) -> int:
        """The first step that can still be executed; the one before it is under way."""
        return self._next_step

    @property
    def last_step(self) -> int | None:
        """The last step that has an action; None when there is none ahead."""
        return max(self._entries, default=None)

    @property
    def under_way_id(self) -> int:
        """The observation whose action is under way; -1 where none is."""
        return -1 if self._under_way is None else self._under_way.observation_id

    @property
    def missing(self) -> int:
        """Steps that had no action when they began [count]."""
        return self._missing

    @property
    def skipped(self) -> int:
        """Steps that were never executed because time had passed them [count]."""
        return self._skipped

    def ahead(self, step: int) -> int:
        """Returns the number of steps from ``step`` on that have an action without a gap."""
        count = 0
        while step + count in self._entries:
            count += 1
        return count

    def action(self, step: int) -> Float | None:
        """Returns the action that stands at a step to come or under way, or None. Shape (A,)."""
        entry = self._standing(step)
        return None if entry is None else entry.action

    def merge(self, piece: ActionSlice, now_step: int, now_ns: int = -1) -> MergeResult:
        """Merges one slice and says what became of each of its actions.

        Args:
            piece: The slice.
            now_step: The present step; actions for earlier steps are late. Where it has begun, it
                is the step under way and may be amended.
            now_ns: The present [ns], robot's clock, by which the plan's age is told.
        """
        if piece.observation_id < self._first_observation_id:
            return MergeResult(stale=len(piece.steps))
        counts = dict.fromkeys(MergeResult.__dataclass_fields__, 0)
        # Once it has passed, the step that was executed last can no longer be amended.
        first = max(now_step, self._next_step - 1)
        for step, action in zip(piece.steps.tolist(), piece.actions, strict=True):
            counts[self._place(step, action, piece.observation_id, first)] += 1
        if counts["accepted"] or counts["amended"]:
            self._version += 1
            self._renewed_ns = now_ns
        return MergeResult(**counts)

    def _place(self, step: int, action: Float, observation_id: int, first: int) -> str:
        if step < first:
            return "late"
        if step >= first + self._horizon_limit:
            return "beyond"
        entry = self._standing(step)
        if entry is not None:
            if entry.observation_id == observation_id:
                return "duplicate"
            if entry.committed:
                return "committed"
            if entry.observation_id > observation_id:
                return "superseded"
        kept = np.array(action, dtype=np.float32)
        if entry is not None and self._new_share < 1:
            kept += (1 - self._new_share) * (entry.action - kept)
        kept.flags.writeable = False
        if step < self._next_step:
            self._under_way = _Entry(observation_id, kept)
            return "amended"
        self._entries[step] = _Entry(observation_id, kept)
        return "accepted"

    def _standing(self, step: int) -> _Entry | None:
        return self._under_way if step == self._next_step - 1 else self._entries.get(step)

    def planned(self, step: int, count: int) -> Float:
        """Returns what stands at steps ``step .. step+count-1``, as far as there is no gap.

        Shape (n, A), n <= count; shape (0, 0) when there is none.
        """
        steps = range(step, step + min(count, self.ahead(step)))
        actions = [self._entries[at].action for at in steps]
        return np.stack(actions) if actions else np.zeros((0, 0), dtype=np.float32)

    def drop(self, step: int) -> int:
        """Forgets the actions of ``step`` and later, unless committed; returns how many."""
        gone = [at for at, e in self._entries.items() if at >= step and not e.committed]
        for at in gone:
            del self._entries[at]
        self._version += 1
        return len(gone)

    def commit(self, step: int, delay: int) -> Float:
        """Commits the actions of steps ``step .. step+delay-1``: they never change again.

        Returns:
            The committed actions. Shape (n, A), n <= delay: fewer where the chunk ends before, or
            has a gap. Shape (0, 0) when there is none.
        """
        actions = self.planned(step, delay)
        for at in range(step, step + len(actions)):
            self._entries[at].committed = True
        return actions

    def execute(self, step: int) -> Float | None:
        """Begins a step: it is under way until the next one. A step can be executed once.

        Steps that are passed over count as skipped; a step without an action counts as missing.

        Returns:
            The action, or None when there is none. Shape (A,). A later ``merge`` may amend it;
            ``action(step)`` is then the new one.

        Raises:
            OnsetError: STEP_ORDER when this or a later step was executed before.
        """
        if step < self._next_step:
            raise OnsetError(
                ErrorCode.STEP_ORDER, "timeline.execute", step, f"{self._next_step} or later"
            )
        self._skipped += step - self._next_step
        entry = self._under_way = self._entries.pop(step, None)
        for passed in [at for at in self._entries if at < step]:
            del self._entries[passed]
        self._next_step = step + 1
        self._version += 1
        if entry is None:
            self._missing += 1
            return None
        return entry.action
