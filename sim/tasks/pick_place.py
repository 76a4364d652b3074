"""Pick and place: put the named cube into the named bowl."""

from __future__ import annotations

import mujoco
import numpy as np

from sim.experts.grasp import HALF, Grasp, Item, grasp_plan
from sim.robots import so101
from sim.robots.so101 import Array
from sim.task import COLOURS, HIDDEN_Z, Targets, Task, choose_prompt
from sim.tasks.cubes import Cubes, cube_mjcf, follow_first

_CUBES = ("red", "green", "yellow")
_BOWLS = ("blue", "white", "purple")  # none a cube's colour: a prompt is wrong in one way at a time
_BOWL_RADIUS = 0.045  # [m]
_WALL = 0.02  # height of a bowl's wall [m]
_WALLS = 16  # boxes that make up the ring
_REACH = (0.135, 0.232)  # distance from the pan axis at which the hand can point down [m]
_REACH_Y = 0.15  # [m]
_INSIDE = 0.033  # cube centre to bowl centre that counts as inside [m]
_REST = 0.2  # a cube has to rest for this long [s]
_MOTION = Grasp()


def _bowl_mjcf(colour: str) -> str:
    # Cubes collide with a bowl (bit 4), the jaws pass through, so that they cannot jam in it.
    look = f'rgba="{COLOURS[colour]}" contype="0" conaffinity="4"'
    half = _BOWL_RADIUS * np.tan(np.pi / _WALLS) + 0.001
    walls = "".join(
        f'<geom type="box" size="0.002 {half:.4f} {_WALL / 2}" {look} euler="0 0 {angle:.4f}" '
        f'pos="{_BOWL_RADIUS * np.cos(angle):.4f} {_BOWL_RADIUS * np.sin(angle):.4f} {_WALL / 2}"/>'
        for angle in np.arange(_WALLS) * 2 * np.pi / _WALLS
    )
    floor = f'<geom type="cylinder" size="{_BOWL_RADIUS} 0.001" pos="0 0 0.001" {look}/>'
    return f'<body name="bowl_{colour}" mocap="true" pos="0 0 {HIDDEN_Z}">{floor}{walls}</body>'


