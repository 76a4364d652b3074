"""Replays of recordings of the simulated arm."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from controller.errors import ErrorCode, OnsetError
from controller.record import record_dtype
from controller.recorder_read import Recording, read_recording
from scripts.replay import Args, error_table, main, replay_recording, summary
from sim.env import SimRobot
from sim.plot_recording import plot_recording
from sim.tasks import make_task
from tests.scripts.simulated_recording import record_simulation


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recording") / "sim.mcap"
    record_simulation(path, episodes=2)
    return path


@pytest.fixture(scope="module")
def recording(path: Path) -> Recording:
    return read_recording(path)


def test_simulated_run_comes_out_the_same(recording: Recording) -> None:
    replay = replay_recording(recording, SimRobot(make_task("whack")))
    # Commands pass through float32 on their way to the servos, and so do measured states.
    np.testing.assert_allclose(replay.state, recording.records["measured"], atol=1e-5)
    moved = np.ptp(recording.records["measured"][:, 0])
    assert moved > 0.3
    assert error_table(recording, replay).row_count == 12
    assert "2 episode(s), 2 event(s)\nmodes: running 60.0%, coasting 10.0%" in summary(recording)


def test_another_motion_is_seen(recording: Recording) -> None:
    other = replace(recording, records=recording.records.copy())
    other.records["command"][100:, 0] += 0.1
    replay = replay_recording(other, SimRobot(make_task("whack")))
    difference = replay.state[:400] - recording.records["measured"][:400]
    assert np.abs(difference[:100, 0]).max() < 1e-5
    assert abs(difference[-1, 0] - 0.1) < 0.02
    assert np.abs(difference[:, 4]).max() < 0.02


def test_arm_without_measured_state_is_replayed(recording: Recording) -> None:
    blind = replace(recording, records=recording.records.copy())
    blind.records["measured"] = np.nan
    blind.records["command"][5] = np.nan  # a refused one is not written
    replay = replay_recording(blind, SimRobot(make_task("whack")))
    assert np.isfinite(replay.state).all()
    assert error_table(blind, replay).row_count == 12


def test_other_arm_is_refused(recording: Recording) -> None:
    meta = replace(recording.meta, action_names=("a",), action_units=("rad",))
    other = replace(recording, meta=meta, records=np.zeros(1, record_dtype(1, 12)))
    with pytest.raises(OnsetError, match="shoulder_pan") as refused:
        replay_recording(other, SimRobot(make_task("whack")))
    assert refused.value.code is ErrorCode.BAD_NAMES


def test_command_line(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cut = tmp_path / "cut.mcap"
    data = path.read_bytes()
    cut.write_bytes(data[: len(data) // 2])
    main(Args(cut, plot=tmp_path / "new" / "a.png", video=tmp_path / "a.mp4"))
    said = capsys.readouterr().out
    assert "was never closed" in said
    assert "400 records in 2.0 s, 1 episode(s)" in said
    assert "shoulder_pan.pos" in said
    assert (tmp_path / "a.mp4").stat().st_size > 10_000
    assert cv2.imread(str(tmp_path / "new" / "a.png")) is not None


def test_file_without_records_is_refused(path: Path, tmp_path: Path) -> None:
    recording = read_recording(path)
    cut = tmp_path / "cut.mcap"
    data = path.read_bytes()
    size = next(size for size in range(1000, len(data), 100) if _readable(cut, data[:size]))
    assert size < len(data) // 4
    assert len(recording.records) == 800
    with pytest.raises(OnsetError, match="no record"):
        main(Args(cut))


def _readable(path: Path, data: bytes) -> bool:
    path.write_bytes(data)
    try:
        read_recording(path)
    except OnsetError:
        return False
    return True


def test_plot_shows_the_part_that_is_asked_for(recording: Recording, tmp_path: Path) -> None:
    path = tmp_path / "part.png"
    plot_recording(
        path,
        recording,
        "part",
        joints=["shoulder_pan.pos", "gripper.pos", "elbow_flex.pos"],
        window_s=(1.0, 1.9),
        marks=[(1.2, "server killed"), (99.0, "later")],
    )
    image = cv2.imread(str(path))
    assert image is not None
    # Bands: coasting is yellowish, holding is blueish (BGR).
    for colour in ((168, 233, 255), (242, 220, 201)):
        assert (np.abs(image.astype(int) - colour).max(axis=2) <= 2).mean() > 0.02
