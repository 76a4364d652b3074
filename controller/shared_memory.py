"""Named blocks of shared memory, by the calls that ``multiprocessing.shared_memory`` stands on.

That class is not used itself: before Python 3.13 it enters every block into a resource tracker,
which removes the block when a process that had it open dies. Here a block outlives every process
until it is removed by name.

Each process that has a block open holds a shared ``flock`` on it, which the kernel drops with the
process however it dies. So whether a block is still in use can be asked without a process id,
which may be reused or belong to another container. Nothing but opening ever waits for that lock.
"""

from __future__ import annotations

import _posixshmem
import contextlib
import fcntl
import mmap
import os
import re
from collections.abc import Iterator
from pathlib import Path

from controller.errors import ErrorCode, OnsetError

PREFIX = "onset-"
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,23}")  # with the prefix, macOS's 31 characters
# Where Linux shows blocks as files. There is no call that lists them.
_LISTED = Path("/dev/shm")


def create_memory(name: str, size: int) -> mmap.mmap:
    """Returns a new block of zeros, mapped and present in memory.

    Raises:
        OnsetError: BAD_VALUE for a malformed name, ALREADY_OPEN when it is in use, TOO_LARGE when
            there is no room for it.
    """
    path = _path(name)
    try:
        handle = _posixshmem.shm_open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, mode=0o600)
    except FileExistsError:
        raise OnsetError(
            ErrorCode.ALREADY_OPEN,
            "segment.name",
            name,
            "a name not in use, or remove_segment() first when it is one of stale_segments()",
        ) from None
    try:
        _hold(handle)
        try:
            os.ftruncate(handle, size)
            if hasattr(os, "posix_fallocate"):
                # Without it a full file system is noticed at the first write, as a fatal signal.
                os.posix_fallocate(handle, 0, size)
        except OSError as error:
            _posixshmem.shm_unlink(path)
            raise OnsetError(
                ErrorCode.TOO_LARGE,
                f"segment[{name}].size",
                f"{size} bytes ({error.strerror})",
                "what is free in shared memory (in a container: its shm size)",
            ) from error
        return _map(handle, size)
    finally:
        os.close(handle)


def attach_memory(name: str) -> mmap.mmap | None:
    """Returns an existing block, mapped; None when there is none, or one still being made.

    Raises:
        OnsetError: BAD_VALUE for a malformed name, UNAVAILABLE when it is another user's.
    """
    try:
        handle = _posixshmem.shm_open(_path(name), os.O_RDWR, mode=0o600)
    except FileNotFoundError:
        return None
    except PermissionError:
        raise OnsetError(
            ErrorCode.UNAVAILABLE, "segment.name", f"{name}, another user's", "one of this user"
        ) from None
    try:
        _hold(handle)
        status = os.fstat(handle)
        # Removed between the opening and the lock: it would be shared with nobody.
        if status.st_size == 0 or status.st_nlink == 0:
            return None
        return _map(handle, status.st_size)
    finally:
        os.close(handle)


def remove_segment(name: str) -> bool:
    """Removes a segment's name; returns whether it was there.

    Processes that have it open keep it to themselves; its memory is freed with the last of them.

    Raises:
        OnsetError: BAD_VALUE for a malformed name.
    """
    try:
        _posixshmem.shm_unlink(_path(name))
    except FileNotFoundError:
        return False
    return True


def stale_segments() -> list[str]:
    """Returns the names of segments that no process has open: their creators are gone.

    A segment whose creator is gone but which another process still uses is not stale: a restarted
    process shall find it. Empty where the system does not list shared memory (macOS).
    """
    return sorted(_unused())


def used_segments() -> list[str]:
    """Returns the names of segments that some process has open.

    Empty where the system does not list shared memory (macOS).
    """
    unused = set(_unused())
    return sorted(name for name in _names() if name not in unused)


def remove_stale_segments() -> list[str]:
    """Removes the segments that no process has open; returns their names."""
    # Removed under the lock: whoever opens one meanwhile waits, and then sees that it is gone.
    return sorted(name for name in _unused() if remove_segment(name))


def _names() -> Iterator[str]:
    """Yields the names of all segments."""
    for file in _LISTED.glob(f"{PREFIX}*"):
        name = file.name.removeprefix(PREFIX)
        if _NAME.fullmatch(name):
            yield name


def _unused() -> Iterator[str]:
    """Yields the names of unused segments, each locked until the next is asked for."""
    for name in _names():
        try:
            handle = _posixshmem.shm_open(_path(name), os.O_RDWR, mode=0o600)
        except (FileNotFoundError, PermissionError):  # just removed; another user's
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(handle).st_size > 0:  # else its creator is about to lock it
                yield name
        except BlockingIOError:
            continue
        finally:
            os.close(handle)


def _path(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise OnsetError(
            ErrorCode.BAD_VALUE, "segment.name", repr(name), f"as the pattern {_NAME.pattern}"
        )
    return f"/{PREFIX}{name}"


def _hold(handle: int) -> None:
    # The mapping keeps a duplicate of the handle, and with it the lock, until it is closed. Where
    # shared memory cannot be locked (macOS) it is not listed either.
    with contextlib.suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_SH)


def _map(handle: int, size: int) -> mmap.mmap:
    # Populated, so that the control loop meets no page fault.
    return mmap.mmap(handle, size, flags=mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0))
