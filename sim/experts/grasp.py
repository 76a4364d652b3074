"""The expert of the tasks that pick a cube up from above.

It has no phase variable: what to do next follows from where hand, cube and destination are, so any
disturbed state (a missed grasp, a dropped or knocked cube) gets the label that recovers from it.

    free:   over the cube, gripper open -> down -> close around it
    held:   straight up -> over the destination -> down -> open
    placed: straight up -> home

Heights and sideways motion are tied to each other by ramps ("funnels") rather than by switches:
the allowed height falls as the hand comes over its goal, and sideways motion waits for the height.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import atan2, hypot

import numpy as np

from sim.experts.motion import DIMS, plan_start, roll_out
from sim.robots import so101
from sim.robots.so101 import Array

HALF = 0.012  # half the edge of a cube [m]
WIDTH = 0.151  # gripper when it holds a cube [0..1]
DOWN = np.pi / 2  # pitch of a hand that points down [rad]


@dataclass(frozen=True)
class Grasp:
    """How to grasp.

    Attributes:
        home: Where the tip goes when there is nothing to do. x, y, z [m].
        omega: Natural frequency of the arm's motion [rad/s].
        omega_gripper: Of the gripper's [rad/s].
        stride: The goal is never farther ahead than this, which bounds the speed [m].
        low: Height of the tip at a grasp [m].
        travel: Height of the tip on the way [m].
        release: Height of the tip when it lets go [m].
        open: Gripper open [0..1].
        squeeze: Command of a gripper that holds [0..1]; below ``WIDTH``.
        clearance: The fixed jaw comes down this far from the cube's side [m].
        home_pitch: Pitch at home, where pointing down may be out of reach [rad].
        square: Whether the jaws close along y, rather than around the pan axis.
        reach_y: How far to the sides it waits for a cube [m].
    """

    home: tuple[float, float, float] = (0.185, 0.0, 0.07)
    omega: float = 14.0
    omega_gripper: float = 20.0
    stride: float = 0.028
    low: float = 0.012
    travel: float = 0.058
    release: float = 0.027
    open: float = 0.36
    squeeze: float = 0.04
    clearance: float = 0.007
    home_pitch: float = DOWN
    square: bool = False
    reach_y: float = 0.17

    def start(self, tip: Array, gripper: float) -> Array:
        """Joint angles with the tip there. Shape (6,), [rad].

        Args:
            tip: Shape (3,), [m].
            gripper: In 0..1.
        """
        arm = so101.inverse(np.append(tip, self.home_pitch))
        roll = arm[0] if self.square else 0.0
        return np.concatenate([arm, [roll, so101.LOWER[5] + so101.GRIPPER_RANGE * gripper]])


@dataclass
class Item:
    """The cube to grasp, as measured, and then as the plan believes it to move.

    Attributes:
        position: Centre, x, y, z [m].
        velocity: x, y [m/s] while nobody holds it.
        held: Whether it moves with the tip.
    """

    position: tuple[float, float, float]
    velocity: tuple[float, float] = (0.0, 0.0)
    held: bool = False


def ramp(value: float, at_zero: float, at_one: float) -> float:
    """0 at ``at_zero``, 1 at ``at_one``, straight between, flat outside."""
    share = (value - at_zero) / (at_one - at_zero)
    return 0.0 if share < 0.0 else 1.0 if share > 1.0 else share


class _Planner:
    """One plan: the goal of each period, from the plan's own state and its belief of the cube."""

    def __init__(
        self,
        motion: Grasp,
        item: Item,
        placed: Callable[[float, float, float], bool],
        destination: tuple[float, float] | None,
        dt: float,
    ) -> None:
        self.motion, self.item, self.placed = motion, item, placed
        self.destination, self.dt = destination, dt
        self.offset = (0.0, 0.0, 0.0)  # tip to cube while held [m]

    def begin(self, tip: Array, gripper: float) -> None:
        """Decides from the measured tip and gripper whether the cube is held."""
        item = self.item
        along, across = self._in_hand(tip[0], tip[1], item.position)
        beside = abs(along) < 0.016 and abs(across) < 0.009
        near = beside and abs(item.position[2] - tip[2]) < 0.018
        if near and abs(gripper - WIDTH) < 0.04:
            self._attach(tip)

    def look(self, i: int, tip: Array, gripper: float) -> None:
        """Moves the cube by one period, unless i is 0, and looks again whether it is held."""
        if i > 0:
            x, y, z = tip.tolist()
            self._believe(i, x, y, z, gripper)
        if not self.item.held:
            self.begin(tip, gripper)

    def _attach(self, tip: Array) -> None:
        x, y, z = self.item.position
        self.item.held, self.offset = True, (x - tip[0], y - tip[1], z - tip[2])

    def _in_hand(self, x: float, y: float, cube: tuple[float, float, float]) -> tuple[float, float]:
        """The cube seen from the tip: along the hand, and across towards the moving jaw [m]."""
        ax, ay = self._away(x, y)
        dx, dy = cube[0] - x, cube[1] - y
        return dx * ax + dy * ay, dy * ax - dx * ay

    def _away(self, x: float, y: float) -> tuple[float, float]:
        """The hand's direction there, across which the jaws close: a unit vector."""
        if self.motion.square:
            return 1.0, 0.0
        r = hypot(x - so101.PAN_X, y) + 1e-9
        return (x - so101.PAN_X) / r, y / r

    def __call__(self, i: int, x: Array, v: Array) -> Array:
        tx, ty, tz, grip = float(x[0]), float(x[1]), float(x[2]), float(x[5])
        self._believe(i, tx, ty, tz, grip)
        cube = self.item.position
        if self.item.held:
            return self._carry(tx, ty, tz)
        if self.placed(*cube):
            return self._retreat(tx, ty, tz, cube)
        return self._approach(tx, ty, tz, grip, cube)

    def _believe(self, i: int, tx: float, ty: float, tz: float, grip: float) -> None:
        """Moves the cube by one period, as far as the plan can know."""
        item = self.item
        if item.held and grip > WIDTH + 0.03:
            item.held, item.velocity = False, (0.0, 0.0)
            # It falls: below is the destination's floor, or the table.
            item.position = (item.position[0], item.position[1], HALF + 0.002)
        elif item.held:
            ox, oy, oz = self.offset
            item.position = (tx + ox, ty + oy, tz + oz)
        elif i > 0:
            x, y, z = item.position
            vx, vy = item.velocity
            item.position = (x + vx * self.dt, y + vy * self.dt, z)

    def _goal(
        self,
        x: float,
        y: float,
        z: float,
        grip: float,
        tip: tuple[float, float],
        pitch: float = DOWN,
    ) -> Array:
        """A goal at most one stride away from the tip."""
        dx, dy = x - tip[0], y - tip[1]
        far = hypot(dx, dy)
        if far > self.motion.stride:
            dx, dy = dx * self.motion.stride / far, dy * self.motion.stride / far
        roll = atan2(tip[1], tip[0] - so101.PAN_X) if self.motion.square else 0.0
        return np.array([tip[0] + dx, tip[1] + dy, z, pitch, roll, grip])

    def _home(self, tx: float, ty: float, tz: float, free: float, grip: float) -> Array:
        """Up, and home as far as the way is free (0..1)."""
        m = self.motion
        gx, gy = tx + free * (m.home[0] - tx), ty + free * (m.home[1] - ty)
        pitch = DOWN + (m.home_pitch - DOWN) * ramp(tz, m.travel - 0.02, m.travel)
        return self._goal(gx, gy, m.home[2], grip, (tx, ty), pitch)

    def _carry(self, tx: float, ty: float, tz: float) -> Array:
        m, (ox, oy, _) = self.motion, self.offset
        if self.destination is None:
            return self._home(tx, ty, tz, ramp(tz, m.low + 0.02, m.travel), m.squeeze)
        gx, gy = self.destination[0] - ox, self.destination[1] - oy
        off = hypot(gx - tx, gy - ty)
        if off < 0.014 and tz < m.release + 0.006:
            return self._goal(tx, ty, m.release, m.open, (tx, ty))
        floor = m.release + (m.travel - m.release) * ramp(off, 0.006, 0.04)
        free = ramp(tz, floor - 0.03, floor - 0.008)
        gx, gy = tx + free * (gx - tx), ty + free * (gy - ty)
        return self._goal(gx, gy, floor, m.squeeze, (tx, ty))

    def _retreat(self, tx: float, ty: float, tz: float, cube: tuple[float, float, float]) -> Array:
        m = self.motion
        beside = hypot(cube[0] - tx, cube[1] - ty) < 0.05
        free = ramp(tz, m.travel - 0.02, m.travel - 0.005) if beside else 1.0
        return self._home(tx, ty, tz, free, m.open)

    def _approach(
        self, tx: float, ty: float, tz: float, grip: float, cube: tuple[float, float, float]
    ) -> Array:
        m, (vx, vy) = self.motion, self.item.velocity
        # The tip lags its command, and the reference model trails a moving goal by 2/omega.
        lag, trail = so101.SERVO_LAG, 2.0 / m.omega
        cube = (cube[0] + vx * lag, cube[1] + vy * lag, cube[2])
        along, across = self._in_hand(tx, ty, cube)
        if self._between(along, across, tz - cube[2], grip):
            if grip < WIDTH - 0.03:
                self._attach(np.array([tx, ty, tz]))
            low = m.low + cube[2] - HALF
            return self._goal(tx + vx * trail, ty + vy * trail, low, m.squeeze, (tx, ty))
        # The jaws come down with the fixed one clear of the cube.
        ax, ay = self._away(cube[0], cube[1])
        gx, gy = cube[0] + m.clearance * ay, cube[1] - m.clearance * ax
        if abs(gy) > m.reach_y:
            gy, vy = (m.reach_y if gy > 0 else -m.reach_y), 0.0
        shut = 1.0 - ramp(grip, 0.24, 0.32)
        low = m.low + cube[2] - HALF
        off = self._misaligned(along, across)
        floor = low + (m.travel - low) * max(shut, ramp(off, 0.006, 0.022))
        free = ramp(tz, floor - 0.03, floor - 0.01)
        gx, gy = tx + free * (gx - tx) + vx * trail, ty + free * (gy - ty) + vy * trail
        return self._goal(gx, gy, floor, m.open, (tx, ty))

    def _misaligned(self, along: float, across: float) -> float:
        """How far the open jaws are from straddling the cube, in the directions that matter [m].

        Too far across, the fixed jaw would land on the cube; the other way there is room.
        """
        spare = across - self.motion.clearance
        return hypot(0.8 * along, spare * (0.6 if spare > 0 else 1.4))

    def _between(self, along: float, across: float, above: float, grip: float) -> bool:
        """Whether closing now (or going on to close) would grasp the cube."""
        m = self.motion
        if grip < WIDTH - 0.05:
            return False  # shut beside it
        slack = 0.005 * ramp(grip, m.open - 0.02, m.open - 0.10)  # begun is not soon given up
        return (
            above < 0.0075 + slack
            and abs(along) < 0.008 + slack
            and -0.004 - slack < across < m.clearance + 0.008 + slack
        )


