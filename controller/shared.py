"""One named piece of memory that processes share, made of parts.

    SHARED = {
        "plan": LatestLayout(plan_dtype),
        "records": RingLayout(record_dtype, 4096),
        "heartbeat": WordLayout(),
    }
    with Segment.create("arm", SHARED) as segment:
        segment.latest("plan").write(plan)

and in another process, with the same layout:

    segment = Segment.attach("arm", SHARED)
    plan = segment.latest("plan").read()

In memory: magic, layout crc, sizes and the layout as text, then the parts, each on cache lines of
its own. The text is there so that a refusal can say what the other side has.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
import zlib
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from controller.errors import ErrorCode, OnsetError
from controller.shared_memory import (
    attach_memory,
    create_memory,
    remove_segment,
    remove_stale_segments,
    stale_segments,
    used_segments,
)
from controller.shared_parts import Latest, LatestLayout, Word, WordLayout
from controller.shared_ring import Ring, RingLayout, RingReader
from controller.shared_slots import LINE

__all__ = [
    "Latest",
    "LatestLayout",
    "Ring",
    "RingLayout",
    "RingReader",
    "Segment",
    "Word",
    "WordLayout",
    "remove_segment",
    "remove_stale_segments",
    "stale_segments",
    "used_segments",
]

Layout = WordLayout | LatestLayout | RingLayout
Part = Word | Latest | Ring

_MAGIC = b"onset\0\0\1"  # the last byte is the version of the arrangement itself
_HEADER = struct.Struct("<8sIIq")  # magic, crc of the layout's text, its length, creator's pid
_POLL_S = 0.005


class Segment:
    """A named piece of shared memory with parts in it.

    It outlives the processes that use it, until ``unlink`` or ``remove_segment`` takes its name.
    As a context manager it is closed at the end, and by its creator unlinked as well.
    """

    def __init__(
        self, name: str, memory: mmap.mmap, layout: Mapping[str, Layout], *, created: bool
    ) -> None:
        """For ``create`` and ``attach``."""
        self.name = name
        self._memory = memory
        self._created = created
        self._parts: dict[str, Part] = {}
        view = memoryview(memory)
        offset = _body(_text(layout))
        for key, part in layout.items():
            self._parts[key] = _open(part, view[offset : offset + part.size])
            offset += part.size
        view.release()

    @classmethod
    def create(cls, name: str, layout: Mapping[str, Layout]) -> Self:
        """Makes a new segment; words are 0, nothing is written yet.

        Args:
            name: Lower case letters, digits and ``_.-``, at most 24.
            layout: Its parts by name, in order.

        Raises:
            OnsetError: BAD_VALUE for a malformed name, ALREADY_OPEN when it is in use, TOO_LARGE
                when there is no room for it.
        """
        text = _text(layout)
        memory = create_memory(name, _size(layout))
        memory[_HEADER.size : _HEADER.size + len(text)] = text
        header = _HEADER.pack(_MAGIC, zlib.crc32(text), len(text), os.getpid())
        memory[len(_MAGIC) : _HEADER.size] = header[len(_MAGIC) :]
        memory[: len(_MAGIC)] = _MAGIC  # last: from here on it can be attached to
        return cls(name, memory, layout, created=True)

    @classmethod
    def private(cls, layout: Mapping[str, Layout]) -> Self:
        """Makes a segment without a name, which no other process sees."""
        return cls("", mmap.mmap(-1, _size(layout)), layout, created=False)

    @classmethod
    def attach(cls, name: str, layout: Mapping[str, Layout], *, wait_s: float = 0.0) -> Self:
        """Opens a segment that another process made, or an earlier one left.

        Args:
            name: As at its creation.
            layout: As at its creation.
            wait_s: How long to wait for it to be made [s].

        Raises:
            OnsetError: UNAVAILABLE when there is none, BAD_SHAPE when its layout is another,
                BAD_VALUE for a malformed name.
        """
        give_up = time.monotonic() + wait_s
        while True:
            memory = attach_memory(name)
            found = None if memory is None else _read_text(memory)
            if memory is not None and found is not None:
                break
            if memory is not None:
                memory.close()
            if time.monotonic() >= give_up:
                raise OnsetError(
                    ErrorCode.UNAVAILABLE, "segment.name", name, "a segment that has been created"
                )
            time.sleep(_POLL_S)
        expected = _text(layout)
        if found != expected or len(memory) < _size(layout):
            memory.close()
            theirs, ours = _differences(found.decode(), expected.decode())
            raise OnsetError(ErrorCode.BAD_SHAPE, f"segment[{name}].layout", theirs, ours)
        return cls(name, memory, layout, created=False)

    @property
    def creator_pid(self) -> int:
        """The process that made it; it may be gone."""
        return _HEADER.unpack_from(self._memory)[3]

    def word(self, part: str) -> Word:
        """Returns the word of that name.

        Raises:
            OnsetError: BAD_NAMES when there is none.
        """
        return self._part(part, Word)

    def latest(self, part: str) -> Latest:
        """Returns the newest-value part of that name.

        Raises:
            OnsetError: BAD_NAMES when there is none.
        """
        return self._part(part, Latest)

    def ring(self, part: str) -> Ring:
        """Returns the ring of that name.

        Raises:
            OnsetError: BAD_NAMES when there is none.
        """
        return self._part(part, Ring)

    def _part[P: Part](self, name: str, kind: type[P]) -> P:
        part = self._parts.get(name)
        if not isinstance(part, kind):
            names = [key for key, other in self._parts.items() if isinstance(other, kind)]
            raise OnsetError(
                ErrorCode.BAD_NAMES, f"segment[{self.name}].{kind.__name__.lower()}", name, names
            )
        return part

    def close(self) -> None:
        """Lets go of the memory, which stays. Its parts cannot be used any more."""
        for part in self._parts.values():
            part.release()
        self._parts.clear()
        self._memory.close()

    def unlink(self) -> None:
        """Takes its name away: nobody can attach to it from now on."""
        remove_segment(self.name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
        if self._created:
            self.unlink()


def _open(layout: Layout, view: memoryview) -> Part:
    match layout:
        case WordLayout():
            return Word(view)
        case LatestLayout():
            return Latest(view, layout.dtype)
        case RingLayout():
            return Ring(view, layout.dtype, layout.capacity)


def _text(layout: Mapping[str, Layout]) -> bytes:
    return "\n".join(f"{name}: {part}" for name, part in layout.items()).encode()


def _body(text: bytes) -> int:
    return -(-(_HEADER.size + len(text)) // LINE) * LINE


def _size(layout: Mapping[str, Layout]) -> int:
    return _body(_text(layout)) + sum(part.size for part in layout.values())


def _read_text(memory: mmap.mmap) -> bytes | None:
    """Returns the layout's text; None while the creator is still at it, or for foreign memory."""
    if len(memory) < _HEADER.size:
        return None
    magic, crc, length, _ = _HEADER.unpack_from(memory)
    text = memory[_HEADER.size : _HEADER.size + length]
    return text if magic == _MAGIC and zlib.crc32(text) == crc else None


def _differences(theirs: str, ours: str) -> tuple[str, str]:
    """Returns the lines of each that the other has not; all of them when just the order differs."""
    given, allowed = theirs.split("\n"), ours.split("\n")
    return (
        "; ".join([line for line in given if line not in allowed] or given),
        "; ".join([line for line in allowed if line not in given] or allowed),
    )
