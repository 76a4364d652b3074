"""LeRobot finds a device's class by the module of its configuration: hence two files."""

from dataclasses import dataclass, field

from lerobot.cameras import CameraConfig
from lerobot.robots import RobotConfig


@RobotConfig.register_subclass("fake_arm")
@dataclass
class FakeArmConfig(RobotConfig):
    joints: list[str] = field(default_factory=lambda: ["a.pos", "b.pos"])
    extra: list[str] = field(default_factory=list)
    cameras: dict[str, CameraConfig] = field(default_factory=dict)


@CameraConfig.register_subclass("fake_camera")
@dataclass
class FakeCameraConfig(CameraConfig):
    pass
