"""The expert with late eyes against the one that sees everything, and what it makes of a cube."""

from __future__ import annotations

import numpy as np
import pytest

from controller.loop_types import TickCode, TickResult
from controller.types import Command
from sim.env import SimRobot
from sim.experts.grasp import DOWN, HALF, WIDTH, Grasp, Item, follow
from sim.robots import so101
from sim.rollout import expert
from sim.stale import StaleExpert
from sim.task import Targets
from sim.tasks import make_task
from tests.sim.helpers import observation

HORIZON = 16
DT = 0.04
MOTION = Grasp()


def step_through(robot: SimRobot, experts: list, steps: int, drive: int = 0) -> list[list]:
    """Chunks of each expert at each step of an episode in which one of them drives the arm."""
    period_ns = robot.spec.period_ns
    chunks: list[list] = [[] for _ in experts]
    for step in range(steps):
        asked = observation(step, step * period_ns)
        for found, infer in zip(chunks, experts, strict=True):
            found.append(infer(asked))
        point = chunks[drive][-1][0]
        for infer in experts:
            if isinstance(infer, StaleExpert):
                infer.watch(TickResult(TickCode.RUNNING, step, point, boundary=True))
                infer.watch(TickResult(TickCode.RUNNING, step, point))  # later in the step
        robot.write(Command(step * period_ns, point))
        robot.advance_to((step + 1) * period_ns)
    return chunks


@pytest.mark.parametrize("name", ["whack", "intercept", "conveyor", "pick_place"])
def test_without_a_delay_it_is_the_expert(name):
    robot = SimRobot(make_task(name))
    robot.reset(3)
    fresh, stale = step_through(robot, [expert(robot, HORIZON), StaleExpert(robot, 0, HORIZON)], 40)
    np.testing.assert_array_equal(fresh, stale)


@pytest.mark.parametrize("delay", [1, 4, 8])
def test_where_everything_moves_on_evenly_late_eyes_cost_nothing(delay):
    robot = SimRobot(make_task("whack"))
    robot.reset(3)
    begin = Targets(np.array([[0.2, -0.1, 0.045]]), np.array([[0.02, 0.06, 0.0]]), np.array([True]))
    robot.task.targets = lambda: robot.task.foresee(begin, np.zeros((1, 6)), DT).later(
        robot.data.time
    )
    fresh, stale = step_through(
        robot, [expert(robot, HORIZON), StaleExpert(robot, delay, HORIZON)], 30
    )
    np.testing.assert_allclose(fresh, stale, atol=1e-6)


@pytest.mark.parametrize("delay", [1, 4])
def test_a_turn_is_seen_so_many_steps_late(delay):
    robot = SimRobot(make_task("whack"))
    robot.reset(3)
    turns = 10

    def targets() -> Targets:
        turned = robot.data.time > (turns - 0.5) * DT
        place = [0.25, 0.1, 0.045] if turned else [0.2, -0.1, 0.045]
        return Targets(np.array([place]), np.zeros((1, 3)), np.array([True]))

    robot.task.targets = targets
    fresh, stale = step_through(
        robot, [expert(robot, HORIZON), StaleExpert(robot, delay, HORIZON)], 30, drive=1
    )
    differ = [step for step in range(30) if np.abs(fresh[step] - stale[step]).max() > 1e-3]
    assert differ == list(range(turns, turns + delay))


def test_where_the_arm_is_it_knows_at_once():
    robot = SimRobot(make_task("whack"))
    robot.reset(3)
    stale = StaleExpert(robot, 8, HORIZON)
    (before,) = step_through(robot, [stale], 1)
    robot.data.qpos[0] += 0.3
    after = stale(observation(1, 0))
    assert np.abs(after[0] - before[0][0]).max() > 0.1


# ---- a cube that was seen some steps ago


def path(tips: list, grips: list[float]) -> np.ndarray:
    """Joints of a hand that points down there, action units. Shape (n, 6)."""
    arm = so101.inverse(np.array([[*tip, DOWN] for tip in tips]))
    rest = np.array([[0.0, grip] for grip in grips])
    return np.concatenate([arm, rest], axis=1)


def along(begin: list[float], end: list[float], count: int) -> list:
    return np.linspace(begin, end, count).tolist()


def test_a_cube_that_nobody_holds_moves_on():
    joints = path(along([0.2, 0.05, 0.1], [0.22, 0.0, 0.06], 6), [0.36] * 6)
    item = follow(MOTION, Item((0.25, -0.1, HALF), (0.0, 0.1)), joints, DT)
    assert not item.held
    np.testing.assert_allclose(item.position, [0.25, -0.1 + 5 * DT * 0.1, HALF], atol=1e-9)
    assert item.velocity == (0.0, 0.1)


@pytest.mark.parametrize("count", [2, 6, 12])
def test_a_cube_that_was_in_the_hand_moved_with_it(count):
    begin, end = [0.2, 0.0, 0.013], [0.23, 0.04, 0.06]
    joints = path(along(begin, end, count), [WIDTH] * count)
    offset = np.array([0.004, -0.003, -0.001])
    item = follow(MOTION, Item(tuple(np.add(begin, offset).tolist())), joints, DT)
    assert item.held
    np.testing.assert_allclose(item.position, end + offset, atol=1e-6)


def test_a_cube_that_was_grasped_since_moves_with_the_hand_from_then_on():
    """Seen before the jaws closed around it."""
    place = [0.2, 0.0, 0.013]
    tips = [*[place] * 5, *along(place, [0.2, 0.03, 0.06], 6)[1:]]
    grips = [0.36, 0.3, 0.22, WIDTH, WIDTH, *[WIDTH] * 5]
    item = follow(MOTION, Item((0.2, 0.0, HALF)), path(tips, grips), DT)
    assert item.held
    np.testing.assert_allclose(item.position, [0.2, 0.03, 0.06 - 0.001], atol=1e-6)


def test_a_cube_that_was_let_go_since_lies_where_the_hand_was():
    place = [0.22, 0.05, 0.03]
    tips = [*along([0.2, 0.0, 0.06], place, 5), place, *along(place, [0.2, -0.05, 0.07], 5)[1:]]
    grips = [*[WIDTH] * 5, 0.3, *[0.36] * 4]
    item = follow(MOTION, Item((0.2, 0.0, 0.06)), path(tips, grips), DT)
    assert not item.held
    np.testing.assert_allclose(item.position, [0.22, 0.05, HALF + 0.002], atol=1e-6)
    assert item.velocity == (0.0, 0.0)


def test_a_shut_hand_beside_a_cube_takes_nothing_along():
    begin, end = [0.2, 0.0, 0.013], [0.23, 0.04, 0.06]
    joints = path(along(begin, end, 6), [0.02] * 6)
    item = follow(MOTION, Item((0.2, 0.0, HALF)), joints, DT)
    assert not item.held
    np.testing.assert_allclose(item.position, [0.2, 0.0, HALF], atol=1e-9)


def test_the_bowl_stands_still_while_the_cube_goes():
    task = make_task("pick_place")
    begin, end = [0.2, 0.0, 0.013], [0.23, 0.04, 0.06]
    joints = path(along(begin, end, 6), [WIDTH] * 6)
    seen = Targets(np.array([begin, [0.25, -0.1, 0.0]]), np.zeros((2, 3)), np.array([True, True]))
    found = task.foresee(seen, joints, DT)
    np.testing.assert_allclose(found.position, [end, [0.25, -0.1, 0.0]], atol=1e-6)
    np.testing.assert_array_equal(seen.position[0], begin)  # what was seen is left alone