class PickPlace(Task):
    """Two cubes and two bowls; "put the green cube into the blue bowl".

    Description: two cubes and two shallow bowls stand on the table. The arm is to put the named
        cube into the named bowl and to let go of it.
    Randomisation: colours, places, the cubes' yaw, the start pose.
    Success: the named cube rests inside the named bowl and no jaw touches it.
    """

    name = "pick_place"
    prompts = tuple(f"put the {c} cube into the {b} bowl" for c in _CUBES for b in _BOWLS)
    cameras = ("front", "wrist")
    lags = (0,)
    steps = 200
    targets_count = 2

    def __init__(self, yaw: float = 0.25, gap: float = 0.075) -> None:
        """Args:
        yaw: Greatest angle between a cube's sides and the direction of the arm [rad].
        gap: Least distance between two cubes' centres [m].
        """
        self.yaw, self.gap = yaw, gap

    def scene(self) -> str:
        return "\n".join([cube_mjcf(c) for c in _CUBES] + [_bowl_mjcf(b) for b in _BOWLS])

    def start(self, rng: np.random.Generator) -> Array:
        tip = np.array(_MOTION.home) + rng.uniform([-0.03, -0.08, -0.015], [0.03, 0.08, 0.0])
        return _MOTION.start(tip, rng.uniform(0.2, 0.4))

    def reset(
        self,
        model: mujoco.MjModel,
        data: mujoco.MjData,
        rng: np.random.Generator,
        prompt: str | None,
    ) -> str:
        cubes, bowls = list(rng.permutation(_CUBES)[:2]), list(rng.permutation(_BOWLS)[:2])
        self.prompt = choose_prompt(self.prompts, rng, prompt)
        words = self.prompt.split()
        self._cubes = _named_first(cubes, words[2])
        self._bowls = _named_first(bowls, words[6])
        places, yaws = self._draw_places(rng), rng.uniform(-self.yaw, self.yaw, 2)
        self._rest, self._best = 0.0, 0.0
        self._physics = Cubes(model, data, _CUBES)
        self._physics.hide()
        for colour, place, yaw in zip(self._cubes, places[:2], yaws, strict=True):
            pan = np.arctan2(place[1], place[0] - so101.PAN_X)
            self._physics.place(colour, np.append(place, HALF), yaw + pan)
        bodies = {b: model.body(f"bowl_{b}").mocapid[0] for b in _BOWLS}
        for body in bodies.values():
            data.mocap_pos[body] = [0, 0, HIDDEN_Z]
        for colour, place in zip(self._bowls, places[2:], strict=True):
            data.mocap_pos[bodies[colour]] = [*place, 0]
        self._places = dict(zip(self._bowls, places[2:], strict=True))
        return self.prompt

    def _draw_places(self, rng: np.random.Generator) -> list[Array]:
        """Places of the two cubes, then of the two bowls, clear of each other. Each (2,), [m]."""
        radii = (self.gap / 2, self.gap / 2, 0.057, 0.057)
        while True:
            places: list[Array] = []
            for radius in radii:
                for _ in range(20):
                    place = _draw_place(rng)
                    apart = [
                        np.linalg.norm(place - other) > radius + radii[j]
                        for j, other in enumerate(places)
                    ]
                    if all(apart):
                        places.append(place)
                        break
            if len(places) == len(radii):
                return places

    def advance(self, model: mujoco.MjModel, data: mujoco.MjData, dt: float) -> None:
        named = self._cubes[0]
        spin = np.abs(self._physics.spin(named)).max()
        speed = np.abs(self._physics.velocity(named)).max()
        still = self._inside(named, self._bowls[0]) and speed < 0.02 and spin < 0.2
        self._rest = self._rest + dt if still and not self._physics.touched(named) else 0.0
        self._best = max(self._best, self._progress(data.site("tip").xpos))

    def _progress(self, tip: Array) -> float:
        position = self._physics.position(self._cubes[0])
        if self.success():
            return 1.0
        if np.linalg.norm(position - tip) > 0.03 or not self._physics.touched(self._cubes[0]):
            return 0.0
        if position[2] < HALF + 0.015:
            return 0.25
        over = np.linalg.norm(position[:2] - self._places[self._bowls[0]]) < _INSIDE
        return 0.75 if over else 0.5

    def _inside(self, cube: str, bowl: str) -> bool:
        position = self._physics.position(cube)
        near = np.linalg.norm(position[:2] - self._places[bowl]) < _INSIDE
        return bool(near and position[2] < _WALL + HALF)

    def success(self) -> bool:
        return self._rest >= _REST - 1e-9

    def wrong_place(self) -> bool:
        """Whether the other cube lies in a bowl, or the named one in the other bowl."""
        named, other = self._cubes
        astray = self._inside(named, self._bowls[1])
        return astray or any(self._inside(other, bowl) for bowl in self._bowls)

    def swapped_prompt(self) -> str:
        return f"put the {self._cubes[1]} cube into the {self._bowls[1]} bowl"

    def swapped_success(self) -> bool:
        return self._inside(self._cubes[1], self._bowls[1]) and not self.success()

    def score(self) -> float:
        return self._best

    def done(self) -> bool:
        return self.success()

    def targets(self) -> Targets:
        named = self._cubes[0]
        return Targets(
            np.array([self._physics.position(named), [*self._places[self._bowls[0]], HALF]]),
            np.array([self._physics.velocity(named), np.zeros(3)]),
            np.array([True, True]),
        )

    def foresee(self, targets: Targets, joints: Array, dt: float) -> Targets:
        return follow_first(_MOTION, targets, joints, dt)

    def plan_for(
        self, targets: Targets, position: Array, velocity: Array, steps: int, dt: float
    ) -> Array:
        (x, y, z), (bx, by, _) = targets.position.tolist()

        def placed(x: float, y: float, z: float) -> bool:
            return (x - bx) ** 2 + (y - by) ** 2 < _INSIDE**2 and z < _WALL + HALF

        return grasp_plan(_MOTION, Item((x, y, z)), placed, (bx, by), position, velocity, steps, dt)


def _named_first(drawn: list[str], named: str) -> list[str]:
    """The named colour and one other that was drawn."""
    return [str(named), str(drawn[0] if drawn[0] != named else drawn[1])]


def _draw_place(rng: np.random.Generator) -> Array:
    """A place that the hand reaches from above. Shape (2,), [m]."""
    while True:
        r, y = rng.uniform(*_REACH), rng.uniform(-_REACH_Y, _REACH_Y)
        if abs(y) < 0.9 * r:
            return np.array([so101.PAN_X + np.sqrt(r * r - y * y), y])
