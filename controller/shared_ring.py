"""A queue of records between two processes whose writer never waits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from controller.bounds import check_range
from controller.errors import ErrorCode, OnsetError
from controller.shared_slots import LINE, WORD, Record, Slots, check_dtype, slots_size

MAX_RING = 1 << 20
# Words, each on a cache line of its own: records written, records a reader is done with, readers
# there have been.
_WRITTEN, _DONE, _READERS = 0, LINE // WORD, 2 * LINE // WORD


@dataclass(frozen=True)
class RingLayout:
    """The last ``capacity`` records of a structured dtype."""

    dtype: np.dtype
    capacity: int

    def __post_init__(self) -> None:
        check_dtype("ring.dtype", self.dtype)
        check_range("ring.capacity", self.capacity, 1, MAX_RING)

    @property
    def size(self) -> int:
        return 3 * LINE + slots_size(self.dtype, self.capacity)

    def __str__(self) -> str:
        return f"ring of {self.capacity} {self.dtype.descr}"


class Ring:
    """The last ``capacity`` records of one writer, for one reader at a time.

    A reader that falls behind loses the oldest, and is told how many.
    """

    def __init__(self, view: memoryview, dtype: np.dtype, capacity: int) -> None:
        self._view = view
        self._words = view[: 3 * LINE].cast("q")
        self._slots = Slots(view[3 * LINE :], dtype, capacity)
        self.capacity = capacity

    def release(self) -> None:
        self._slots.release()
        self._words.release()
        self._view.release()

    @property
    def written(self) -> int:
        """Records written, by all writers [count]."""
        return self._words[_WRITTEN]

    @property
    def unread(self) -> int:
        """Records that no reader is done with, those overwritten included [count]."""
        return self._words[_WRITTEN] - self._words[_DONE]

    def write(self, record: Record) -> None:
        """Appends one record.

        Raises:
            OnsetError: BAD_SHAPE when it is not one record of the layout's dtype.
        """
        number = self._words[_WRITTEN] + 1
        self._slots.store(number, self._slots.to_bytes(record))
        self._words[_WRITTEN] = number

    def reader(self) -> RingReader:
        """Returns a reader that goes on where the last one was done, and takes over from it."""
        self._words[_READERS] = turn = self._words[_READERS] + 1
        return RingReader(self._words, self._slots, self.capacity, turn)


class RingReader:
    """Reads a ring; of several, the one made last."""

    def __init__(self, words: memoryview, slots: Slots, capacity: int, turn: int) -> None:
        self._words = words
        self._slots = slots
        self._capacity = capacity
        self._turn = turn
        self._next = words[_DONE] + 1
        self._unclear = 0

    def read_all(self, *, done: bool = True) -> tuple[NDArray[np.void], int]:
        """Returns the records written since the last call, in order, and how many were lost.

        Args:
            done: Whether the reader is done with them at once. If not, a reader that takes over
                before ``done()`` is called gets them again: a recorder calls it when what it
                wrote is safe.

        Returns:
            The records. Shape (n,). And the number of those between them, or before them, that
            were overwritten before they were read.

        Raises:
            OnsetError: UNAVAILABLE when a newer reader has taken over.
        """
        self._check_turn()
        written = self._words[_WRITTEN]
        oldest = written - self._capacity + 1
        lost = max(0, oldest - self._next)
        number = self._next + lost
        data = bytearray()
        while number <= written:
            record = self._slots.load(number)
            if record is not None:
                data += record
            elif self._slots.number(number) > number or self._unclear == number:
                lost += 1  # overwritten meanwhile, or not whole for the second time
            else:
                self._unclear = number  # announced, but this CPU does not see all of it yet
                break
            number += 1
        self._next = number
        if done:
            self.done()
        return self._slots.from_bytes(data), lost

    def done(self) -> None:
        """Says that all that was read will not be needed again.

        Raises:
            OnsetError: UNAVAILABLE when a newer reader has taken over.
        """
        self._check_turn()
        self._words[_DONE] = self._next - 1

    def _check_turn(self) -> None:
        readers = self._words[_READERS]
        if readers != self._turn:
            raise OnsetError(
                ErrorCode.UNAVAILABLE, "ring.reader", f"reader {self._turn}", f"reader {readers}"
            )
