"""Videos for people: episodes are recorded as states and rendered after they end.

A frame with shadows and reflections costs a CPU tens of milliseconds, which a robot in wall-clock
time has not got.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import cv2
import mujoco
import numpy as np
from numpy.typing import NDArray

from controller.types import Image
from sim.env import Camera, SimRobot, build_model

HEIGHT, WIDTH = 480, 640


@dataclass
class Film:
    """The states of one episode, and what to write under the picture.

    Attributes:
        robot: The simulated arm that is filmed.
        caption: Written at the bottom of each frame.
    """

    robot: SimRobot
    caption: str = ""
    _states: list[tuple[NDArray, NDArray, NDArray]] = field(default_factory=list)

    def capture(self) -> None:
        """Keeps the present state."""
        data = self.robot.data
        self._states.append((data.qpos.copy(), data.mocap_pos.copy(), data.mocap_quat.copy()))

    def frames(self, insets: bool = True) -> Iterator[Image]:
        """Renders what was kept.

        Args:
            insets: Show what the policy sees in the upper corner.

        Yields:
            uint8 RGB, shape (480, 640, 3).
        """
        model = build_model(self.robot.task, film=True)
        data = mujoco.MjData(model)
        large = Camera(model, HEIGHT, WIDTH, film=True)
        small_model = self.robot.model
        small_data = mujoco.MjData(small_model)
        camera = self.robot.spec.cameras[0]
        small = Camera(small_model, camera.height, camera.width, film=False)
        try:
            for qpos, position, quaternion in self._states:
                for m, d in ((model, data), (small_model, small_data)):
                    d.qpos[:], d.mocap_pos[:], d.mocap_quat[:] = qpos, position, quaternion
                    mujoco.mj_forward(m, d)
                frame = large.render(data, "film").copy()
                if insets:
                    self._inset(frame, small, small_data)
                cv2.putText(
                    frame, self.caption, (12, HEIGHT - 14), cv2.FONT_HERSHEY_SIMPLEX, 0.6,
                    (255, 255, 255), 1, cv2.LINE_AA,
                )  # fmt: skip
                yield frame
        finally:
            large.close()
            small.close()

    def _inset(self, frame: Image, small: Camera, data: mujoco.MjData) -> None:
        """What the policy sees, in the upper right corner."""
        x = WIDTH - 10
        for camera in reversed(self.robot.spec.cameras):
            seen = small.render(data, camera.name)
            seen = cv2.resize(seen, (144, 144), interpolation=cv2.INTER_NEAREST)
            frame[10:154, x - 144 : x] = seen
            cv2.rectangle(frame, (x - 145, 9), (x, 154), (255, 255, 255), 1)
            x -= 154


def write_video(path: Path, films: list[Film], fps: float) -> None:
    """Writes films one after another as H.264."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for film in films:
            for image in film.frames():
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
                for packet in stream.encode(frame):
                    container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
