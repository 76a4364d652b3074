"""Makes a process fit for a control loop, as far as the system permits.

What was not permitted is said in sentences that a person can act on; the loop runs all the same.
Everything here is for a process that does nothing but control: it is never undone.
"""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import sys
from dataclasses import dataclass

from controller.bounds import check_range
from controller.realtime_ticker import LatenessHistogram, Tick, Ticker

__all__ = ["LatenessHistogram", "RealtimeConfig", "Tick", "Ticker", "make_realtime"]

_NICE = -15
_HEAP_BYTES = 16 * 1024 * 1024

# From Linux's headers; Python has no names for them.
_MCL_CURRENT, _MCL_FUTURE = 1, 2
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_PR_SET_TIMERSLACK = 29
_CAP_IPC_LOCK = 14


@dataclass(frozen=True)
class RealtimeConfig:
    """What a control process asks of the system.

    Attributes:
        priority: Of SCHED_FIFO, 1..99; 0 does not ask. Interrupt threads commonly have 50.
        cpu: The CPU to run on; None for any.
        lock_memory: Whether all memory is to be kept from being paged out.
    """

    priority: int = 60
    cpu: int | None = None
    lock_memory: bool = True

    def __post_init__(self) -> None:
        check_range("realtime.priority", self.priority, 0, 99)
        if self.cpu is not None:
            check_range("realtime.cpu", self.cpu, 0, 65_535)


def make_realtime(config: RealtimeConfig) -> list[str]:
    """Arranges the calling thread and its process for a control loop.

    To be called by the thread that will run the loop, when everything has been loaded. Threads and
    processes started afterwards have a usual priority again: a helper shall not delay the loop.

    Returns:
        For each thing that was not permitted, what that means and what to do about it.
    """
    _quiet_collector()
    if sys.platform != "linux":
        said = ["Real-time scheduling is arranged on Linux only; here ticks may come late."]
        return said + (_be_nice() if config.priority else [])
    said = _lock_memory() if config.lock_memory else []
    if config.cpu is not None:
        said += _pin(config.cpu)
    # The last, since the steps before take long and would hold up others at this priority.
    if config.priority:
        said += _raise_priority(config.priority)
    return said


def _quiet_collector() -> None:
    # A collection of all generations stops the loop for milliseconds, more with each object that
    # was ever imported. Reference counts free what a tick allocates, since it makes no cycles;
    # what is alive now stays for good and is taken out of every later collection.
    gc.collect()
    gc.freeze()
    gc.disable()


def _raise_priority(priority: int) -> list[str]:
    # Without this flag every thread and process started later would inherit the priority.
    policy = os.SCHED_FIFO | os.SCHED_RESET_ON_FORK
    try:
        os.sched_setscheduler(0, policy, os.sched_param(priority))
        return []
    except OSError:
        limit = _raised_limit(resource.RLIMIT_RTPRIO)
    if 0 < limit < priority:
        try:
            os.sched_setscheduler(0, policy, os.sched_param(limit))
            return [
                f"SCHED_FIFO runs at priority {limit}, not {priority}: `ulimit -r` allows no more. "
                f"Raise it by a line '{_user()} - rtprio {priority}' in "
                "/etc/security/limits.conf and a new login."
            ]
        except OSError:
            pass
    # Timers of usual threads are put together with others up to 50 us later; real-time ones not.
    _libc("prctl", _PR_SET_TIMERSLACK, 1, 0, 0, 0)
    return [
        f"SCHED_FIFO at priority {priority} was not permitted (`ulimit -r` is {limit}), so other "
        f"programs can delay the loop. Add a line '{_user()} - rtprio {priority}' to "
        "/etc/security/limits.conf and log in again, or give the process CAP_SYS_NICE (in a "
        "container: --cap-add SYS_NICE).",
        *_be_nice(),
    ]


def _be_nice() -> list[str]:
    try:
        os.setpriority(os.PRIO_PROCESS, 0, min(_NICE, os.getpriority(os.PRIO_PROCESS, 0)))
        return []
    except OSError:
        return [
            f"A nice value of {_NICE} was not permitted either, so the loop competes with every "
            f"other program. Add a line '{_user()} - nice {_NICE}' to /etc/security/limits.conf."
        ]


def _pin(cpu: int) -> list[str]:
    allowed = sorted(os.sched_getaffinity(0))
    try:
        if cpu not in allowed:
            raise OSError
        os.sched_setaffinity(0, {cpu})
        return []
    except OSError:
        return [
            f"Running on CPU {cpu} was not permitted: this process may use CPUs "
            f"{', '.join(map(str, allowed))}. Choose one of them, or start it with another "
            "`taskset` or cpuset."
        ]


def _lock_memory() -> list[str]:
    limit = _raised_limit(resource.RLIMIT_MEMLOCK)
    # Under a limit, locking what comes later makes an allocation in the loop fail once it is
    # reached, which is worse than a page fault.
    error = "the limit would be met in the midst of the loop"
    if limit == resource.RLIM_INFINITY or _has_capability(_CAP_IPC_LOCK):
        error = _libc("mlockall", _MCL_CURRENT | _MCL_FUTURE)
    # Freed memory is kept instead of being returned, and then faulted in again.
    _libc("mallopt", _M_TRIM_THRESHOLD, -1)
    _libc("mallopt", _M_MMAP_MAX, 0)
    _touch(_HEAP_BYTES)
    if not error:
        return []
    allows = "" if limit == resource.RLIM_INFINITY else f"; `ulimit -l` is {limit // 1024} kB"
    return [
        f"Memory was not locked ({error}{allows}), so the loop may wait for a page to be "
        f"read from disk. Add a line '{_user()} - memlock unlimited' to "
        "/etc/security/limits.conf and log in again, or give the process CAP_IPC_LOCK (in a "
        "container: --cap-add IPC_LOCK or --ulimit memlock=-1)."
    ]


def _touch(size: int) -> None:
    """Brings that much heap into memory; it stays with the process when it is freed."""
    # Written with ones: memory of zeros may come from the kernel without having been touched.
    heap = bytearray(b"\1") * size
    del heap


def _raised_limit(which: int) -> int:
    """Raises a soft limit to the hard one, as anybody may; returns it."""
    _, hard = resource.getrlimit(which)
    resource.setrlimit(which, (hard, hard))
    return hard


def _has_capability(number: int) -> bool:
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        for line in status:
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> number & 1)
    return False


def _libc(function: str, *arguments: int) -> str:
    """Calls a function of the C library; returns what went wrong, empty when nothing did."""
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, function):  # mallopt is glibc's
        return f"this C library has no {function}"
    failed = getattr(library, function)(*arguments) < 0
    return os.strerror(ctypes.get_errno()) if failed else ""


def _user() -> str:
    return os.environ.get("USER", "<user>")