def follow(motion: Grasp, item: Item, joints: Array, dt: float) -> Item:
    """Where a cube is that was last seen some steps ago, from what the hand did since.

    It moves on with its velocity; once the jaws are closed around where it must be it moves with
    the hand; it falls where they open.

    Args:
        motion: How it is grasped.
        item: The cube as it was seen; changed.
        joints: Measured joints from then on, step by step. Shape (n + 1, 6), action units.
        dt: Policy period [s].
    """
    planner = _Planner(motion, item, lambda *_: False, None, dt)
    tips = so101.forward(so101.to_joints(joints))[:, :3]
    for i, (tip, grip) in enumerate(zip(tips, joints[:, 5].tolist(), strict=True)):
        planner.look(i, tip, grip)
    return item


def grasp_plan(
    motion: Grasp,
    item: Item,
    placed: Callable[[float, float, float], bool],
    destination: tuple[float, float] | None,
    position: Array,
    velocity: Array,
    steps: int,
    dt: float,
) -> Array:
    """Grasps the item and brings it to the destination; goes home once it is placed.

    Args:
        motion: How.
        item: The cube; changed by the plan.
        placed: Whether a cube with its centre at x, y, z [m] is where it should be.
        destination: x, y [m], or None to lift only.
        position: Measured joints, action units. Shape (6,).
        velocity: Their rates. Shape (6,).
        steps: Length of the chunk.
        dt: Policy period [s].

    Returns:
        Set-points at the end of each period. Shape (steps, 6), action units.
    """
    start, rate = plan_start(position, velocity)
    planner = _Planner(motion, item, placed, destination, dt)
    planner.begin(start - so101.SERVO_LAG * rate, float(position[5]))
    first = planner(0, start, rate)
    if item.held and first[5] < WIDTH:
        # The jaws are stopped by the cube; the command that squeezes it is not in the measurement.
        start[5], rate[5] = motion.squeeze, 0.0
    elif not item.held:
        # Nothing stops the jaws: like the arm they trail their command.
        start[5] = min(1.0, max(0.0, start[5] + so101.GRIPPER_LAG * rate[5]))
    omega = np.full(DIMS, motion.omega)
    omega[5] = motion.omega_gripper
    return roll_out(start, rate, planner, omega, dt, steps)
