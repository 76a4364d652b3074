"""A task of Meta-World as a ``Robot`` that the controller drives like any other."""

from __future__ import annotations

import numpy as np

from controller.errors import ErrorCode, OnsetError
from controller.types import Command, Image, Reading, RobotSpec
from sim.env import Camera, LazyFrames, project
from sim.metaworld import hand
from sim.metaworld.hand import TICK_NS, TICKS, Array
from sim.metaworld.world import MAX_TICKS, TOP_REWARD, World
from sim.task import Targets


def prompt_of(name: str) -> str:
    """The instruction of a task: its name in words, ``"drawer-close-v3"`` to ``"drawer close"``."""
    return " ".join(name.removesuffix("-v3").split("-"))


class MetaWorldTask:
    """One of Meta-World's tasks, by its name.

    Description: Meta-World's; the hand of a Sawyer moves in space and grips.
    Randomisation: the task's own, of object and goal, over its whole range, by the seed.
    Success: ``info["success"]`` was 1 after any environment step, as Meta-World's evaluation
        counts; the episode ends with it, or after 500 environment steps.

    Attributes:
        name: Its name, e.g. ``"reach-v3"``.
        prompts: The one instruction that it knows.
        steps: Policy steps in an episode.
        targets_count: R, the object and the goal.
        world: The environment.
    """

    steps = MAX_TICKS // TICKS
    targets_count = 2

    def __init__(self, name: str) -> None:
        """Args:
        name: One of ``sim.metaworld.world.available()``.

        Raises:
            OnsetError: There is no such task, or Meta-World is not installed.
        """
        self.world = World(name)
        self.name, self.prompts = name, (prompt_of(name),)

    def success(self) -> bool:
        """Whether the episode so far counts as a success."""
        return self.world.success

    def score(self) -> float:
        """The greatest reward of an environment step so far, as a share of the greatest of all."""
        return min(1.0, self.world.reward / TOP_REWARD)

    def done(self) -> bool:
        """Whether nothing more can change the outcome."""
        return self.world.success

    def targets(self) -> Targets:
        """Where object and goal are."""
        return self.world.targets()

    def plan(self, position: Array, velocity: Array, steps: int, dt: float) -> Array:
        """The expert's chunk from the present state of the environment. Shape (steps, 4).

        Position, velocity and period are the environment's own; they are taken to be given
        because the experts of other tasks need them.
        """
        return self.world.plan(steps)

    def swapped_prompt(self) -> str:
        """Meta-World names no other thing in a scene: the instruction itself."""
        return self.prompts[0]

    def swapped_success(self) -> bool:
        return False


class MetaWorldRobot:
    """The simulated hand with its task; time is the caller's, as of ``sim.env.SimRobot``.

    Frames are 64 x 64 pixels without shadows, reflections and multisampling, which on a processor
    cost a hundred times as much.
    """

    control_period_ns = TICK_NS

    def __init__(self, task: MetaWorldTask) -> None:
        self.task = task
        self.world = task.world
        self._spec = hand.spec()
        model = self.world.model
        model.vis.quality.shadowsize = model.vis.quality.offsamples = 0
        model.mat_reflectance[:] = 0
        self._camera = Camera(model, hand.IMAGE_SIZE, hand.IMAGE_SIZE, film=False)
        self._origin_ns = 0
        self.prompt = ""

    @property
    def spec(self) -> RobotSpec:
        return self._spec

    def reset(self, seed: int, prompt: str | None = None, now_ns: int = 0) -> str:
        """Starts an episode at ``now_ns`` and returns its instruction.

        Raises:
            OnsetError: UNKNOWN_PROMPT for another instruction than the task's.
        """
        if prompt not in (None, *self.task.prompts):
            allowed = list(self.task.prompts)
            raise OnsetError(ErrorCode.UNKNOWN_PROMPT, "prompt", repr(prompt), allowed)
        self.world.reset(seed)
        self.prompt = self.task.prompts[0]
        self._set_point = self.world.position
        self._origin_ns = now_ns
        return self.prompt

    @property
    def position(self) -> Array:
        """Measured hand [m] and gripper [0..1]. Shape (4,)."""
        return self.world.position

    @property
    def velocity(self) -> Array:
        """Their rates [m/s, 1/s]. Shape (4,)."""
        return self.world.velocity

    def read(self) -> Reading:
        state = np.concatenate([self.position, self.velocity]).astype(np.float32)
        # Valid until physics goes on: who wants the frames takes them at once.
        frames = LazyFrames(tuple(c.name for c in self._spec.cameras), self.render)
        return Reading(self._origin_ns + self.world.ticks * TICK_NS, state, frames)

    def write(self, command: Command) -> None:
        self._set_point = np.asarray(command.position, dtype=np.float64)

    def advance_to(self, now_ns: int) -> None:
        """Makes the environment steps that end by ``now_ns``."""
        while self._origin_ns + (self.world.ticks + 1) * TICK_NS <= now_ns:
            self.world.go_to(self._set_point)

    def render(self, camera: str) -> Image:
        """One frame as the policy sees it: uint8 RGB, shape (h, w, 3)."""
        return self._camera.render(self.world.data, camera)

    def project(self, camera: str, points: Array) -> tuple[Array, np.ndarray]:
        """Where points appear in a camera; see ``sim.env.project``."""
        return project(self.world.model, self.world.data, camera, points)

    def close(self) -> None:
        self._camera.close()
