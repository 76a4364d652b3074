"""Settings and counts of a link."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from controller.errors import ErrorCode, OnsetError
from controller.messages import Notice

Event = Notice | OnsetError


@dataclass(frozen=True)
class LinkConfig:
    """Settings of a link.

    From a server's return to its first slice it takes at most ``connect_timeout_s`` (an attempt
    that had just begun) + ``max_backoff_s`` + what opening and inference take: 0.65 s and those.

    Attributes:
        reply_deadline_s: A session that says nothing this long while a reply is awaited is given
            up and opened again [s]. Where the server is still there, each time doubles it, to 32
            times at most, and replies that come sooner bring it back, so that a slow model is not
            taken for a dead one for ever.
        stale_after_s: After this silence the link counts as stale, or after half the present
            reply deadline where that is longer [s].
        open_timeout_s: Longest wait for the first Opened, through all attempts [s].
        connect_timeout_s: Longest wait for a connection, and again for Opened, in one attempt
            [s]. Doubles while there has been no session yet, for a slow network.
        min_backoff_s: The first retry waits at most this long [s].
        max_backoff_s: No retry waits longer [s].
        max_awaited: While so many observations are awaited, the next one waits here, where a newer
            one replaces it, and not in the buffers of a slow network [count].
        shared_frames: Whether frames go through shared memory, as they are, where the server is on
            this machine (Linux) and they are large enough to be worth it. It takes
            ``max_awaited`` observations' frames of it.
    """

    reply_deadline_s: float = 0.25
    stale_after_s: float = 0.12
    open_timeout_s: float = 10.0
    connect_timeout_s: float = 0.4
    min_backoff_s: float = 0.05
    max_backoff_s: float = 0.25
    max_awaited: int = 8
    shared_frames: bool = True

    def __post_init__(self) -> None:
        for name in (f.name for f in fields(self) if f.name != "shared_frames"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise OnsetError(ErrorCode.BAD_VALUE, f"config.{name}", value, "> 0, finite")
        if self.min_backoff_s > self.max_backoff_s:
            raise OnsetError(
                ErrorCode.BAD_VALUE,
                "config.min_backoff_s",
                self.min_backoff_s,
                f"at most max_backoff_s = {self.max_backoff_s}",
            )


@dataclass
class LinkStats:
    """Counts since the link was made.

    Nothing is lost silently::

        submitted + resent = replaced + expired + withdrawn + unsendable + observations + waiting
        observations       = answered + superseded + refused + lost + outstanding

    where at most one observation is waiting, and none is waiting or outstanding at the end.

    Attributes:
        reopens: Sessions opened after the first one.
        failed_attempts: Attempts to open a session that failed.
        reply_timeouts: Sessions given up because the server said nothing in time.
        submitted: Observations handed over.
        replaced: Observations replaced by a newer one before they were sent.
        expired: Observations whose deadline passed before they could be sent.
        withdrawn: Observations dropped unsent by a new episode or at the end.
        unsendable: Observations that could not be encoded.
        resent: Observations handed over again, because their session was lost.
        observations: Observations sent; one that is sent again counts twice.
        answered: Observations whose chunk is complete.
        superseded: Observations that the server left for a newer one, or for a new episode, and
            those sent once more while they were under way.
        refused: Observations that the server refused.
        lost: Observations without a complete answer when their session ended.
        slices: Slices received.
        strays: Slices dropped that answer nothing sent in this session.
        notices: Notices received.
        errors: Errors received that the session survives, and observations unsendable.
        malformed: Messages received that do not decode.
        bytes_up: Bytes sent, without the transport's own.
        bytes_down: Bytes received, without the transport's own.
        bytes_shared: Bytes of frames that went through shared memory.
    """

    reopens: int = 0
    failed_attempts: int = 0
    reply_timeouts: int = 0
    submitted: int = 0
    replaced: int = 0
    expired: int = 0
    withdrawn: int = 0
    unsendable: int = 0
    resent: int = 0
    observations: int = 0
    answered: int = 0
    superseded: int = 0
    refused: int = 0
    lost: int = 0
    slices: int = 0
    strays: int = 0
    notices: int = 0
    errors: int = 0
    malformed: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    bytes_shared: int = 0
