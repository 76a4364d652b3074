"""Physics and cameras as a ``Robot``: the controller drives it like any other arm."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import mujoco
import numpy as np

from controller.types import Command, Image, Reading, RobotSpec
from sim.flicker import CAMERA, Flicker
from sim.robots import so101
from sim.robots.so101 import Array
from sim.task import Task

PHYSICS_DT = 0.002  # [s]
CONTROL_PERIOD_NS = 10_000_000  # between set-points
TASK_DT = 0.01  # the task's own motion and scoring [s]
_PER_TASK = round(TASK_DT / PHYSICS_DT)

_TEMPLATE = """
<mujoco model="onset">
  <compiler angle="radian"/>
  <option timestep="{dt}" integrator="implicitfast" cone="elliptic" impratio="10"/>
  <visual>
    <headlight ambient="0.45 0.45 0.45" diffuse="0.35 0.35 0.35" specular="0 0 0"/>
    <quality shadowsize="{shadow}" offsamples="{samples}"/>
    <global offwidth="1280" offheight="960"/>
    <map znear="0.01" zfar="20"/>
  </visual>
  <asset>
    <texture name="wood" type="2d" builtin="checker" rgb1="0.42 0.44 0.47" rgb2="0.39 0.41 0.44"
      width="256" height="256"/>
    <material name="table" texture="wood" texrepeat="6 6" reflectance="{reflectance}"/>
    <texture name="sky" type="skybox" builtin="gradient" rgb1="0.75 0.80 0.86" rgb2="0.35 0.40 0.46"
      width="64" height="64"/>
  </asset>
  <worldbody>
    <light pos="0.6 0.5 1.4" dir="-0.3 -0.4 -1" diffuse="0.55 0.55 0.55" specular="0.1 0.1 0.1"
      castshadow="{cast}"/>
    <geom name="table" type="plane" size="0.8 0.8 0.1" material="table" friction="0.9 0.02 0.001"/>
    <camera name="front" pos="0.62 0 0.46" xyaxes="0 1 0 -0.866 0 0.5" fovy="43"/>
    <camera name="film" pos="0.72 -0.52 0.48" xyaxes="0.68 0.74 0 -0.36 0.33 0.87" fovy="34"/>
    {arm}
    {scene}
  </worldbody>
  <actuator>{actuators}</actuator>
