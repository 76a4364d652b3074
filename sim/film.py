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
        robot: The simulated arm that is filmed, or one with the same task.
        caption: Written at the bottom of each frame.
    """

    robot: SimRobot
    caption: str = ""
    _states: list[tuple[NDArray, NDArray, NDArray]] = field(default_factory=list)

    def capture(self) -> None:
        """Keeps the present state."""
        data = self.robot.data
        self.keep(data.qpos, data.mocap_pos, data.mocap_quat)

    def keep(self, qpos: NDArray, mocap_pos: NDArray, mocap_quat: NDArray) -> None:
        """Keeps a state of the same task that was simulated elsewhere.

        Args:
            qpos: Generalised positions of arm and scene. Shape (nq,).
            mocap_pos: Places of the bodies that the task moves [m]. Shape (n, 3).
            mocap_quat: How they are turned, as unit quaternions. Shape (n, 4).
        """
        self._states.append((qpos.copy(), mocap_pos.copy(), mocap_quat.copy()))

    def frames(self, count: int | None = None) -> Iterator[Image]:
        """Renders what was kept, with what the policy sees in the lower corner.

        Args:
            count: So many frames spread over the episode; all of them when None.

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
        states = self._states
        if count is not None:
            states = [
                states[i] for i in np.linspace(0, len(states) - 1, count + 2)[1:-1].astype(int)
            ]
        try:
            for qpos, position, quaternion in states:
                for m, d in ((model, data), (small_model, small_data)):
                    d.qpos[:], d.mocap_pos[:], d.mocap_quat[:] = qpos, position, quaternion
                    mujoco.mj_forward(m, d)
                frame = large.render(data, "film").copy()
                self._inset(frame, small, small_data)
                cv2.putText(
                    frame, self.caption, (12, 26), cv2.FONT_HERSHEY_SIMPLEX, 0.6,
                    (255, 255, 255), 1, cv2.LINE_AA,
                )  # fmt: skip
                yield frame
        finally:
            large.close()
            small.close()

    def _inset(self, frame: Image, small: Camera, data: mujoco.MjData) -> None:
        """What the policy sees, in the lower right corner."""
        x, y, size = WIDTH - 10, HEIGHT - 154, 144
        for camera in reversed(self.robot.spec.cameras):
            seen = small.render(data, camera.name)
            seen = cv2.resize(seen, (size, size), interpolation=cv2.INTER_NEAREST)
            frame[y : y + size, x - size : x] = seen
            cv2.rectangle(frame, (x - size - 1, y - 1), (x, y + size), (255, 255, 255), 1)
            x -= size + 10


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


def write_strip(path: Path, films: list[Film], columns: int = 3) -> None:
    """Writes a PNG with a row of frames for each film."""
    rows = [np.concatenate(list(film.frames(columns)), axis=1) for film in films]
    image = np.concatenate(rows, axis=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
