"""What a link is doing, for the control loop, the recorder and the person watching.

::

                 opened              silence while a reply is awaited
    CONNECTING ----------> STREAMING <===============================> STALE
        ^                   |     |           anything heard             |
        |                   |     | the server says that it leaves,      |
        |   session lost    |     v or the robot closes                  |
        +-------------------+  DRAINING <--------------------------------+
        |                         |                                      |
        +-------------------------+  the server has left                 |
        +----------------------------------------------------------------+
                                           session lost or given up

    any state ---> CLOSED: closed by the robot, or ended by a fatal error; the last one

A new link is CONNECTING. STALE is the grace between the first suspicion and giving the session up:
replies may still come, and then the link streams on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


class LinkState(StrEnum):
    """What a link is doing.

    Attributes:
        CONNECTING: No session is open; one is being opened, again and again.
        STREAMING: A session is open, and no reply is overdue.
        STALE: A session is open; a reply is awaited, and nothing was heard for too long.
        DRAINING: The session ends in good order: what is under way is still answered.
        CLOSED: Nothing more will come.
    """

    CONNECTING = "connecting"
    STREAMING = "streaming"
    STALE = "stale"
    DRAINING = "draining"
    CLOSED = "closed"


@dataclass(frozen=True)
class LinkStatus:
    """A state, and since when it holds.

    Attributes:
        state: The state.
        since_ns: When it was entered [ns], the machine's monotonic clock.
        reason: Why, for people.
    """

    state: LinkState
    since_ns: int
    reason: str = ""

    def age_ns(self, now_ns: int) -> int:
        """How long the state has held [ns]; never negative."""
        return max(0, now_ns - self.since_ns)


class StateKeeper:
    """Holds the present status: one thread writes, any thread reads, nobody waits.

    A reader gets one whole status, since only the reference to it is exchanged.
    """

    def __init__(
        self,
        on_change: Callable[[LinkStatus], None] | None = None,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """Args:
        on_change: Is told of each change by the thread that makes it; must return soon.
        now_ns: The clock [ns].
        """
        self._on_change, self._now_ns = on_change, now_ns
        self._status = LinkStatus(LinkState.CONNECTING, now_ns(), "not open yet")

    @property
    def status(self) -> LinkStatus:
        """The present status."""
        return self._status

    @property
    def state(self) -> LinkState:
        """The present state."""
        return self._status.state

    def enter(self, state: LinkState, reason: str) -> None:
        """Enters a state. The present one goes on as it is, and CLOSED is never left."""
        if self.state is LinkState.CLOSED or self.state is state:
            return
        self._status = LinkStatus(state, self._now_ns(), reason)
        if self._on_change is not None:
            self._on_change(self._status)
