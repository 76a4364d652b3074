"""Meta-World's tasks as robots: its scenes, experts and success behind our controller."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.errors import ErrorCode, OnsetError
from controller.limits import MotionLimits
from controller.types import Command
from sim.delay import Fixed, whole
from sim.metaworld import hand
from sim.metaworld.collect import HORIZON, Stretches, collect_episode
from sim.metaworld.robot import MetaWorldRobot, MetaWorldTask, prompt_of
from sim.metaworld.world import MAX_TICKS, available, check_tasks
from sim.rollout import expert, run_episode

TASKS = ("reach-v3", "push-v3", "button-press-topdown-v3", "drawer-close-v3", "door-open-v3")
_robots: dict[str, MetaWorldRobot] = {}


def robot_of(name: str) -> MetaWorldRobot:
    if name not in _robots:
        _robots[name] = MetaWorldRobot(MetaWorldTask(name))
    return _robots[name]


@pytest.fixture
def reach() -> MetaWorldRobot:
    return robot_of("reach-v3")


def still(robot: MetaWorldRobot):
    return whole(lambda o: np.tile(o.state[:4], (HORIZON, 1)))


def test_all_of_meta_world_is_there_and_an_error_lists_it() -> None:
    names = available()
    assert len(names) == 50
    assert set(TASKS) <= set(names)
    with pytest.raises(OnsetError, match=r"tasks: given \['fly-v3'\]; allowed: .*'reach-v3'"):
        check_tasks(["reach-v3", "fly-v3"])
    with pytest.raises(OnsetError, match="tasks: given none; allowed"):
        check_tasks([])


def test_without_the_package_the_error_says_how_to_get_it(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "metaworld.env_dict", None)
    with pytest.raises(OnsetError, match="pip install --no-deps metaworld") as caught:
        available()
    assert caught.value.code is ErrorCode.UNAVAILABLE


@pytest.mark.parametrize("name", TASKS)
def test_the_expert_succeeds_through_the_control_loop_and_nobody_else_does(name: str) -> None:
    robot = robot_of(name)
    episodes = [run_episode(robot, whole(expert(robot, HORIZON)), seed) for seed in range(3)]
    assert [e.success for e in episodes] == [True] * 3
    assert all(e.steps < robot.task.steps for e in episodes)  # success ends an episode
    idle = run_episode(robot, still(robot), 0)
    assert (idle.success, idle.steps) == (False, robot.task.steps)
    assert robot.world.ticks == MAX_TICKS  # as long as Meta-World's episodes
    assert idle.score < episodes[0].score


def test_a_seed_is_an_episode(reach: MetaWorldRobot) -> None:
    def begin(seed: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        reach.reset(seed)
        return reach.task.targets().position, dict(reach.read().frames)

    places, frames = begin(4)
    other_places, other_frames = begin(5)
    again, same = begin(4)
    np.testing.assert_array_equal(places, again)
    assert not np.allclose(places, other_places)
    for name in hand.CAMERAS:
        np.testing.assert_array_equal(frames[name], same[name])
        assert (frames[name] != other_frames[name]).any()


def test_a_late_reply_comes_late_and_the_episode_is_the_same_again(reach: MetaWorldRobot) -> None:
    stream, late = whole(expert(reach, HORIZON)), Fixed(3 * hand.PERIOD_NS)
    first = run_episode(reach, stream, 2, latency=late)
    assert first.counters.starved == 3
    assert first.success
    assert first == run_episode(reach, stream, 2, latency=late)


def test_an_observation_is_pictures_and_the_hand_alone(reach: MetaWorldRobot) -> None:
    reach.reset(0)
    reading = reach.read()
    assert reach.spec.state_names == (
        *("hand_x.pos", "hand_y.pos", "hand_z.pos", "gripper.pos"),
        *("hand_x.vel", "hand_y.vel", "hand_z.vel", "gripper.vel"),
    )
    np.testing.assert_allclose(reading.state[:4], reach.position, rtol=1e-6)
    assert {n: (f.shape, f.dtype) for n, f in reading.frames.items()} == dict.fromkeys(
        hand.CAMERAS, ((64, 64, 3), np.uint8)
    )


def test_the_goal_is_where_the_picture_shows_it(reach: MetaWorldRobot) -> None:
    for seed in range(4):
        reach.reset(seed)
        goal = reach.task.targets().position[1:]
        frame = reach.render("topview").astype(int)
        uv, inside = reach.project("topview", goal)
        assert inside.all()
        x, y = (uv[0] * hand.IMAGE_SIZE).astype(int)
        red = frame[..., 0] - frame[..., 1:].max(axis=2)
        around = red[y - 1 : y + 2, x - 1 : x + 2]
        assert around.max() > 200  # a pure red that the arm has not


def test_velocity_is_the_rate_of_position(reach: MetaWorldRobot) -> None:
    reach.reset(1)
    before, rates = reach.position, []
    for tick in range(1, 9):
        reach.write(Command(0, before + [0.01 * tick, 0, 0, -0.1 * tick]))
        reach.advance_to(tick * hand.TICK_NS)
        rates.append((reach.position, reach.velocity))
    (last, _), (now, velocity) = rates[-2:]
    measured = (now - last) / (hand.TICK_NS * 1e-9)
    np.testing.assert_allclose(velocity[:3], measured[:3], atol=0.15)
    assert velocity[0] > 0.3
    assert velocity[3] == pytest.approx(measured[3])


def test_a_far_set_point_is_approached_as_fast_as_meta_world_allows(reach: MetaWorldRobot) -> None:
    reach.reset(0)
    start = reach.world.point
    reach.write(Command(0, np.append(start + [0.2, -0.05, 0.0], 0.5)))
    reach.advance_to(4 * hand.TICK_NS)
    np.testing.assert_allclose(reach.world.point - start, [0.04, -0.04, 0.0], atol=1e-12)


@given(
    st.lists(st.floats(-1, 1), min_size=4, max_size=4),
    st.lists(st.floats(-0.5, 1), min_size=3, max_size=3),
)
def test_a_set_point_is_the_action_that_leads_there(action: list[float], point: list[float]):
    moved = np.array(point) + hand.STEP_M * np.array(action[:3])
    back = hand.to_action(hand.to_set_point(moved, action[3]), np.array(point))
    np.testing.assert_allclose(back, action, atol=1e-9)


def test_a_plan_is_what_the_expert_then_does_and_leaves_no_trace() -> None:
    robot = robot_of("push-v3")
    world = robot.world
    robot.reset(3)
    plan = world.plan(HORIZON)
    np.testing.assert_array_equal(plan, world.plan(HORIZON))
    planned = world.data.qpos.copy()
    robot.reset(3)
    np.testing.assert_array_equal(planned, world.data.qpos)
    path = []
    for _ in range(HORIZON):
        action = np.zeros(4)
        for _ in range(hand.TICKS):
            action = world.expert_action()
            world.step(action)
        path.append(hand.to_set_point(world.point, action[3]))
    # The puck is gripped meanwhile; contacts grow what the last digits differ by.
    np.testing.assert_allclose(plan[:10], path[:10], atol=1e-6)
    np.testing.assert_allclose(plan, path, atol=5e-3)


def test_it_moves_within_limits(reach: MetaWorldRobot) -> None:
    spec, lots = reach.spec, np.full(4, 1e3)
    velocity, acceleration = np.array([0.4, 0.4, 0.4, 5.0]), np.array([4.0, 4.0, 4.0, 50.0])
    limits = MotionLimits(
        spec.action_names, spec.action_lower, spec.action_upper, velocity, acceleration, lots
    )
    points: list[np.ndarray] = []
    episode = run_episode(
        reach,
        whole(expert(reach, HORIZON)),
        1,
        limits=limits,
        on_tick=lambda tick: points.append(tick.set_point.astype(np.float64)),
    )
    assert episode.success
    speed = np.diff(points, axis=0) / (hand.TICK_NS * 1e-9)
    assert (np.abs(speed).max(axis=0) <= velocity * 1.001 + 1e-4).all()
    assert np.abs(speed[:, :3]).max() > 0.2


def test_another_instruction_is_refused(reach: MetaWorldRobot) -> None:
    assert prompt_of("button-press-topdown-v3") == "button press topdown"
    assert reach.reset(0, "reach") == "reach"
    with pytest.raises(OnsetError, match=r"prompt: given 'push'; allowed: \['reach'\]"):
        reach.reset(0, "push")


@pytest.mark.parametrize("who", ["pushes", "policy"])
def test_collected_chunks_are_the_experts_from_wherever_it_was_brought(who: str) -> None:
    robot = robot_of("door-open-v3")
    stretches = Stretches(expert=(4, 8), clean=0.0)

    def infer(observation):
        assert observation.prompt == "door open"
        return observation.state[:4] + np.linspace(0.02, 0.3, HORIZON)[:, None] * [1, -1, 0, 0]

    found = [
        collect_episode(robot, seed, stretches=stretches, infer=infer if who == "policy" else None)
        for seed in range(3)
    ]
    parts = [rows for rows, _ in found for rows in rows]
    assert len(parts) > 6
    for rows in parts:
        count = len(rows["state"])
        assert 1 <= count <= 8
        assert rows["chunk"].shape == (count, HORIZON, 4)
        assert rows["frames_topview"].shape == (count, 64, 64, 3)
        assert rows["uv"].shape == (count, 2, 2, 2)
        for i in range(count):  # what was done is what was planned
            np.testing.assert_array_equal(rows["chunk"][i][: count - i], rows["action"][i:])
    again = collect_episode(robot, 0, stretches=stretches, infer=infer if who == "policy" else None)
    np.testing.assert_array_equal(again[0][0]["state"], found[0][0][0]["state"])


def test_an_undisturbed_episode_is_one_stretch() -> None:
    parts, won = collect_episode(robot_of("reach-v3"), 7, stretches=Stretches(clean=1.0))
    assert won
    assert len(parts) == 1
