"""The recorder as a process: killed while it writes, and told to stop."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from controller.recorder import read_recording

ROOT = Path(__file__).parents[2]


def test_kill_costs_at_most_100_ms(tmp_path: Path) -> None:
    losses, paths = [], []
    for wait_s in (0.31, 0.45, 0.52):
        command = [sys.executable, "-m", "tests.controller.record_fakes", str(tmp_path)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            path = Path(process.stdout.readline().strip())
            time.sleep(wait_s)
            process.send_signal(signal.SIGKILL)
            killed_ns = time.monotonic_ns()
        recording = read_recording(path)
        assert not recording.complete
        assert recording.missing_ticks == 0
        assert recording.records["tick"][0] == 0
        assert (np.diff(recording.records["time_ns"]) == 2_000_000).all()
        assert recording.events[0].text == "begins"
        losses.append(killed_ns - int(recording.records["time_ns"][-1]))
        paths.append(path)
    assert len(set(paths)) == 3
    assert max(losses) < 100_000_000
