"""LeRobot's configurations of the simulated arm and its cameras."""

from __future__ import annotations

from dataclasses import dataclass

from lerobot.cameras import CameraConfig
from lerobot.robots import RobotConfig
from lerobot.robots.so_follower import SOFollowerConfig


@RobotConfig.register_subclass("onset_so101_sim")
@dataclass
class OnsetSo101SimConfig(RobotConfig, SOFollowerConfig):
    """An SO-101 follower's configuration, and what world there is to be where none is named.

    Attributes:
        port: The world to connect to; empty for one of its own, which ends with the connection.
        task: The task of its own world.
        seed: The seed of its own world.
    """

    port: str = ""
    task: str = "whack"
    seed: int = 0


@CameraConfig.register_subclass("onset_sim")
@dataclass
class OnsetSimCameraConfig(CameraConfig):
    """A camera of a world.

    Attributes:
        port: The world; empty for that of the robot which the camera belongs to.
        camera: Which of its cameras.
    """

    port: str = ""
    camera: str = "front"
