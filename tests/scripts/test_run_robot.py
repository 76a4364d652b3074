"""The whole way in wall-clock time: arm, control loop, wire, server process, policy."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from rich.progress import Progress

from controller.errors import ErrorCode, OnsetError
from controller.recorder import read_recording
from controller.robot_file import ROBOTS, load_robot
from scripts import run_robot
from scripts.local_server import LocalServer
from scripts.run_robot import Args, row_of, run_episodes, summary_table
from sim.device import SimDevice
from sim.film import HEIGHT, WIDTH, write_video
from sim.lerobot_robot.bus import ZEROS


@pytest.mark.timeout(120)
def test_robot_follows_a_served_policy(tmp_path: Path) -> None:
    with LocalServer("intercept", tmp_path / "server.log") as server, Progress() as progress:
        args = Args(server.address, "intercept", 2, 40, recordings=tmp_path)
        runs = run_episodes(args, progress)
        with pytest.raises(OnsetError) as refused:
            run_episodes(Args(server.address, "pick_place", episodes=1), progress)
    assert refused.value.code is ErrorCode.BAD_NAMES
    assert "wrist" in str(refused.value)
    assert runs[0].recording is not None
    assert read_recording(runs[0].recording).complete
    for run in runs:
        assert not run.episode.errors
        assert run.replies
        assert run.trace.shape == (len(run.trace), 2, 6)
        for reply in run.replies:
            assert 0 < reply.inference_ns <= reply.server.total_ns <= reply.whole_ns
            assert reply.first_ns <= reply.whole_ns
        row = row_of(run)
        assert row["round_trip_ms"] >= row["inference_ms"] > 0
    assert summary_table(runs).row_count == 1

    import av

    write_video(tmp_path / "film.mp4", [runs[0].film], 25)
    with av.open(str(tmp_path / "film.mp4")) as video:
        frames = [f.to_ndarray(format="rgb24") for f in video.decode(video=0)]
    assert len(frames) == len(runs[0].trace)
    assert frames[0].shape == (HEIGHT, WIDTH, 3)
    assert np.ptp(frames[0].astype(int)) > 100


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="a .safetensors file with a .json beside it"):
        LocalServer("no-such-policy", tmp_path / "server.log").__enter__()


@pytest.mark.timeout(200)
def test_the_whole_hardware_path_without_an_arm(tmp_path: Path, capsys) -> None:
    """LeRobot's SO-101 code, its units and its bus, over the simulated arm; then nothing moves."""
    copy = tmp_path / "desk.yaml"
    copy.write_text((ROBOTS / "so101-sim.yaml").read_text())
    camera = {"type": "onset_sim", "fps": 25, "width": 96, "height": 96}
    with (
        LocalServer("pick_place", tmp_path / "server.log") as server,
        SimDevice("pick_place") as device,
    ):
        prompt = device.reset(3)
        cameras = {name: {**camera, "port": device.segment} for name in ("front", "wrist")}
        calibration = {"calibration_dir": str(tmp_path), "cameras": cameras}
        args = Args(
            server.address, robot=str(copy), robot_type="onset_so101_sim", port=device.segment,
            options=json.dumps(calibration),
            units=json.dumps({"modules": ["sim.lerobot_robot"], "zeros": ZEROS}),
            prompt=prompt, seconds=3.0, robot_id="hardware-test", control_hz=100, read_every=2,
            recordings=tmp_path,
        )  # fmt: skip
        run_robot.main(args)
        moved = device.status().set_point.copy()
        assert np.abs(moved - load_robot("so101-sim").home).max() > 0.05
        run_robot.main(dataclasses.replace(args, dry_run=True, seconds=1.0))
        np.testing.assert_allclose(device.status().set_point, moved, atol=2e-3)
    said = capsys.readouterr().out
    assert "RUNNING: fresh actions" in said
    assert "dry run: running" in said
    first, _ = sorted(tmp_path.glob("*.mcap"))
    recording = read_recording(first)
    assert recording.complete
    limits = load_robot("so101-sim").limits
    speed = np.abs(recording.records["velocity"]).max(axis=0)
    assert (speed <= limits.velocity * (1 + 1e-9)).all()


def test_a_real_arm_needs_an_instruction() -> None:
    with pytest.raises(OnsetError, match="an instruction"):
        run_robot.main(Args("127.0.0.1:1", robot="so101"))
    with pytest.raises(OnsetError, match="a task"):
        run_robot.main(Args("127.0.0.1:1"))
