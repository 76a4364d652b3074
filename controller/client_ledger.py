"""Keeps account of the observations sent in one session: each is answered, or known as lost."""

from __future__ import annotations

from dataclasses import dataclass

from controller.client_types import LinkStats
from controller.mailbox import Letter
from controller.types import ActionSlice

_MAX_OUTSTANDING = 256  # a server that never answers some must not fill the memory


@dataclass
class _Entry:
    letter: Letter
    sent_s: float
    heard: bool = False


class Ledger:
    """What was sent in the present session and is not settled. Times are the event loop's [s]."""

    def __init__(self, stats: LinkStats) -> None:
        self._stats = stats
        self._entries: dict[int, _Entry] = {}
        self._first_id: int | None = None
        self._last_id = self._newest_heard = -1
        self._heard_s = 0.0

    def __len__(self) -> int:
        return len(self._entries)

    def begin(self, now_s: float) -> None:
        """Begins a session: nothing has been sent in it."""
        self._first_id, self._last_id, self._newest_heard = None, -1, -1
        self._heard_s = now_s

    def sending(self, letter: Letter, now_s: float) -> None:
        """Notes an observation as it goes out."""
        id = letter.observation.id
        self._first_id = id if self._first_id is None else min(id, self._first_id)
        self._last_id = max(id, self._last_id)
        self._stats.superseded += id in self._entries  # by itself: a caller's repetition
        self._entries[id] = _Entry(letter, now_s)
        self._stats.observations += 1
        while len(self._entries) > _MAX_OUTSTANDING:
            del self._entries[next(iter(self._entries))]
            self._stats.lost += 1

    def heard(self, now_s: float) -> None:
        """Notes that the server has said something."""
        self._heard_s = now_s

    def excuse(self, pause_s: float) -> None:
        """Leaves a time out of the silence in which nobody here could have heard anything."""
        self._heard_s += pause_s

    def answered(self, piece: ActionSlice, now_s: float) -> float | None:
        """Notes a slice; returns how long an observation's first one took [s]."""
        id = piece.observation_id
        entry = self._entries.get(id)
        if entry is None:
            return None
        self._newest_heard = max(self._newest_heard, id)
        took_s = None if entry.heard else now_s - entry.sent_s
        entry.heard = True
        if piece.final:
            del self._entries[id]
            self._stats.answered += 1
        return took_s

    def asked(self, id: int) -> bool:
        """Whether an observation of this id can have been sent in this session."""
        return self._first_id is not None and self._first_id <= id <= self._last_id

    def superseded(self, id: int) -> None:
        """The server has left an observation for a newer one."""
        self._stats.superseded += self._entries.pop(id, None) is not None

    def refused(self, id: int) -> Letter | None:
        """The server has refused an observation; returns it, where it was outstanding."""
        entry = self._entries.pop(id, None)
        if entry is None:
            return None
        self._stats.refused += 1
        return entry.letter

    @property
    def awaited(self) -> int:
        """Observations of which a reply is awaited; one that was overtaken no longer is."""
        return sum(id >= self._newest_heard for id in self._entries)

    def silence_s(self, now_s: float) -> float:
        """How long nothing has been heard while a reply is awaited [s]; 0 where none is."""
        awaited = [e.sent_s for id, e in self._entries.items() if id >= self._newest_heard]
        return max(0.0, now_s - max(min(awaited), self._heard_s)) if awaited else 0.0

    def end(self) -> Letter | None:
        """Ends the session: what is outstanding is lost.

        Returns:
            The newest observation lost, where it is the last one sent and nothing was heard of it.
        """
        newest = self._entries.get(self._last_id)
        self._stats.lost += len(self._entries)
        self._entries.clear()
        return None if newest is None or newest.heard else newest.letter
