"""Models of the time from an observation to its actions, in virtual time.

A policy streams the pieces of a chunk; a latency model says when each of them arrives. With
``Compute`` one server works on one observation at a time, so the pieces of the second one wait
until the inference before is over::

    observation 1   |=prefix=|=step=|=step=|=step=|
                    ^ capture       ^ piece after 1 expert step ...
    observation 2           |......................|=prefix=|=step=|=step=|=step=|
                            ^ capture              ^ begins
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from controller.bounds import MAX_COUNT, check_range
from controller.types import ActionSlice, Float, Observation
from sim.collect import Infer


class Piece(Protocol):
    """Finished actions of a chunk."""

    @property
    def start_step(self) -> int:
        """The absolute step with which the chunk begins."""
        ...

    @property
    def steps(self) -> NDArray[np.int64]:
        """Absolute steps. Shape (n,)."""
        ...

    @property
    def actions(self) -> Float:
        """Shape (n, A), in the robot's units."""
        ...

    @property
    def final(self) -> bool:
        """Whether the chunk is complete."""
        ...

    @property
    def expert_steps(self) -> int:
        """Expert steps run until it was finished."""
        ...


# A policy in process: an observation to the pieces of its chunk, as they become ready.
Stream = Callable[[Observation], Iterable[Piece]]


@dataclass(frozen=True)
class Whole:
    """A chunk in one piece; the attributes are ``Piece``'s."""

    start_step: int
    steps: NDArray[np.int64]
    actions: Float
    expert_steps: int
    final: bool = True


def whole(infer: Infer, expert_steps: int = 0) -> Stream:
    """A function that returns whole chunks, as a stream of one piece each.

    Args:
        infer: An observation to its chunk, shape (H, A).
        expert_steps: After how many expert steps the chunk is said to be ready.
    """

    def stream(observation: Observation) -> list[Whole]:
        actions = np.asarray(infer(observation), dtype=np.float32)
        steps = observation.step + np.arange(len(actions))
        return [Whole(observation.step, steps, actions, expert_steps)]

    return stream


class Times(Protocol):
    """The times of one inference."""

    def arrival_ns(self, expert_steps: int) -> int | None:
        """Time from its beginning to the arrival of a piece [ns]; None: it never arrives."""
        ...

    def busy_ns(self, expert_steps: int) -> int:
        """Time for which an inference of so many steps keeps the server from the next [ns]."""
        ...


class Latency(Protocol):
    """When the pieces of a chunk arrive."""

    def draw(self, seed: int, observation_id: int) -> Times:
        """Returns the times of one observation's inference.

        They depend on the two numbers alone, so that no order of calls changes them.

        Args:
            seed: Tells episodes apart, >= 0.
            observation_id: Tells the observations of an episode apart, >= 0.
        """
        ...


@dataclass(frozen=True)
class Fixed:
    """Every piece after the same time [ns]; the server is never busy."""

    latency_ns: int

    def __post_init__(self) -> None:
        check_range("latency_ns", self.latency_ns, 0, MAX_COUNT)

    def draw(self, seed: int, observation_id: int) -> Fixed:
        return self

    def arrival_ns(self, expert_steps: int) -> int:
        return self.latency_ns

    def busy_ns(self, expert_steps: int) -> int:
        return 0


@dataclass(frozen=True)
class Compute:
    """The time of the computation, on a server that does one inference at a time.

    Attributes:
        prefix_ns: Vision and prefix, once a chunk [ns].
        step_ns: One expert step [ns].
    """

    prefix_ns: int
    step_ns: int

    def __post_init__(self) -> None:
        check_range("prefix_ns", self.prefix_ns, 0, MAX_COUNT)
        check_range("step_ns", self.step_ns, 0, MAX_COUNT)

    def draw(self, seed: int, observation_id: int) -> Compute:
        return self

    def arrival_ns(self, expert_steps: int) -> int:
        return self.prefix_ns + expert_steps * self.step_ns

    def busy_ns(self, expert_steps: int) -> int:
        return self.arrival_ns(expert_steps)


@dataclass(frozen=True)
class _Request:
    observation: Observation
    pieces: list[Piece]


class DelayedLink:
    """A policy in process whose answers arrive later, in virtual time.

    The policy runs when the observation is taken; each piece is held back until its time. An
    observation that still waits for the server is replaced by a newer one, as on a real server.
    Where the latency varies, a later observation's pieces may overtake an earlier one's.
    """

    def __init__(self, stream: Stream, latency: Latency, seed: int = 0) -> None:
        """Makes a link with nothing under way.

        Args:
            stream: The policy, in process.
            latency: When the pieces of a chunk arrive.
            seed: Of a latency that varies; the episode's, so that episodes differ.

        Raises:
            OnsetError: BAD_VALUE when the seed is negative.
        """
        self._stream, self._latency = stream, latency
        self._seed = check_range("seed", seed, 0, MAX_COUNT)
        self._waiting: _Request | None = None
        self._free_ns = 0  # when the server is done with what it has begun
        self._under_way: list[tuple[int, ActionSlice]] = []

    def submit(self, observation: Observation) -> None:
        self._begin(observation.capture_ns)
        self._waiting = _Request(observation, list(self._stream(observation)))
        self._begin(observation.capture_ns)

    def poll(self, now_ns: int) -> list[ActionSlice]:
        self._begin(now_ns)
        due = sorted((p for p in self._under_way if p[0] <= now_ns), key=lambda pair: pair[0])
        self._under_way = [p for p in self._under_way if p[0] > now_ns]
        return [piece for _, piece in due]

    def _begin(self, now_ns: int) -> None:
        """Begins what waits, if the server has become free by now."""
        if self._waiting is None or self._free_ns > now_ns:
            return
        observation, pieces = self._waiting.observation, self._waiting.pieces
        self._waiting = None
        began_ns = max(observation.capture_ns, self._free_ns)
        times = self._latency.draw(self._seed, observation.id)
        for piece in pieces:
            arrival_ns = times.arrival_ns(piece.expert_steps)
            if arrival_ns is not None:
                self._under_way.append((began_ns + arrival_ns, _slice(observation, piece)))
        last = max((piece.expert_steps for piece in pieces), default=0)
        self._free_ns = began_ns + times.busy_ns(last)


def _slice(observation: Observation, piece: Piece) -> ActionSlice:
    return ActionSlice(
        observation_id=observation.id,
        start_step=piece.start_step,
        steps=piece.steps,
        actions=piece.actions,
        final=piece.final,
    )
