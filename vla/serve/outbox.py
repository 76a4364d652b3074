"""What waits to be written to one robot. Lives in the event loop."""

from __future__ import annotations

import asyncio
from collections import deque

from controller.messages import ServerMessage

LIMIT = 64  # messages


class Outbox:
    """First in, first out; a full one holds up reading and never loses a message.

    The model may always put slices in. A robot that does not read its replies is not read from
    either, so that what waits here stays bounded.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[ServerMessage, int]] = deque()
        self._room = asyncio.Event()
        self._room.set()

    def put(self, message: ServerMessage, received_ns: int = 0) -> None:
        """Puts a message in.

        Args:
            message: What is to be sent.
            received_ns: For a slice, when its observation was received [ns], server's clock.
        """
        self._waiting.append((message, received_ns))
        if len(self._waiting) >= LIMIT:
            self._room.clear()

    async def room(self) -> None:
        """Waits until less than LIMIT messages are in it."""
        await self._room.wait()

    def take(self) -> tuple[ServerMessage, int] | None:
        """Takes the oldest message with its ``received_ns``; None when it is empty."""
        if not self._waiting:
            return None
        item = self._waiting.popleft()
        if len(self._waiting) < LIMIT:
            self._room.set()
        return item
