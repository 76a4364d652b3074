"""What crosses between processes: a word, the newest value; the ring has a file of its own.

None of them locks, waits or pickles; each has one writer. A part is described by its layout, and
lives in a ``controller.shared.Segment``.

A process may die anywhere. A writer that takes over goes on from what stands in memory: what was
half written was never announced, and is written again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from controller.shared_slots import LINE, Record, Slots, check_dtype, slots_size

_ATTEMPTS = 8
_BUFFERS = 2


@dataclass(frozen=True)
class WordLayout:
    """One int64."""

    @property
    def size(self) -> int:
        """Bytes: a cache line, so that words of different writers do not slow each other."""
        return LINE

    def __str__(self) -> str:
        return "word"


@dataclass(frozen=True)
class LatestLayout:
    """The newest value of a structured dtype."""

    dtype: np.dtype

    def __post_init__(self) -> None:
        check_dtype("latest.dtype", self.dtype)

    @property
    def size(self) -> int:
        return LINE + slots_size(self.dtype, _BUFFERS)

    def __str__(self) -> str:
        return f"latest of {self.dtype.descr}"


class Word:
    """An int64 of one writer: a heartbeat [ns], a counter, a flag. It begins as 0."""

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._words = view.cast("q")

    def release(self) -> None:
        self._words.release()
        self._view.release()

    @property
    def value(self) -> int:
        return self._words[0]

    @value.setter
    def value(self, value: int) -> None:
        self._words[0] = value

    def add(self, amount: int = 1) -> int:
        """Adds to it and returns the sum. For its writer only: another's addition may get lost."""
        self._words[0] = value = self._words[0] + amount
        return value


class Latest:
    """The newest value: one writer, any number of readers, none of which waits.

    Two buffers are written in turn, so that the value before the newest is whole while the newest
    is written, and stays so when its writer dies.
    """

    def __init__(self, view: memoryview, dtype: np.dtype) -> None:
        self._view = view
        self._words = view[:LINE].cast("q")
        self._slots = Slots(view[LINE:], dtype, _BUFFERS)
        self._data: bytes | None = None
        self._read_version = 0

    def release(self) -> None:
        self._slots.release()
        self._words.release()
        self._view.release()

    @property
    def version(self) -> int:
        """How many values were written, by all writers; 0 for none. It never falls."""
        return self._words[0]

    @property
    def read_version(self) -> int:
        """The version of the value that ``read`` returned last; 0 for none. It never falls."""
        return self._read_version

    def write(self, record: Record) -> None:
        """Makes ``record`` the newest value.

        Args:
            record: One record of the layout's dtype: a scalar, or an array of size 1.

        Raises:
            OnsetError: BAD_SHAPE when it is not.
        """
        version = self._words[0] + 1
        self._slots.store(version, self._slots.to_bytes(record))
        self._words[0] = version

    def read(self) -> np.void | None:
        """Returns a copy of the newest value, or None when nothing was ever written.

        When the writer is faster than eight attempts, it is the value that was read last.
        """
        data = self.read_bytes()
        return None if data is None else self._slots.from_bytes(data)[0]

    def read_bytes(self) -> bytes | None:
        """Returns what ``read`` does as the record's bytes, for readers who pick from them."""
        for _ in range(_ATTEMPTS):
            version = self._words[0]
            if version == self._read_version or self._take(version) or self._take(version - 1):
                break
        return self._data

    def _take(self, version: int) -> bool:
        if version <= self._read_version:
            return False
        data = self._slots.load(version)
        if data is None:
            return False
        self._data, self._read_version = data, version
        return True
