"""How long a link waits: before it tries again, and before it gives up."""

from __future__ import annotations

import math
from random import Random

_MOST = 32  # times the base
_DECAY = 0.8  # per answer


class Backoff:
    """Exponential with full jitter: a random share of a wait that doubles up to a bound.

    A fleet that has lost its server together does not come back together.
    """

    def __init__(self, first_s: float, most_s: float, random: Random) -> None:
        """Args:
        first_s: Bound of the first wait [s].
        most_s: Bound of every wait [s].
        random: The source of the shares.
        """
        self._first_s, self._most_s, self._random = first_s, most_s, random
        self._bound_s = first_s

    def reset(self) -> None:
        """After a success: the next wait is a first one."""
        self._bound_s = self._first_s

    def next_s(self) -> float:
        """Draws the next wait [s]."""
        wait_s = self._random.uniform(0.0, self._bound_s)
        self._bound_s = min(2 * self._bound_s, self._most_s)
        return wait_s


class Patience:
    """A deadline for replies that learns from them.

    It doubles when it was missed, unless the server turns out to have been gone: that says nothing
    about how long its replies take. Answers bring it back towards the base by a fifth each, but
    not below twice the time that the last one took.
    """

    def __init__(self, base_s: float) -> None:
        """Args:
        base_s: The deadline to begin with [s]; it is never shorter, and never over 32 times.
        """
        self._base_s = base_s
        self.deadline_s = self._before_s = base_s

    def missed(self) -> None:
        """The deadline has passed without a reply."""
        self._before_s = self.deadline_s
        self.deadline_s = min(2 * self.deadline_s, _MOST * self._base_s)

    def excuse(self) -> None:
        """The last miss was none: there was no server that could have replied."""
        self.deadline_s = min(self.deadline_s, self._before_s)

    def answered(self, took_s: float) -> None:
        """A reply took so long [s]."""
        self._before_s = math.inf
        needed_s = max(self._base_s, 2 * took_s, _DECAY * self.deadline_s)
        self.deadline_s = min(needed_s, _MOST * self._base_s)
