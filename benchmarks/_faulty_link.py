"""A link that loses, reorders and repeats messages, the same way each time for one seed.

::

    sent        1   2   3   4   5   6
    lost                x
    held back       |-------->               2 comes after 4
    repeated                    5 5
    arrives     1       4   2   5   5  6
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from random import Random

from controller.bounds import check_range
from controller.link import EpisodicLink, PolicyLink
from controller.types import ActionSlice, Observation


@dataclass(frozen=True)
class Faults:
    """How much goes wrong: shares in 0..1, of observations and of slices alike.

    Attributes:
        lost: Never arrive.
        reordered: Are held back until one to ``depth`` later ones have passed.
        duplicated: Arrive twice: an observation by a second ``submit``, a slice once more, right
            away or after up to ``depth`` others.
        depth: How many messages one that is held back lets pass, at most [count].
        hold_ns: A message that is held back comes after this time at the latest [ns], where no
            others come.
    """

    lost: float = 0.0
    reordered: float = 0.0
    duplicated: float = 0.0
    depth: int = 3
    hold_ns: int = 200_000_000

    def __post_init__(self) -> None:
        for name in ("lost", "reordered", "duplicated"):
            check_range(f"faults.{name}", getattr(self, name), 0, 1)
        check_range("faults.depth", self.depth, 1, 1000)
        check_range("faults.hold_ns", self.hold_ns, 1, 2**62)


@dataclass
class FaultCounts:
    """What was done, in one direction [count].

    Attributes:
        passed: Messages that came in.
        lost: Dropped.
        reordered: Held back.
        duplicated: Repeated.
        voided: Dropped while they were held back, by a new episode.
    """

    passed: int = 0
    lost: int = 0
    reordered: int = 0
    duplicated: int = 0
    voided: int = 0


class _Way[T]:
    """One direction."""

    def __init__(self, faults: Faults, random: Random) -> None:
        self._faults, self._random = faults, random
        self._held: deque[list] = deque()  # [messages to let pass, due, message]
        self.counts = FaultCounts()

    def pass_on(self, message: T, now_ns: int) -> list[T]:
        """What arrives as a message is sent: itself, and those that it lets go."""
        faults, counts = self._faults, self.counts
        counts.passed += 1
        # Always the same number of draws, so that one share does not change the others' victims.
        lost, late, twice, after = (self._random.random() for _ in range(4))
        arrives: list[T] = []
        depth = 1 + int(after * faults.depth)
        hold = [depth, now_ns + faults.hold_ns, message]
        copies = 1 + (twice < faults.duplicated)
        if lost < faults.lost:
            counts.lost += 1
            copies = 0
        counts.duplicated += copies == 2
        held = copies > 0 and late < faults.reordered
        if copies and not held:
            arrives.append(message)
        freed = self._free(now_ns, passing=1)
        if held:
            counts.reordered += 1
            self._held.append(hold)
        if copies == 2:
            # The repetition goes its own way: at once behind the first, or later.
            if held or late < 0.5:
                arrives.append(message)
            else:
                self._held.append(list(hold))
        return arrives + freed

    def due(self, now_ns: int) -> list[T]:
        """What was held back for long enough."""
        return self._free(now_ns, passing=0)

    def _free(self, now_ns: int, passing: int) -> list[T]:
        freed, kept = [], deque()
        for left, due_ns, message in self._held:
            if left - passing <= 0 or now_ns >= due_ns:
                freed.append(message)
            else:
                kept.append([left - passing, due_ns, message])
        self._held = kept
        return freed

    def void(self) -> None:
        self.counts.voided += len(self._held)
        self._held.clear()


class FaultyLink:
    """A ``PolicyLink`` and ``EpisodicLink`` around another.

    An observation out of order is one that the server's side refuses or a link replaces; what is
    held back moves when ``submit`` or ``poll`` is called, by the times that those know.

    Attributes:
        link: The link around which it is.
    """

    def __init__(self, link: PolicyLink, faults: Faults, seed: int = 0) -> None:
        """Args:
        link: The link.
        faults: What goes wrong.
        seed: Decides for which messages.
        """
        self.link = link
        self._up: _Way[Observation] = _Way(faults, Random(f"up {seed}"))
        self._down: _Way[ActionSlice] = _Way(faults, Random(f"down {seed}"))
        self._now_ns = 0

    def submit(self, observation: Observation) -> None:
        """Hands over what arrives; a loss is not told.

        Raises:
            OnsetError: As the link's own.
        """
        self._now_ns = max(self._now_ns, observation.capture_ns)
        for each in self._up.pass_on(observation, self._now_ns):
            self.link.submit(each)

    def poll(self, now_ns: int) -> list[ActionSlice]:
        """The slices that arrive, in the order in which they do.

        Raises:
            OnsetError: As the link's own.
        """
        self._now_ns = max(self._now_ns, now_ns)
        for each in self._up.due(self._now_ns):
            self.link.submit(each)
        pieces = self._down.due(now_ns)
        for piece in self.link.poll(now_ns):
            pieces.extend(self._down.pass_on(piece, now_ns))
        return pieces

    def reset(self, episode: str, prompt: str) -> None:
        """A new episode: observations held back are dropped, slices may still come late.

        Raises:
            OnsetError: As the link's own.
        """
        self._up.void()
        if isinstance(self.link, EpisodicLink):
            self.link.reset(episode, prompt)

    @property
    def observations(self) -> FaultCounts:
        """A snapshot of what was done to observations."""
        return replace(self._up.counts)

    @property
    def slices(self) -> FaultCounts:
        """A snapshot of what was done to slices."""
        return replace(self._down.counts)
