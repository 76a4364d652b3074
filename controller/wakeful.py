"""Keeps processors from falling asleep between two observations.

Out of an idle state a processor takes tens to hundreds of microseconds to wake up, and an
observation's round trip wakes a thread about ten times. The kernel's own remedy is its quality of
service for power management: as long as a process holds ``/dev/cpu_dma_latency`` open with a 0
written to it, idle processors poll. It holds for the whole machine, and costs power.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

_log = logging.getLogger(__name__)

DEVICE = Path("/dev/cpu_dma_latency")
_NO_LATENCY = (0).to_bytes(4, "little")  # [us]


class Wakeful:
    """Processors that are kept awake, or not. For one thread at a time.

    Where there is no such device, or it is not this user's to write, nothing is changed; that is
    logged once.

    Attributes:
        device: Where the kernel is asked.
    """

    def __init__(self, device: Path = DEVICE) -> None:
        self.device = device
        self._file: int | None = None
        self._refused = False

    @property
    def awake(self) -> bool:
        """Whether processors are kept awake by this object."""
        return self._file is not None

    def keep(self, awake: bool) -> None:
        """Begins or ends it; does nothing where it is so already."""
        if awake == self.awake or self._refused:
            return
        if not awake:
            self._close()
            return
        try:
            self._file = os.open(self.device, os.O_WRONLY)
            os.write(self._file, _NO_LATENCY)
        except OSError as error:
            self._refused = True
            self._close()
            _log.info("idle processors may sleep, which adds to every reply: %s", error)

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)  # the kernel forgets the request with the file
            self._file = None
