"""Pick and place: put the named cube into the named bowl."""

from __future__ import annotations

import mujoco
import numpy as np

from sim.experts.grasp import HALF, Grasp, Item, grasp_plan
from sim.robots import so101
from sim.robots.so101 import Array
from sim.task import COLOURS, HIDDEN_Z, Targets, Task, choose_prompt, register

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


def cube_mjcf(colour: str) -> str:
    """A free cube that table, jaws and other cubes touch."""
    return (
        f'<body name="cube_{colour}" pos="0 0 {HIDDEN_Z}"><freejoint name="cube_{colour}"/>'
        f'<geom name="cube_{colour}" type="box" size="{HALF} {HALF} {HALF}" mass="0.016" '
        f'rgba="{COLOURS[colour]}" contype="5" conaffinity="1" condim="4" '
        'friction="1.0 0.02 0.001" solref="0.006 1"/></body>'
    )


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


@register("pick_place")
class PickPlace(Task):
    """Two cubes and two bowls; "put the green cube into the blue bowl".

    Description: two cubes and two shallow bowls stand on the table. The arm is to put the named
        cube into the named bowl and to let go of it.
    Randomisation: colours, places, the cubes' yaw, the start pose.
    Success: the named cube rests inside the named bowl and no jaw touches it.
    """

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
        gripper = so101.LOWER[5] + so101.GRIPPER_RANGE * rng.uniform(0.2, 0.4)
        return np.concatenate([so101.inverse(np.append(tip, np.pi / 2)), [0.0, gripper]])

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
        self._data, self._rest, self._best = data, 0.0, 0.0
        self._jaws = {model.geom(name).id for name in ("fixed_jaw", "moving_jaw")}
        self._geoms = {c: model.geom(f"cube_{c}").id for c in _CUBES}
        self._joints = {c: data.joint(f"cube_{c}") for c in _CUBES}
        for i, colour in enumerate(_CUBES):
            shown = colour in self._cubes
            # A hidden cube floats behind the cameras and touches nothing.
            model.geom_contype[self._geoms[colour]] = 5 if shown else 0
            model.geom_conaffinity[self._geoms[colour]] = 1 if shown else 0
            model.body_gravcomp[model.body(f"cube_{colour}").id] = 0.0 if shown else 1.0
            self._joints[colour].qpos = [2.0, 0.1 * i, HALF, 1, 0, 0, 0]
        for colour, place, yaw in zip(self._cubes, places[:2], yaws, strict=True):
            yaw = yaw + np.arctan2(place[1], place[0] - so101.PAN_X)
            turn = [np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)]
            self._joints[colour].qpos = [*place, HALF, *turn]
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
        cube = self._joints[self._cubes[0]]
        inside = self._inside(self._cubes[0], self._bowls[0])
        still = inside and np.abs(cube.qvel).max() < 0.2 and np.abs(cube.qvel[:3]).max() < 0.02
        self._rest = self._rest + dt if still and not self._touched() else 0.0
        self._best = max(self._best, self._progress(data.site("tip").xpos))

    def _touched(self) -> bool:
        """Whether a jaw touches the named cube."""
        cube = self._geoms[self._cubes[0]]
        pairs = self._data.contact.geom
        of_cube = pairs[(pairs == cube).any(axis=1)]
        return any(int(geom) in self._jaws for geom in of_cube.ravel())

    def _progress(self, tip: Array) -> float:
        position = self._joints[self._cubes[0]].qpos[:3]
        if self.success():
            return 1.0
        if np.linalg.norm(position - tip) > 0.03 or not self._touched():
            return 0.0
        if position[2] < HALF + 0.015:
            return 0.25
        over = np.linalg.norm(position[:2] - self._places[self._bowls[0]]) < _INSIDE
        return 0.75 if over else 0.5

    def _inside(self, cube: str, bowl: str) -> bool:
        position = self._joints[cube].qpos[:3]
        return _is_inside(position, self._places[bowl])

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
        cube = self._joints[self._cubes[0]]
        return Targets(
            np.array([cube.qpos[:3], [*self._places[self._bowls[0]], HALF]]),
            np.array([cube.qvel[:3], np.zeros(3)]),
            np.array([True, True]),
        )

    def plan(self, position: Array, velocity: Array, steps: int, dt: float) -> Array:
        x, y, z = (float(c) for c in self._joints[self._cubes[0]].qpos[:3])
        bx, by = (float(c) for c in self._places[self._bowls[0]])

        def placed(x: float, y: float, z: float) -> bool:
            return (x - bx) ** 2 + (y - by) ** 2 < _INSIDE**2 and z < _WALL + HALF

        item = Item((x, y, z))
        return grasp_plan(_MOTION, item, placed, (bx, by), position, velocity, steps, dt)


def _named_first(drawn: list[str], named: str) -> list[str]:
    """The named colour and one other that was drawn."""
    return [str(named), str(drawn[0] if drawn[0] != named else drawn[1])]


def _is_inside(position: Array, bowl: Array) -> bool:
    near = np.linalg.norm(position[:2] - bowl) < _INSIDE
    return bool(near and position[2] < _WALL + HALF)


def _draw_place(rng: np.random.Generator) -> Array:
    """A place that the hand reaches from above. Shape (2,), [m]."""
    while True:
        r, y = rng.uniform(*_REACH), rng.uniform(-_REACH_Y, _REACH_Y)
        if abs(y) < 0.9 * r:
            return np.array([so101.PAN_X + np.sqrt(r * r - y * y), y])
