"""LeRobot's configurations of the simulated arm and its cameras."""

from __future__ import annotations

from dataclasses import dataclass

from lerobot.cameras import CameraConfig
from lerobot.robots import RobotConfig
from lerobot.robots.so_follower import SOFollowerConfig


@RobotConfig.register_subclass("onset_so101_sim")
@dataclass
class OnsetSo101SimConfig(RobotConfig, SOFollowerConfig):
    """An SO-101 follower's configuration, and what is simulated where no device is named.

    Attributes:
        port: The device to connect to; empty for one of its own, which ends with the connection.
        task: The task of its own device.
        seed: The seed of its own device's episode.
    """

    port: str = ""
    task: str = "whack"
    seed: int = 0


@CameraConfig.register_subclass("onset_sim")
@dataclass
class OnsetSimCameraConfig(CameraConfig):
    """A camera of a simulated device.

    Attributes:
        port: The device; empty for that of the robot which the camera belongs to.
        camera: Which of its cameras.
    """

    port: str = ""
    camera: str = "front"
