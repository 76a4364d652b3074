"""Processors are kept awake while the device is open, and no longer."""

from __future__ import annotations

import os
from pathlib import Path

from controller.wakeful import Wakeful


def _holds(device: Path) -> int:
    """How often this process has the file open."""
    links = (f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd"))
    return sum(os.path.realpath(link) == str(device) for link in links)


def test_the_file_is_open_with_a_zero_in_it_while_processors_are_kept_awake(tmp_path: Path) -> None:
    device = tmp_path / "cpu_dma_latency"
    device.touch()
    wakeful = Wakeful(device)
    assert not wakeful.awake
    assert _holds(device) == 0
    wakeful.keep(True)
    wakeful.keep(True)
    assert wakeful.awake
    assert _holds(device) == 1
    assert device.read_bytes() == bytes(4)
    wakeful.keep(False)
    wakeful.keep(False)
    assert not wakeful.awake
    assert _holds(device) == 0


def test_without_the_device_nothing_is_changed_and_it_is_said_once(tmp_path: Path, caplog) -> None:
    wakeful = Wakeful(tmp_path / "none")
    with caplog.at_level("INFO"):
        for awake in (True, False, True):
            wakeful.keep(awake)
            assert not wakeful.awake
    assert len(caplog.records) == 1
    assert "none" in caplog.text
