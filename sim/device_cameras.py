"""The cameras of a device, rendered beside physics in a thread of their own.

MuJoCo lets go of the interpreter while it renders, so that physics goes on meanwhile.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import mujoco
import numpy as np

from controller.shared import Latest
from sim.env import Camera, SimRobot


class CameraThread:
    """Renders one instant at a time; it never looks at the arm while physics may move it."""

    def __init__(self, robot: SimRobot, frames: Latest, dtype: np.dtype) -> None:
        """Args:
        robot: The arm with its task.
        frames: Where finished frames go.
        dtype: Theirs: ``capture_ns``, and one field a camera.
        """
        first = robot.spec.cameras[0]
        self._robot, self._latest = robot, frames
        self._data = mujoco.MjData(robot.model)
        self._camera = Camera(robot.model, first.height, first.width, film=False)
        self._frames = np.zeros(1, dtype)
        # One thread for all of it: a GL context belongs to the thread that made it.
        self._pool = ThreadPoolExecutor(1, "cameras")
        self._job: Future[None] | None = None

    def begin(self, now_ns: int) -> bool:
        """Begins with the frames of the present instant; False when it is still at earlier ones.

        Raises:
            mujoco.FatalError: An earlier instant could not be rendered.
        """
        if self._job is not None and not self._job.done():
            return False
        self.wait()
        for name in ("qpos", "mocap_pos", "mocap_quat"):
            getattr(self._data, name)[:] = getattr(self._robot.data, name)
        self._job = self._pool.submit(self._render, now_ns)
        return True

    def wait(self) -> None:
        """Waits until what was begun is finished.

        Raises:
            mujoco.FatalError: It could not be rendered.
        """
        if self._job is not None:
            self._job.result()

    def close(self) -> None:
        self._pool.submit(self._camera.close)
        self._pool.shutdown()

    def _render(self, now_ns: int) -> None:
        mujoco.mj_kinematics(self._robot.model, self._data)
        mujoco.mj_camlight(self._robot.model, self._data)
        self._frames["capture_ns"] = now_ns
        for camera in self._robot.spec.cameras:
            self._frames[camera.name] = self._camera.render(self._data, camera.name)
        self._latest.write(self._frames)