</mujoco>
"""


def build_model(task: Task, *, film: bool = False) -> mujoco.MjModel:
    """Compiles arm and task.

    Args:
        task: Its scene is added to the table.
        film: Shadows, reflections and multisampling, for videos people look at. They cost a
            factor of about 100 on a CPU, so observation cameras go without.
    """
    xml = _TEMPLATE.format(
        dt=PHYSICS_DT,
        shadow=2048 if film else 0,
        samples=4 if film else 0,
        reflectance=0.08 if film else 0,
        cast="true" if film else "false",
        arm=so101.mjcf(),
        scene=task.scene(),
        actuators=so101.actuators(),
    )
    return mujoco.MjModel.from_xml_string(xml)


class Camera:
    """An offscreen renderer that is made at first use, so that blind rollouts need no GL."""

    def __init__(self, model: mujoco.MjModel, height: int, width: int, *, film: bool) -> None:
        self._model, self._size, self._film = model, (height, width), film
        self._renderer: mujoco.Renderer | None = None

    def render(self, data: mujoco.MjData, camera: str) -> Image:
        """uint8 RGB, shape (h, w, 3)."""
        renderer = self._renderer or mujoco.Renderer(self._model, *self._size)
        self._renderer = renderer
        renderer.update_scene(data, camera=camera)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            renderer.scene.flags[flag] = self._film
        return renderer.render()

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None


class LazyFrames(Mapping[str, Image]):
    """Renders a camera when its frame is asked for: the loop does not need every one."""

    def __init__(self, names: tuple[str, ...], render: Callable[[str], Image]) -> None:
        self._names, self._render = names, render
        self._made: dict[str, Image] = {}

    def __getitem__(self, name: str) -> Image:
        if name not in self._names:
            raise KeyError(name)
        if name not in self._made:
            self._made[name] = self._render(name)
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class SimRobot:
    """The simulated arm, as a ``Robot``.

    Time is the caller's: ``write`` sets the servos' targets and ``advance_to`` runs physics up to
    an instant. In virtual time the caller owns the clock; in wall-clock time it is the real one.
    """

    control_period_ns = CONTROL_PERIOD_NS

    def __init__(
        self, task: Task, spec: RobotSpec | None = None, flicker: Flicker | None = None
    ) -> None:
        """Args:
        task: The task to simulate.
        spec: The arm's spec; the task's cameras and lags by default.
        flicker: Light that flickers in the fixed camera's picture; steady light when None.
        """
        self.task, self._flicker, self._seed = task, flicker, 0
        self._spec = spec or so101.spec(task.cameras, task.lags)
        self.model = build_model(task)
        self.data = mujoco.MjData(self.model)
        first = self._spec.cameras[0]
        self._camera = Camera(self.model, first.height, first.width, film=False)
        self._origin_ns = 0
        self.prompt = ""

    @property
    def spec(self) -> RobotSpec:
        return self._spec

    def reset(self, seed: int, prompt: str | None = None, now_ns: int = 0) -> str:
        """Starts an episode at ``now_ns`` and returns its instruction."""
        rng, self._seed = np.random.default_rng(seed), seed
        mujoco.mj_resetData(self.model, self.data)
        start = self.task.start(rng)
        self.data.qpos[:6] = start
        self.data.ctrl[:6] = start
        self.prompt = self.task.reset(self.model, self.data, rng, prompt)
        mujoco.mj_forward(self.model, self.data)
        self._origin_ns = now_ns
        return self.prompt

    @property
    def position(self) -> Array:
        """Measured joints in action units. Shape (6,)."""
        return so101.to_normalised(self.data.qpos[:6])

    @property
    def velocity(self) -> Array:
        """Joint rates in action units per second. Shape (6,)."""
        velocity = self.data.qvel[:6].copy()
        velocity[5] /= so101.GRIPPER_RANGE
        return velocity

    @property
    def tip(self) -> Array:
        """Grasp point [m]. Shape (3,)."""
        return self.data.site("tip").xpos.copy()

    def read(self) -> Reading:
        state = np.concatenate([self.position, self.velocity]).astype(np.float32)
        # Valid until physics goes on: who wants the frames takes them at once.
        frames = LazyFrames(tuple(c.name for c in self._spec.cameras), self.render)
        return Reading(self._origin_ns + round(self.data.time * 1e9), state, frames)

    def write(self, command: Command) -> None:
        self.data.ctrl[:6] = so101.to_joints(np.asarray(command.position, dtype=np.float64))

    def advance_to(self, now_ns: int) -> None:
        """Runs physics up to ``now_ns``, moving the task every ``TASK_DT``."""
        while self._origin_ns + round((self.data.time + TASK_DT / 2) * 1e9) <= now_ns:
            mujoco.mj_step(self.model, self.data, _PER_TASK)
            self._advance_task()
        self.place_cameras()

    def step(self) -> None:
        """Runs one physics step, ``PHYSICS_DT``: for who sets the servos' targets in between.

        The task moves after every ``TASK_DT``, as in ``advance_to``, with the same outcome. Before
        frames are rendered, ``place_cameras`` is to be called.
        """
        mujoco.mj_step(self.model, self.data)
        if round(self.data.time / PHYSICS_DT) % _PER_TASK == 0:
            self._advance_task()

    def _advance_task(self) -> None:
        # Kinematics of the new state: cameras and distances would be one step stale without.
        mujoco.mj_kinematics(self.model, self.data)
        self.task.advance(self.model, self.data, TASK_DT)

    def place_cameras(self) -> None:
        """Moves bodies and cameras to where the present joints put them."""
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_camlight(self.model, self.data)

    def render(self, camera: str) -> Image:
        """One frame as the policy sees it: uint8 RGB, shape (h, w, 3)."""
        frame = self._camera.render(self.data, camera)
        if self._flicker is None or camera != CAMERA:
            return frame
        return self._flicker.light(frame, self._seed, round(self.data.time / TASK_DT))

    def project(self, camera: str, points: Array) -> tuple[Array, np.ndarray]:
        """Where points appear in a camera; see ``project``."""
        return project(self.model, self.data, camera, points)

    def close(self) -> None:
        self._camera.close()


def project(
    model: mujoco.MjModel, data: mujoco.MjData, camera: str, points: Array
) -> tuple[Array, np.ndarray]:
    """Where points appear in a camera with square frames.

    Args:
        model: The simulation.
        data: Its state.
        camera: The camera's name.
        points: Shape (R, 3), [m].

    Returns:
        Horizontal and vertical position in 0..1 from the top left, shape (R, 2); and whether
        each is inside the picture, shape (R,).
    """
    cam = data.camera(camera)
    local = (points - cam.xpos) @ cam.xmat.reshape(3, 3)
    depth = np.maximum(-local[:, 2], 1e-6)
    scale = 0.5 / np.tan(np.deg2rad(model.camera(camera).fovy[0]) / 2)
    uv = np.stack([local[:, 0], -local[:, 1]], axis=1) / depth[:, None] * scale + 0.5
    inside = (local[:, 2] < 0) & (uv > 0).all(axis=1) & (uv < 1).all(axis=1)
    return uv, inside
