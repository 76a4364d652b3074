"""Recordings as Rerun files, read back with Rerun."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from controller.errors import ErrorCode, OnsetError
from controller.recorder_read import read_recording
from scripts.export_rerun import Args, export, main
from tests.scripts.simulated_recording import TICK_NS, record_simulation


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recording") / "sim.mcap"
    record_simulation(path)
    return path


def test_missing_sdk_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(OnsetError, match=r"onset\[view\]") as refused:
        export(read_recording(path), path.with_suffix(".rrd"))
    assert refused.value.code is ErrorCode.UNAVAILABLE
    assert not path.with_suffix(".rrd").exists()


def test_importing_the_script_needs_no_sdk() -> None:
    code = "import sys; sys.modules['rerun'] = None; import scripts.export_rerun"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_series_are_read_back(path: Path) -> None:
    pytest.importorskip("rerun")
    experimental = pytest.importorskip("rerun.experimental")
    recording = read_recording(path)
    output = path.with_name("new") / "out.rrd"
    main(Args(path, output))
    columns = read_back(experimental.RrdReader(output))
    records = recording.records
    for i, name in enumerate(recording.meta.action_names):
        for source in ("desired", "command", "measured"):
            times, values = columns[f"/joints/{name}/{source}"]
            np.testing.assert_array_equal(times, records["time_ns"] - records["time_ns"][0])
            np.testing.assert_array_equal(values, records[source][:, i])
    assert "/state/shoulder_pan.vel/measured" in columns
    np.testing.assert_array_equal(columns["/mode"][1], records["mode"])
    np.testing.assert_array_equal(columns["/times_ms/late"][1], records["late_ns"] * 1e-6)
    assert np.isnan(columns["/times_ms/round_trip"][1]).all()  # none was measured
    assert columns["/log/event"][1] == ["session lost in episode 0"]
    times, modes = columns["/log/mode"]
    assert modes == ["RUNNING", "COASTING", "DECELERATING", "HOLDING"]
    assert times[1] == 240 * TICK_NS


def test_cut_recording_is_exported(path: Path, tmp_path: Path) -> None:
    pytest.importorskip("rerun")
    cut = tmp_path / "cut.mcap"
    cut.write_bytes(path.read_bytes()[:-3000])
    main(Args(cut))
    assert cut.with_suffix(".rrd").stat().st_size > 2000


def read_back(reader: Any) -> dict[str, tuple[Any, list]]:
    """Times [ns] and values of everything that has times, by entity."""
    found: dict[str, tuple[Any, list]] = {}
    for chunk in reader.stream():
        names = chunk.to_record_batch().schema.names
        if "robot_time" not in names:
            continue
        assert chunk.entity_path not in found
        table = chunk.to_record_batch()
        value = next(name for name in names if name in ("Scalars:scalars", "TextLog:text"))
        times = table.column("robot_time").cast("int64").to_numpy()
        found[chunk.entity_path] = (times, [row[0] for row in table.column(value).to_pylist()])
    return found
