"""The tasks: sane scores, same seed same episode, prompts honoured, experts that succeed."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
from numpy.typing import NDArray

from controller.errors import ErrorCode, OnsetError
from controller.types import Command
from sim.env import SimRobot
from sim.experts.grasp import HALF
from sim.robots import so101
from sim.task import Targets, Task
from sim.tasks import TASKS, make_task, task_of

GRASPING = ("conveyor", "pick_place")
HORIZON, DT, TICKS = 32, 0.04, 4
PERIOD_NS = round(DT * 1e9)

# The robot and the number of steps executed so far, to the next chunk, shape (n, 6).
Agent = Callable[[SimRobot, int], NDArray]


@dataclass
class Episode:
    success: bool
    score: float
    steps: int
    qpos: list[NDArray] = field(default_factory=list)
    commands: list[NDArray] = field(default_factory=list)


@pytest.fixture(scope="module")
def robots() -> dict[str, SimRobot]:
    return {name: SimRobot(make_task(name)) for name in TASKS}


def expert(execute: int) -> Agent:
    """Plans anew every so many steps."""
    return lambda robot, _: robot.task.plan(robot.position, robot.velocity, HORIZON, DT)[:execute]


def zero(robot: SimRobot, _: int) -> NDArray:
    """Stays where it is."""
    return so101.to_normalised(robot.data.ctrl[:6])[None]


def random_walk(rng: np.random.Generator) -> Agent:
    return lambda robot, step: zero(robot, step) + rng.normal(0, 0.15, (1, 6))


def wandering(rng: np.random.Generator, size: float = 0.03, correlation: float = 8.0) -> Agent:
    """The expert, with an Ornstein-Uhlenbeck offset on what is executed."""
    offset, keep = np.zeros(6), np.exp(-1 / correlation)

    def act(robot: SimRobot, step: int) -> NDArray:
        chunk = expert(4)(robot, step)
        for action in chunk:
            offset[:] = keep * offset + np.sqrt(1 - keep**2) * rng.normal(0, size, 6)
            # As in the collection of data: the gripper is disturbed less.
            action += offset * [1, 1, 1, 1, 0.5, 0.3]
        return chunk

    return act


def play(
    robot: SimRobot,
    seed: int,
    agent: Agent,
    *,
    prompt: str | None = None,
    disturb: Callable[[SimRobot, int], None] = lambda *_: None,
) -> Episode:
    robot.reset(seed, prompt)
    task, spec = robot.task, robot.spec
    now, step, chunk = robot.position, 0, np.empty((0, 6))
    episode = Episode(False, 0.0, 0)
    while step < task.steps and not task.done():
        disturb(robot, step)
        if not len(chunk):
            chunk = agent(robot, step)
        action, chunk = np.clip(chunk[0], spec.action_lower, spec.action_upper), chunk[1:]
        for tick in range(1, TICKS + 1):
            robot.write(Command(0, now + (action - now) * tick / TICKS))
            robot.advance_to(step * PERIOD_NS + tick * PERIOD_NS // TICKS)
        now, step = action, step + 1
        episode.qpos.append(robot.data.qpos.copy())
        episode.commands.append(action)
    episode.success, episode.score, episode.steps = task.success(), task.score(), step
    return episode


def success_rate(robot: SimRobot, seeds: int, agent: Agent) -> float:
    return float(np.mean([play(robot, seed, agent).success for seed in range(seeds)]))


@pytest.mark.parametrize("name", TASKS)
def test_zero_agent_scores_nothing(robots, name):
    episodes = [play(robots[name], seed, zero) for seed in range(30)]
    assert np.mean([e.score for e in episodes]) <= 0.02
    assert not any(e.success for e in episodes)


@pytest.mark.parametrize("name", TASKS)
def test_random_agent_scores_near_nothing(robots, name):
    agent = random_walk(np.random.default_rng(0))
    episodes = [play(robots[name], seed, agent) for seed in range(30)]
    assert np.mean([e.score for e in episodes]) <= 0.1
    assert np.mean([e.success for e in episodes]) <= 0.1


@pytest.mark.parametrize("name", TASKS)
def test_expert_succeeds(robots, name):
    assert success_rate(robots[name], 200, expert(4)) >= 0.95


@pytest.mark.parametrize("name", GRASPING)
@pytest.mark.parametrize("execute", [1, 8])
def test_grasp_expert_needs_no_particular_replanning_rate(robots, name, execute):
    assert success_rate(robots[name], 30, expert(execute)) >= 0.95


@pytest.mark.parametrize("name", GRASPING)
def test_grasp_expert_recovers_from_noise(robots, name):
    agent = wandering(np.random.default_rng(0))
    assert success_rate(robots[name], 60, agent) >= 0.9


@pytest.mark.parametrize("name", GRASPING)
def test_grasp_expert_recovers_from_a_dropped_cube(robots, name):
    """It has no phase to lose: a cube torn from the jaws is fetched again."""
    robot, torn = robots[name], []

    def tear(robot: SimRobot, step: int) -> None:
        position = robot.task.targets().position[0]
        held = np.linalg.norm(position - robot.tip) < 0.01 and position[2] > HALF + 0.015
        if held and len(torn) <= robot_seed[0]:
            torn.append(step)
            colour = robot.prompt.split()[2]
            cube = robot.data.joint(f"cube_{colour}")
            cube.qpos[0] -= 0.03 if position[0] > 0.2 else -0.03
            cube.qvel = 0.0

    robot_seed, wins = [0], []
    for robot_seed[0] in range(10):
        wins.append(play(robot, robot_seed[0], expert(4), disturb=tear).success)
    assert len(torn) == len(wins)
    assert np.mean(wins) >= 0.9


def test_grip_holds_without_slip_or_jitter(robots):
    robot = robots["pick_place"]

    def lifted(robot: SimRobot) -> bool:
        return robot.task.targets().position[0, 2] > 0.045

    robot.reset(0)
    step = 0
    while not lifted(robot) and step < 100:
        action = robot.task.plan(robot.position, robot.velocity, 1, DT)[0]
        robot.write(Command(0, action))
        step += 1
        robot.advance_to(step * PERIOD_NS)
    robot.advance_to((step + 10) * PERIOD_NS)  # the arm comes to rest
    before = robot.task.targets().position[0] - robot.tip
    robot.advance_to((step + 85) * PERIOD_NS)
    after = robot.task.targets()
    assert lifted(robot)
    assert np.abs(after.position[0] - robot.tip - before).max() < 1e-3
    assert np.abs(after.velocity[0]).max() < 0.02


@pytest.mark.parametrize("name", TASKS)
def test_same_seed_same_episode(robots, name):
    robot = robots[name]
    first = play(robot, 3, expert(4))
    play(robot, 4, expert(4))  # nothing of another episode may remain
    again = play(robot, 3, expert(4))
    fresh = play(SimRobot(make_task(name)), 3, expert(4))
    np.testing.assert_array_equal(first.qpos, again.qpos)
    np.testing.assert_array_equal(first.qpos, fresh.qpos)


@pytest.mark.parametrize("name", TASKS)
def test_prompts(robots, name):
    robot = robots[name]
    task = robot.task
    for prompt in task.prompts:
        assert robot.reset(0, prompt) == prompt
        assert task.prompt == prompt
        swapped = task.swapped_prompt()
        assert swapped in task.prompts
        assert swapped != prompt
    drawn = {robot.reset(seed) for seed in range(60)}
    assert drawn == set(task.prompts)


@pytest.mark.parametrize("name", TASKS)
def test_prompt_decides_what_counts(robots, name):
    """The expert does what it is asked for, also where the seed would have drawn another."""
    robot = robots[name]
    wins = [play(robot, 5, expert(4), prompt=p).success for p in robot.task.prompts]
    assert np.mean(wins) >= 0.75


@pytest.mark.parametrize("name", TASKS)
def test_unknown_prompt_is_refused(robots, name):
    with pytest.raises(OnsetError) as refusal:
        robots[name].reset(0, "make coffee")
    assert refusal.value.code == ErrorCode.UNKNOWN_PROMPT
    assert all(prompt in str(refusal.value) for prompt in robots[name].task.prompts)


def test_prompts_tell_the_task():
    assert [task_of(make_task(name).prompts) for name in TASKS] == list(TASKS)
    with pytest.raises(OnsetError, match="a task's"):
        task_of(("sing",))


def test_unknown_task_and_option_are_refused():
    with pytest.raises(OnsetError, match="pick_place"):
        make_task("juggle")
    with pytest.raises(OnsetError, match="speed_of_light"):
        make_task("whack", speed_of_light=1.0)


@pytest.mark.parametrize("name", TASKS)
def test_plan_is_within_limits_and_steady(robots, name):
    robot = robots[name]
    spec = robot.spec
    for seed in range(5):
        robot.reset(seed)
        rng = np.random.default_rng(seed)
        for _ in range(20):
            # Any pose, moving in any way.
            position = rng.uniform(spec.action_lower, spec.action_upper)
            velocity = rng.normal(0, 0.5, 6)
            plan = robot.task.plan(position, velocity, HORIZON, DT)
            assert plan.shape == (HORIZON, 6)
            assert np.isfinite(plan).all()
            assert (plan >= spec.action_lower - 1e-6).all()
            assert (plan <= spec.action_upper + 1e-6).all()
            again = robot.task.plan(position, velocity, HORIZON, DT)
            np.testing.assert_array_equal(plan, again)  # planning changes nothing


def scenes(robot: SimRobot, count: int) -> tuple[list[Targets], NDArray, NDArray]:
    """Targets, joints and rates at moments out of episodes. Shape (count, 6) each."""
    targets, position, velocity = [], [], []

    def look(robot: SimRobot, step: int) -> None:
        if step % 7 == 3 and len(targets) < count:
            targets.append(robot.task.targets())
            position.append(robot.position)
            velocity.append(robot.velocity)

    seed = 0
    while len(targets) < count:
        play(robot, seed, expert(4), disturb=look)
        seed += 1
    return targets, np.array(position), np.array(velocity)


def stacked(targets: list[Targets]) -> Targets:
    return Targets(
        np.stack([t.position for t in targets]),
        np.stack([t.velocity for t in targets]),
        np.stack([t.visible for t in targets]),
    )


@pytest.mark.parametrize("name", TASKS)
def test_a_plan_is_the_one_for_the_targets_as_they_are(robots, name):
    robot = robots[name]
    for seed in range(3):
        robot.reset(seed)
        robot.advance_to(400_000_000)
        arm = (robot.position, robot.velocity, HORIZON, DT)
        plan = robot.task.plan(*arm)
        targets = robot.task.targets()
        np.testing.assert_array_equal(robot.task.plan_for(targets, *arm), plan)
        # It looks at nothing else: another scene changes nothing.
        robot.reset(seed + 50, robot.prompt)
        np.testing.assert_array_equal(robot.task.plan_for(targets, *arm), plan)


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if task.batched])
def test_many_scenes_at_once_are_planned_as_one_by_one(robots, name):
    robot = robots[name]
    targets, position, velocity = scenes(robot, 24)
    if name == "whack":
        assert len({bool(t.visible[0]) for t in targets}) == 2
    many = stacked(targets)
    together = robot.task.plan_for(many, position, velocity, HORIZON, DT)
    alone = [
        robot.task.plan_for(t, p, v, HORIZON, DT)
        for t, p, v in zip(targets, position, velocity, strict=True)
    ]
    assert together.shape == (24, HORIZON, 6)
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-9)
    # In any arrangement.
    grid = Targets(*(a.reshape(4, 6, *a.shape[1:]) for a in vars(many).values()))
    arm = (a.reshape(4, 6, 6) for a in (position, velocity))
    planned = robot.task.plan_for(grid, *arm, HORIZON, DT)
    np.testing.assert_allclose(planned, together.reshape(4, 6, HORIZON, 6), rtol=0, atol=1e-9)


def test_the_tasks_that_plan_many_scenes_at_once_say_so():
    assert {name for name, task in TASKS.items() if task.batched} == {"whack", "intercept"}


def test_later_targets_have_moved_on_with_their_velocity():
    rng = np.random.default_rng(0)
    targets = Targets(rng.normal(size=(5, 2, 3)), rng.normal(size=(5, 2, 3)), np.ones((5, 2), bool))
    later = targets.later(0.2)
    np.testing.assert_allclose(later.position, targets.position + 0.2 * targets.velocity)
    assert later.velocity is targets.velocity
    assert later.visible is targets.visible
    seconds = np.array([0.0, 0.1, 0.2, 0.3, 0.4])
    each = targets.later(seconds)
    for i in range(5):
        one = Targets(targets.position[i], targets.velocity[i], targets.visible[i])
        np.testing.assert_allclose(each.position[i], one.later(seconds[i]).position)
    np.testing.assert_allclose(later.later(-0.2).position, targets.position)


def test_later_is_where_the_ball_is_if_nothing_happens():
    robot = SimRobot(make_task("intercept", kick_probability=0.0))
    robot.reset(0)
    before = robot.task.targets()
    robot.advance_to(600_000_000)
    np.testing.assert_allclose(before.later(0.6).position, robot.task.targets().position, atol=1e-9)


@pytest.mark.parametrize("name", GRASPING)
def test_grasp_expert_is_smooth(robots, name):
    """Between steps the arm's set-point moves no faster than the arm may."""
    commands = np.array(play(robots[name], 1, expert(8)).commands)
    rates = np.abs(np.diff(commands[:, :5], axis=0)) / DT
    assert rates.max() < so101.MAX_VELOCITY


