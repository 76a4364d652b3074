"""The whole way in wall-clock time: arm, control loop, wire, server process, policy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rich.progress import Progress

from controller.errors import ErrorCode, OnsetError
from scripts.local_server import LocalServer
from scripts.run_robot import Args, row_of, run_episodes, summary_table
from sim.film import HEIGHT, WIDTH, write_video


@pytest.mark.timeout(120)
def test_robot_follows_a_served_policy(tmp_path: Path) -> None:
    with LocalServer("intercept", tmp_path / "server.log") as server, Progress() as progress:
        runs = run_episodes(Args(server.address, "intercept", episodes=2, seed=40), progress)
        with pytest.raises(OnsetError) as refused:
            run_episodes(Args(server.address, "pick_place", episodes=1), progress)
    assert refused.value.code is ErrorCode.BAD_NAMES
    assert "wrist" in str(refused.value)
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
