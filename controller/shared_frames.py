"""Frames through shared memory, for a robot and a server on one machine.

A file of Linux' shared memory holds some slots; an observation's frames lie in one of them as they
are, and its message only says in which::

    slot 0                            slot 1
    | id + 1 | front | wrist | ...    | id + 1 | front | wrist | ...

The robot makes the file and names it in Open; the name cannot be guessed, so a server that finds it
is on the same machine, and says so in Opened. Then the name goes: nobody else opens it, and nothing
is left when a process dies.

Neither end maps it. A robot that cut a mapped file off would end the server's process by a signal;
reading one that was cut off only comes short. A slot's head is written before its frames, and read
after them: where it is not the observation's, they have been overwritten.
"""

from __future__ import annotations

import logging
import math
import os
import re
import secrets
import stat
import struct
import weakref
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from controller.bounds import MAX_MESSAGE_BYTES
from controller.errors import ErrorCode, OnsetError
from controller.types import Image, RobotSpec

_log = logging.getLogger(__name__)

FOLDER = Path("/dev/shm")
MAX_SLOTS = 1024
# Below, encoding and decoding take less time than can be saved.
WORTH_BYTES = 32 * 1024
_NAME = re.compile(r"onset_frames-[0-9a-f]{32}")
_HEAD = struct.Struct("=q")
_PAGE = 4096


def check_name(field: str, name: str) -> str:
    """Returns a name that a robot may give: a plain one, so that no other file can be meant.

    Raises:
        OnsetError: BAD_VALUE.
    """
    if _NAME.fullmatch(name) is None:
        raise OnsetError(ErrorCode.BAD_VALUE, field, repr(name[:80]), f"'' or {_NAME.pattern}")
    return name


def frame_bytes(robot: RobotSpec) -> int:
    """Bytes of one observation's frames, as they are."""
    return sum(math.prod(c.frames_shape) for c in robot.cameras)


def empty_frames(robot: RobotSpec) -> dict[str, Image]:
    """Room for one observation's frames, by camera. Shape (lags, h, w, 3) each."""
    return {c.name: np.empty(c.frames_shape, np.uint8) for c in robot.cameras}


def _stride(robot: RobotSpec) -> int:
    return -(-(_HEAD.size + frame_bytes(robot)) // _PAGE) * _PAGE


def offer_frames(robot: RobotSpec, slots: int) -> SharedFramesWriter | None:
    """Makes an empty file for a robot's frames.

    Args:
        robot: Whose cameras they come from.
        slots: Observations that may be under way at a time.

    Returns:
        The robot's end; None where frames are too small to be worth it or too large, or the
        system has no such memory.
    """
    size = frame_bytes(robot)
    if not WORTH_BYTES <= size <= MAX_MESSAGE_BYTES or slots > MAX_SLOTS:
        return None
    name = f"onset_frames-{secrets.token_hex(16)}"
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        handle = os.open(FOLDER / name, flags, 0o600)
    except OSError as error:
        _log.info("frames travel in messages: no shared memory: %s", error)
        return None
    return SharedFramesWriter(name, handle, robot, slots)


class SharedFramesWriter:
    """The robot's end. Not for several threads at a time.

    Attributes:
        name: Of the file, until it is forgotten.
        size: Of one observation's frames [bytes].
    """

    def __init__(self, name: str, handle: int, robot: RobotSpec, slots: int) -> None:
        """Takes a file over; ``offer_frames`` makes one.

        Args:
            name: Of the file, in ``FOLDER``.
            handle: The open file.
            robot: Whose frames it holds.
            slots: How many observations' frames.
        """
        self.name, self.size = name, frame_bytes(robot)
        self._handle, self._stride = handle, _stride(robot)
        self._cameras, self._slots, self._next = tuple(c.name for c in robot.cameras), slots, 0

    def reserve(self) -> bool:
        """Takes the memory; says whether there was enough of it."""
        size = self._slots * self._stride
        try:
            os.posix_fallocate(self._handle, 0, size)
        except OSError as error:
            _log.warning(
                "frames travel in messages: %d MB of shared memory for them: %s",
                size // 1_000_000,
                error,
            )
            return False
        return True

    def put(self, observation_id: int, frames: Mapping[str, Image]) -> int:
        """Puts an observation's frames into the next slot.

        Args:
            observation_id: Its id.
            frames: uint8 RGB by camera. Shape (lags, h, w, 3) each.

        Returns:
            The slot.

        Raises:
            OnsetError: UNAVAILABLE when the memory takes none.
        """
        slot, self._next = self._next, (self._next + 1) % self._slots
        parts = [_HEAD.pack(observation_id + 1)]
        parts += [np.ascontiguousarray(frames[name]) for name in self._cameras]
        size = _HEAD.size + self.size
        try:
            written = os.pwritev(self._handle, parts, slot * self._stride)
        except OSError as error:
            raise _no_room(error.strerror or str(error)) from error
        if written != size:
            raise _no_room(f"{written} of {size} bytes")
        return slot

    def forget_name(self) -> None:
        """Takes the file's name away; who has it open keeps it."""
        (FOLDER / self.name).unlink(missing_ok=True)

    def close(self) -> None:
        """Takes the name away and lets go of the file."""
        self.forget_name()
        os.close(self._handle)


def _no_room(what: str) -> OnsetError:
    return OnsetError(
        ErrorCode.UNAVAILABLE, "observation.frames", f"shared memory: {what}", "what was reserved"
    )


class SharedFramesReader:
    """The server's end. Any thread may read; the file is let go of with the last that does."""

    def __init__(self, handle: int, robot: RobotSpec) -> None:
        """Takes an open file over; ``find`` opens one."""
        self._handle, self._stride = handle, _stride(robot)
        weakref.finalize(self, os.close, handle)

    @staticmethod
    def find(name: str, robot: RobotSpec) -> SharedFramesReader | None:
        """Opens the file that a robot has named; None where there is none that may be read.

        Args:
            name: Its name, which is checked.
            robot: Whose frames it holds.

        Raises:
            OnsetError: BAD_VALUE for a name that is none.
        """
        check_name("open.shared_frames", name)
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            handle = os.open(FOLDER / name, flags)
        except OSError as error:
            _log.info("frames travel in messages: %s: %s", name, error.strerror)
            return None
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            return None
        return SharedFramesReader(handle, robot)

    def take(self, slot: int, observation_id: int, frames: Mapping[str, Image]) -> None:
        """Copies an observation's frames out of their slot.

        Args:
            slot: In 0..1023.
            observation_id: Whose frames are expected there.
            frames: Where they are put, as ``empty_frames`` makes it.

        Raises:
            OnsetError: BAD_FRAME when they are not there, or no longer.
        """
        at, size = slot * self._stride, sum(block.nbytes for block in frames.values())
        count = os.preadv(self._handle, list(frames.values()), at + _HEAD.size)
        head = os.pread(self._handle, _HEAD.size, at)
        if count != size or len(head) != _HEAD.size:
            raise _not_there(slot, f"{count} bytes", f"{size} bytes")
        (found,) = _HEAD.unpack(head)
        if found != observation_id + 1:
            raise _not_there(
                slot, f"frames of observation {found - 1}", f"those of observation {observation_id}"
            )


def _not_there(slot: int, given: str, allowed: str) -> OnsetError:
    return OnsetError(ErrorCode.BAD_FRAME, "observation.shared_slot", f"{given} in {slot}", allowed)
