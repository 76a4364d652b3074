"""The simulated arm and its cameras as LeRobot devices; the arm is LeRobot's own SO-101 code."""

from __future__ import annotations

import os
import time
from typing import Any

from lerobot.cameras import Camera, make_cameras_from_configs
from lerobot.robots import Robot
from lerobot.robots.so_follower import SOFollower
from numpy.typing import NDArray

from controller.errors import OnsetError
from controller.shared import Segment
from sim.lerobot_robot.bus import SimBus, calibration
from sim.lerobot_robot.config_onset_so101_sim import OnsetSimCameraConfig, OnsetSo101SimConfig
from sim.lerobot_robot.world import World, layout

_SIZE = (96, 96)  # of frames, where no camera says it [px]


class OnsetSo101Sim(SOFollower):
    """LeRobot's SO-101 follower with the motors of a world."""

    config_class = OnsetSo101SimConfig
    name = "onset_so101_sim"

    def __init__(self, config: OnsetSo101SimConfig) -> None:
        # Not SOFollower's: that opens the driver of real motors.
        Robot.__init__(self, config)
        self.config: Any = config
        self.calibration = calibration()
        sizes = {(camera.height, camera.width) for camera in config.cameras.values()}
        if len(sizes) > 1:
            raise ValueError(f"cameras of one world have one size, not {sorted(sizes)}")
        self._size: Any = next(iter(sizes), _SIZE)
        self.bus: Any = SimBus(config.port, self._size, use_degrees=config.use_degrees)
        self.cameras: Any = make_cameras_from_configs(config.cameras)
        self._world: World | None = None

    def connect(self, calibrate: bool = True) -> None:
        config = self.config
        if not config.port and self._world is None:
            try:
                port = f"so101-{os.getpid()}-{time.monotonic_ns() % 10**6}"
                self._world = World(port, config.task, seed=config.seed, size=self._size)
            except OnsetError as error:
                raise ConnectionError(str(error)) from error
            self.bus.port = port
            for camera in self.cameras.values():
                camera.port = camera.port or port
        super().connect(calibrate)

    def disconnect(self) -> None:
        super().disconnect()
        if self._world is not None:
            self._world.close()
            self._world = None


class OnsetSimCamera(Camera):
    """A camera of a world: the newest frame that its render thread has left.

    Attributes:
        port: The world.
    """

    def __init__(self, config: OnsetSimCameraConfig) -> None:
        super().__init__(config)
        if not config.height or not config.width:
            raise ValueError("camera onset_sim needs the width and height of the world's frames")
        self.port, self._camera = config.port, config.camera
        self._layout = layout(config.height, config.width)
        self._segment: Segment | None = None
        self._seen = 0

    def __str__(self) -> str:
        return f"OnsetSimCamera({self.port}/{self._camera})"

    @property
    def is_connected(self) -> bool:
        return self._segment is not None

    @property
    def latest_timestamp(self) -> float | None:
        """When the newest frame was rendered from [s], on LeRobot's and our monotonic clock."""
        row = self._row()
        return None if row is None else float(row["time_ns"]) * 1e-9

    @staticmethod
    def find_cameras() -> list[dict[str, Any]]:
        return []

    def connect(self, warmup: bool = True) -> None:
        """Raises ConnectionError when there is no such world or camera."""
        try:
            self._segment = Segment.attach(self.port, self._layout)
            if warmup:
                self.async_read(timeout_ms=10_000)
        except (OnsetError, TimeoutError) as error:
            self.disconnect()
            raise ConnectionError(f"no frames of {self}: {error}") from error

    def read(self) -> NDArray[Any]:
        return self.async_read(timeout_ms=10_000)

    def async_read(self, timeout_ms: float = 200) -> NDArray[Any]:
        """Returns a frame that was not returned by this before; waits for it."""
        give_up = time.monotonic() + timeout_ms / 1000
        while True:
            row = self._row()
            if row is not None and int(row["time_ns"]) != self._seen:
                self._seen = int(row["time_ns"])
                return row["rgb"].copy()
            if time.monotonic() > give_up:
                raise TimeoutError(f"no new frame of {self} within {timeout_ms} ms")
            time.sleep(0.002)

    def read_latest(self, max_age_ms: int = 500) -> NDArray[Any]:
        row = self._row()
        if row is None:
            raise RuntimeError(f"{self} has not captured any frames yet")
        age_ms = time.monotonic() * 1e3 - float(row["time_ns"]) * 1e-6
        if age_ms > max_age_ms:
            raise TimeoutError(f"newest frame of {self} is {age_ms:.0f} ms old")
        return row["rgb"].copy()

    def disconnect(self) -> None:
        if self._segment is not None:
            self._segment.close()
            self._segment = None

    def _row(self) -> Any:
        if self._segment is None:
            raise ConnectionError(f"{self} is not connected")
        return self._segment.latest(self._camera).read()
