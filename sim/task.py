"""What a task is: a scene, its randomisation, its success and its expert."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import mujoco
import numpy as np

from controller.errors import ErrorCode, OnsetError
from sim.robots.so101 import Array

COLOURS: dict[str, str] = {
    "red": "0.90 0.10 0.10 1",
    "green": "0.10 0.72 0.18 1",
    "blue": "0.12 0.25 0.95 1",
    "yellow": "0.97 0.85 0.10 1",
    "purple": "0.60 0.15 0.75 1",
    "white": "0.95 0.95 0.95 1",
}
HIDDEN_Z = -0.2  # where what is not on the table waits [m]


@dataclass(frozen=True)
class Targets:
    """What the instruction refers to: privileged, for auxiliary losses and experts only.

    Attributes:
        position: Shape (..., R, 3), [m].
        velocity: Shape (..., R, 3), [m/s].
        visible: Whether it is on the table. Shape (..., R), bool.
    """

    position: Array
    velocity: Array
    visible: np.ndarray

    def later(self, seconds: float | Array) -> Targets:
        """Where they will be if nothing happens; ``seconds`` is one time or shape (...,)."""
        moved = self.velocity * np.asarray(seconds)[..., None, None]
        return replace(self, position=self.position + moved)


class Task(ABC):
    """One task. Subclasses say description, randomisation and success in their docstrings.

    Attributes:
        name: Task name.
        prompts: Every instruction it understands.
        steps: Policy steps in an episode.
        cameras: The cameras a policy for it sees.
        lags: The frames of the fixed camera, as steps before now.
        targets_count: R, the number of things an instruction refers to.
        batched: Whether ``plan_for`` takes many scenes at once.
        muted: Whether the first event that calls for a reaction is left out: from the next reset
            on it does not happen, and everything else, all random draws too, stays the same.
    """

    name: str
    prompts: tuple[str, ...]
    steps: int
    cameras: tuple[str, ...]
    lags: tuple[int, ...] = (0,)
    targets_count: int = 1
    batched: bool = False
    prompt: str = ""
    muted: bool = False

    @abstractmethod
    def scene(self) -> str:
        """The task's bodies as MJCF, children of worldbody."""

    @abstractmethod
    def reset(
        self,
        model: mujoco.MjModel,
        data: mujoco.MjData,
        rng: np.random.Generator,
        prompt: str | None,
    ) -> str:
        """Places everything at random and returns the instruction (``prompt`` when given)."""

    @abstractmethod
    def advance(self, model: mujoco.MjModel, data: mujoco.MjData, dt: float) -> None:
        """Moves what the task moves by ``dt`` seconds and keeps the score."""

    @abstractmethod
    def success(self) -> bool:
        """Whether the episode so far counts as a success."""

    @abstractmethod
    def score(self) -> float:
        """Progress in 0..1."""

    @abstractmethod
    def done(self) -> bool:
        """Whether nothing more can change the outcome."""

    @abstractmethod
    def swapped_prompt(self) -> str:
        """The instruction that would name the other thing that is here."""

    @abstractmethod
    def swapped_success(self) -> bool:
        """Whether the other thing was dealt with instead of the named one."""

    @abstractmethod
    def targets(self) -> Targets:
        """What the instruction refers to, now."""

    def plan(self, position: Array, velocity: Array, steps: int, dt: float) -> Array:
        """The expert's chunk from the present state; see ``plan_for``."""
        return self.plan_for(self.targets(), position, velocity, steps, dt)

    @abstractmethod
    def plan_for(
        self, targets: Targets, position: Array, velocity: Array, steps: int, dt: float
    ) -> Array:
        """The expert's chunk where the targets are as given: it looks at nothing else.

        Args:
            targets: The scene.
            position: Measured joints, action units. Shape (6,).
            velocity: Their rates. Shape (6,).
            steps: Length of the chunk.
            dt: Policy period [s].

        Returns:
            Set-points at the end of each period. Shape (steps, 6), action units.
        """

    def foresee(self, targets: Targets, joints: Array, dt: float) -> Targets:
        """What must have become of a scene that was last seen some steps ago.

        Nothing but what the arm did since, and what moves on as it did.

        Args:
            targets: As they were seen.
            joints: Measured joints from then on, step by step. Shape (n + 1, 6), action units.
            dt: Policy period [s].
        """
        return targets.later((len(joints) - 1) * dt)

    @abstractmethod
    def start(self, rng: np.random.Generator) -> Array:
        """Joint angles at the start of an episode [rad]. Shape (6,)."""

    def event_ns(self) -> int | None:
        """When the last event that calls for a reaction happened [ns of episode time], or None.

        0 is the beginning itself, where a task has something to react to from the start.
        """
        return None


def interval(field: str, lower: float, upper: float) -> tuple[float, float]:
    """Checks the ends of a range that a task draws from.

    Raises:
        OnsetError: BAD_VALUE when they are not finite or in the wrong order.
    """
    if not (np.isfinite([lower, upper]).all() and lower <= upper):
        raise OnsetError(ErrorCode.BAD_VALUE, field, (lower, upper), "finite, min <= max")
    return lower, upper


def choose_prompt(prompts: tuple[str, ...], rng: np.random.Generator, prompt: str | None) -> str:
    """Draws a prompt, or checks the one that was asked for."""
    drawn = prompts[int(rng.integers(len(prompts)))]
    if prompt is None:
        return drawn
    if prompt not in prompts:
        raise OnsetError(ErrorCode.UNKNOWN_PROMPT, "prompt", repr(prompt), list(prompts))
    return prompt


def draw_pair(
    colours: tuple[str, ...],
    prompts: tuple[str, ...],
    rng: np.random.Generator,
    prompt: str | None,
) -> tuple[str, str, str]:
    """Draws an instruction of the form "verb the <colour> thing", and a thing it does not name.

    Returns:
        The instruction, the colour that it names, and another one.
    """
    pair = [str(colour) for colour in rng.permutation(colours)[:2]]
    chosen = choose_prompt(prompts, rng, prompt)
    named = chosen.split()[2]
    return chosen, named, pair[0] if pair[0] != named else pair[1]
