"""Which observation the model answers next. A pure data structure: time is an argument.

    session   waiting          due          take() gives
    a         observation 7    +120 ms      b's 4, then a's 7
    b         observation 4    + 40 ms

Each session has one place. A newer observation takes it, so that no robot is answered about the
past while its present waits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from controller.strategy import STRATEGIES, Strategy
from controller.types import Observation
from vla.chunking import ChunkMemory


@dataclass(frozen=True)
class Request:
    """One observation on its way to the model.

    Attributes:
        session: Key of the session.
        observation: With its frames decoded.
        prompt: The instruction in force.
        received_ns: When it was received [ns], server's clock.
        decode_ns: How long its frames took to decode [ns].
        due_ns: When its robot runs out of actions [ns], server's clock.
        strategy: What the chunk is conditioned on.
        memory: What the session's robot was told before; the model's thread alone touches it.
        episode: The episode under way.
    """

    session: int
    observation: Observation
    prompt: str
    received_ns: int
    decode_ns: int
    due_ns: int
    strategy: Strategy = STRATEGIES["naive"]
    memory: ChunkMemory | None = None
    episode: str = ""

    @staticmethod
    def of(
        session: int,
        observation: Observation,
        prompt: str,
        received_ns: int,
        decode_ns: int,
        strategy: Strategy = STRATEGIES["naive"],
        memory: ChunkMemory | None = None,
        episode: str = "",
    ) -> Request:
        """A request that is due the observation's deadline after its receipt."""
        due_ns = received_ns + observation.deadline_ns
        return Request(
            session, observation, prompt, received_ns, decode_ns, due_ns, strategy, memory, episode
        )

    def overdue(self, now_ns: int) -> bool:
        """Whether its robot has run out of actions while it waited.

        A deadline of 0 says that it had none to begin with, and nothing about this server.
        """
        return self.observation.deadline_ns > 0 and now_ns > self.due_ns


class Scheduler:
    """Latest-wins within a session, earliest deadline first between sessions."""

    def __init__(self) -> None:
        self._waiting: dict[int, tuple[int, Request]] = {}
        self._count = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, request: Request) -> Request | None:
        """Places a request; returns the one of the same session that it replaces.

        The new one is due no later than the one replaced: a robot that sends often does not lose
        its turn by it.
        """
        old = self.drop(request.session)
        if old is not None:
            request = replace(request, due_ns=min(old.due_ns, request.due_ns))
        self._count += 1
        self._waiting[request.session] = (self._count, request)
        return old

    def take(self) -> Request | None:
        """Takes the request that is due first; of several, the one placed first."""
        if not self._waiting:
            return None
        _, first = min(self._waiting.values(), key=lambda item: (item[1].due_ns, item[0]))
        return self.drop(first.session)

    def drop(self, session: int) -> Request | None:
        """Takes a session's request out, if it has one."""
        _, request = self._waiting.pop(session, (0, None))
        return request
