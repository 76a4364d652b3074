"""The simulated arm and its cameras as LeRobot devices; the arm is LeRobot's own SO-101 code."""

from __future__ import annotations

import time
from typing import Any

from lerobot.cameras import Camera, make_cameras_from_configs
from lerobot.robots import Robot
from lerobot.robots.so_follower import SOFollower
from numpy.typing import NDArray

from controller.errors import OnsetError
from sim.device import SimCameras, SimDevice
from sim.lerobot_robot.bus import SimBus, calibration
from sim.lerobot_robot.config_onset_so101_sim import OnsetSimCameraConfig, OnsetSo101SimConfig


class OnsetSo101Sim(SOFollower):
    """LeRobot's SO-101 follower with the motors of a simulated device."""

    config_class = OnsetSo101SimConfig
    name = "onset_so101_sim"

    def __init__(self, config: OnsetSo101SimConfig) -> None:
        # Not SOFollower's: that opens the driver of real motors.
        Robot.__init__(self, config)
        self.config: Any = config
        self.calibration = calibration()
        self.bus: Any = SimBus(config.port, use_degrees=config.use_degrees)
        self.cameras: Any = make_cameras_from_configs(config.cameras)
        self._device: SimDevice | None = None

    def connect(self, calibrate: bool = True) -> None:
        if not self.config.port and self._device is None:
            self._begin()
        super().connect(calibrate)

    def disconnect(self) -> None:
        super().disconnect()
        if self._device is not None:
            self._device.close()
            self._device = None

    def _begin(self) -> None:
        device = SimDevice(self.config.task)
        try:
            self._device = device.__enter__()
            device.reset(self.config.seed)
        except OnsetError as error:
            raise ConnectionError(str(error)) from error
        self.bus.port = device.segment
        for camera in self.cameras.values():
            camera.port = camera.config.port or device.segment


class OnsetSimCamera(Camera):
    """A camera of a simulated device: the newest frame that its render thread has left.

    Attributes:
        config: As it was configured.
        port: The device.
    """

    def __init__(self, config: OnsetSimCameraConfig) -> None:
        super().__init__(config)
        self.config, self.port = config, config.port
        self._cameras: SimCameras | None = None
        self._seen_ns = 0

    def __str__(self) -> str:
        return f"OnsetSimCamera({self.port}/{self.config.camera})"

    @property
    def is_connected(self) -> bool:
        return self._cameras is not None

    @property
    def latest_timestamp(self) -> float:
        """The instant of the newest frame [s], on LeRobot's and our monotonic clock."""
        return self._newest()[0] * 1e-9

    @staticmethod
    def find_cameras() -> list[dict[str, Any]]:
        return []

    def connect(self, warmup: bool = True) -> None:
        """Raises ConnectionError when there is no such device, or it has no such camera."""
        try:
            self._cameras = SimCameras(self.port)
            spec = self._cameras.spec.camera(self.config.camera)
            self._newest()
        except OnsetError as error:
            self.disconnect()
            raise ConnectionError(f"no frames of {self}: {error}") from error
        if (spec.height, spec.width) != (self.height, self.width):
            self.disconnect()
            raise ConnectionError(
                f"{self} has frames of {spec.height}x{spec.width}, not {self.height}x{self.width}"
            )

    def read(self) -> NDArray[Any]:
        return self.async_read(timeout_ms=10_000)

    def async_read(self, timeout_ms: float = 200) -> NDArray[Any]:
        """Returns a frame that was not returned by this before; waits for it."""
        give_up = time.monotonic() + timeout_ms / 1000
        while True:
            captured_ns, frame = self._newest()
            if captured_ns != self._seen_ns:
                self._seen_ns = captured_ns
                return frame
            if time.monotonic() > give_up:
                raise TimeoutError(f"no new frame of {self} within {timeout_ms} ms")
            time.sleep(0.002)

    def read_latest(self, max_age_ms: int = 500) -> NDArray[Any]:
        captured_ns, frame = self._newest()
        age_ms = (time.monotonic_ns() - captured_ns) * 1e-6
        if age_ms > max_age_ms:
            raise TimeoutError(f"newest frame of {self} is {age_ms:.0f} ms old")
        return frame

    def disconnect(self) -> None:
        if self._cameras is not None:
            self._cameras.close()
            self._cameras = None

    def _newest(self) -> tuple[int, NDArray[Any]]:
        if self._cameras is None:
            raise ConnectionError(f"{self} is not connected")
        captured_ns, frames = self._cameras.frames()
        return captured_ns, frames[self.config.camera]
