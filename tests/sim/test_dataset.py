"""What is collected is a dataset that LeRobot loads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from controller.errors import OnsetError
from sim.collect import HORIZON, Noise, collect_episode
from sim.env import SimRobot
from sim.tasks import make_task

pytest.importorskip("lerobot.datasets.lerobot_dataset", reason="needs the train extra")


@pytest.mark.timeout(300)
def test_lerobot_loads_what_was_collected(tmp_path: Path) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    from sim.dataset import write_dataset

    robot = SimRobot(make_task("intercept"))
    episodes = []
    for seed in (1, 2):
        rows, _ = collect_episode(robot, seed, noise=Noise())
        episodes.append(({name: value[:12] for name, value in rows.items()}, robot.prompt))
    root = tmp_path / "dataset"
    frames = write_dataset(root, "onset/test", robot.spec, HORIZON, episodes, videos=False)
    assert frames == 24

    loaded = LeRobotDataset(
        "onset/test", root=root, delta_timestamps={"action": [i / 25 for i in range(4)]}
    )
    assert len(loaded) == 24
    assert loaded.num_episodes == 2
    for index in (0, 7, 12, 23):
        rows, prompt = episodes[index // 12]
        at, item = index % 12, loaded[index]
        assert item["task"] == prompt
        np.testing.assert_allclose(item["observation.state"], rows["state"][at])
        np.testing.assert_allclose(item["expert_chunk"], rows["chunk"][at])
        np.testing.assert_allclose(item["action"][0], rows["action"][at])
        image = item["observation.images.front"].permute(1, 2, 0).numpy()
        np.testing.assert_allclose(image, rows["frames_front"][at] / 255.0, atol=1e-3)
        assert item["action_is_pad"].sum() == max(0, at + 4 - 12)
    with pytest.raises(OnsetError, match="does not exist yet"):
        write_dataset(root, "onset/test", robot.spec, HORIZON, episodes)
