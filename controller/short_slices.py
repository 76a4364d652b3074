"""A thread that wakes up runs at once, also where another one is busy with its time slice.

An observation's round trip wakes about ten threads, each of which works for a tenth of a
millisecond, while the model's thread computes. Where a processor is to be shared, Linux lets the
one that computes finish its time slice first: several milliseconds, since it looks at ticks only.
From Linux 6.12 on a thread may ask for a shorter slice, and then comes before those with longer
ones when it wakes up; its share of the processor stays the same, so that no privilege is needed.
See sched_setattr(2), ``sched_runtime``.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys

SLICE_NS = 100_000  # the least that Linux grants

# Python has no names for these: (sched_setattr, sched_getattr) by machine, from Linux's headers.
_CALLS = {"x86_64": (314, 315), "aarch64": (274, 275)}


class _Attributes(ctypes.Structure):
    """``struct sched_attr`` in its first version."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("runtime_ns", ctypes.c_uint64),
        ("deadline_ns", ctypes.c_uint64),
        ("period_ns", ctypes.c_uint64),
    )


def slice_ns() -> int | None:
    """The calling thread's time slice [ns]; None where the system does not tell."""
    attributes = _read()
    return None if attributes is None else int(attributes.runtime_ns)


def shorten_slices() -> bool:
    """Asks for short time slices for the calling thread and those that it begins from now on.

    Policy and nice value stay; a thread with a real-time policy is left as it is.

    Returns:
        Whether it was granted. An older Linux takes the wish and does nothing.
    """
    attributes = _read()
    if attributes is None or attributes.policy != os.SCHED_OTHER:
        return False
    attributes.runtime_ns = SLICE_NS
    return _call(0, ctypes.byref(attributes), 0)


def _read() -> _Attributes | None:
    attributes = _Attributes()
    found = _call(1, ctypes.byref(attributes), ctypes.sizeof(attributes), 0)
    return attributes if found else None


def _call(which: int, *arguments: object) -> bool:
    numbers = _CALLS.get(platform.machine()) if sys.platform == "linux" else None
    if numbers is None:
        return False
    me = 0
    return ctypes.CDLL(None).syscall(numbers[which], me, *arguments) == 0