@pytest.mark.parametrize("name", GRASPING)
def test_targets_begin_inside_the_front_picture(robots, name):
    robot = robots[name]
    for seed in range(50):
        robot.reset(seed)
        targets = robot.task.targets()
        assert targets.position.shape == (robot.task.targets_count, 3)
        assert robot.project("front", targets.position)[1].all()


def test_pick_place_tells_right_from_wrong_places(robots):
    robot = robots["pick_place"]
    robot.reset(2)
    task = robot.task
    other = task.swapped_prompt().split()
    named = robot.prompt.split()

    def put(colour: str, bowl: str) -> None:
        body = robot.model.body(f"bowl_{bowl}").mocapid[0]
        place = robot.data.mocap_pos[body]
        robot.data.joint(f"cube_{colour}").qpos = [*place[:2], HALF + 0.003, 1, 0, 0, 0]
        robot.advance_to(round(robot.data.time * 1e9) + 500_000_000)

    assert not task.wrong_place()
    put(other[2], other[6])
    assert task.wrong_place()
    assert task.swapped_success()
    assert not task.success()
    put(named[2], named[6])
    assert task.success()
    assert not task.swapped_success()


def test_conveyor_belt_carries_the_cubes(robots):
    task = make_task("conveyor", change_probability=0.0)
    robot = SimRobot(task)
    robot.reset(0)
    before = task.targets()
    robot.advance_to(1_000_000_000)
    after = task.targets()
    np.testing.assert_allclose(after.velocity, before.velocity, atol=2e-3)
    moved = after.position - before.position
    np.testing.assert_allclose(moved, before.velocity, atol=2e-3)
    assert 0.04 <= abs(after.velocity[0, 1]) <= 0.072


def test_event_is_when_the_belt_changes_its_speed():
    task: Task = make_task("conveyor", change_probability=1.0, speed_min=0.02, speed_max=0.03)
    robot = SimRobot(task)
    robot.reset(1)
    assert task.event_ns() == 0
    robot.advance_to(2_600_000_000)
    assert 300_000_000 <= task.event_ns() <= 2_510_000_000
