"""LeRobot's cameras, split off the robot: read by the client, never by the one who moves joints."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import numpy as np

from controller.clock import Clock, MonotonicClock
from controller.errors import ErrorCode, OnsetError
from controller.frames import fit_image
from controller.robots import lerobot_library as library
from controller.robots.lerobot_setup import Fit, LeRobotSetup
from controller.types import CameraSpec, Image, RobotSpec


class LeRobotCameras:
    """The newest frame of each camera of a LeRobot robot.

    LeRobot reads each camera in a thread of its own; ``frames`` takes what is there. A frame that
    is older than ``LeRobotSetup.frame_age_ns`` is a stalled camera and an error: no observation is
    better than one of the past.
    """

    def __init__(self, setup: LeRobotSetup, clock: Clock | None = None) -> None:
        """Makes the cameras and checks their names and sizes; nothing is connected yet.

        Raises:
            OnsetError: UNAVAILABLE without lerobot or a driver; BAD_NAMES for cameras that are
                missing, BAD_SHAPE for another size that may not be fitted.
        """
        self._spec, self._clock = setup.spec, clock or MonotonicClock()
        self._max_age_ns = setup.frame_age_ns
        self._fit = Fit(setup.fit)
        configs = library.configure(setup.type, setup.options, setup.modules).cameras
        names = [camera.name for camera in setup.spec.cameras]
        if missing := sorted(set(names) - set(configs)):
            raise OnsetError(ErrorCode.BAD_NAMES, "robot.cameras", missing, sorted(configs))
        for camera in setup.spec.cameras:
            _check_config(camera, configs[camera.name], self._fit)
        self._cameras = library.make_cameras({name: configs[name] for name in names})

    @property
    def spec(self) -> RobotSpec:
        return self._spec

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def connect(self) -> None:
        """Opens every camera and waits for its first frame.

        Raises:
            OnsetError: UNAVAILABLE, which names the camera; those opened before are closed.
        """
        for name, camera in self._cameras.items():
            try:
                camera.connect()
            except library.DEVICE_ERRORS as error:
                self.close()
                raise _unavailable(name, error, "a camera that can be opened") from error

    def frames(self) -> tuple[int, Mapping[str, Image]]:
        """Returns when the oldest of the frames was captured [ns], and the newest of each camera.

        Raises:
            OnsetError: UNAVAILABLE for a stalled or lost camera, with its name and the age of its
                last frame; BAD_FRAME for a frame that is not uint8 RGB of the right size.
        """
        oldest_ns, frames = self._clock.now_ns(), {}
        for spec in self._spec.cameras:
            camera = self._cameras[spec.name]
            try:
                frame = camera.read_latest(max_age_ms=max(1, self._max_age_ns // 1_000_000))
            except library.DEVICE_ERRORS as error:
                allowed = f"a frame at most {self._max_age_ns / 1e6:.0f} ms old"
                raise _unavailable(spec.name, error, allowed) from error
            frames[spec.name] = _fitted(frame, spec, self._fit)
            oldest_ns = min(oldest_ns, _captured_ns(camera, oldest_ns))
        return oldest_ns, frames

    def close(self) -> None:
        """Closes every camera; what fails at that is gone anyway."""
        for camera in self._cameras.values():
            if camera.is_connected:
                try:
                    camera.disconnect()
                except library.DEVICE_ERRORS:
                    continue


def _check_config(spec: CameraSpec, config: Any, fit: Fit) -> None:
    mode = getattr(config, "color_mode", "rgb")
    if getattr(mode, "value", mode) != "rgb":
        raise OnsetError(ErrorCode.BAD_VALUE, f"camera[{spec.name}].color_mode", mode, "rgb")
    given = getattr(config, "height", None), getattr(config, "width", None)
    if fit is Fit.REFUSE and given != (spec.height, spec.width):
        raise OnsetError(
            ErrorCode.BAD_SHAPE,
            f"camera[{spec.name}]",
            f"{given[0]}x{given[1]}",
            f"{spec.height}x{spec.width}, or fit='crop' or 'stretch'",
        )


def _fitted(frame: Any, spec: CameraSpec, fit: Fit) -> Image:
    """uint8 RGB of the spec's size. Shape (h, w, 3)."""
    size = spec.height, spec.width
    image = np.asarray(frame)
    wrong_size = fit is Fit.REFUSE and image.shape[:2] != size
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or wrong_size:
        raise OnsetError(
            ErrorCode.BAD_FRAME,
            f"camera[{spec.name}]",
            f"{image.dtype} {image.shape}",
            f"uint8 ({spec.height}, {spec.width}, 3)",
        )
    if fit is Fit.CROP:
        h, w = image.shape[:2]
        height = min(h, max(1, round(w * spec.height / spec.width)))
        width = min(w, max(1, round(h * spec.width / spec.height)))
        top, left = (h - height) // 2, (w - width) // 2
        image = image[top : top + height, left : left + width]
    return fit_image(image, spec.height, spec.width)


def _captured_ns(camera: Any, default_ns: int) -> int:
    """When a camera's newest frame came [ns]; LeRobot's threads note it on the same clock."""
    seconds = getattr(camera, "latest_timestamp", None)
    return default_ns if seconds is None else round(seconds * 1e9)


def _unavailable(name: str, error: Exception, allowed: str) -> OnsetError:
    given = f"{type(error).__name__}: {str(error).strip()}"
    return OnsetError(ErrorCode.UNAVAILABLE, f"camera[{name}]", given, allowed)
