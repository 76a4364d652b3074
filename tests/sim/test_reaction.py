"""Event-to-motion: equal until the event, and as much later as the answers are."""

from __future__ import annotations

import numpy as np
import pytest

from controller.types import Observation
from sim.delay import Fixed, Stream, whole
from sim.env import SimRobot
from sim.reaction import reaction_ns
from sim.rollout import expert, loop_config
from sim.tasks import TASKS, make_task

MS = 1_000_000
TICK = 10 * MS


@pytest.fixture(scope="module")
def robots() -> dict[str, SimRobot]:
    return {
        "whack": SimRobot(make_task("whack")),
        "intercept": SimRobot(make_task("intercept", kick_probability=1.0)),
        "conveyor": SimRobot(make_task("conveyor", change_probability=1.0)),
    }


def trace(robot: SimRobot, seed: int, *, muted: bool, ticks: int = 100):
    """What the arm would see without moving: targets per tick; and when the event was [ns]."""
    robot.task.muted = muted
    robot.reset(seed)
    seen = []
    for tick in range(ticks):
        robot.advance_to(tick * TICK)
        targets = robot.task.targets()
        row = np.concatenate([targets.position[0], targets.velocity[0], targets.visible])
        seen.append(row)
    robot.task.muted = False
    return np.array(seen), robot.task.event_ns()


@pytest.mark.parametrize("name", ["whack", "intercept"])
@pytest.mark.parametrize("seed", range(5))
def test_a_muted_event_changes_nothing_before_it_and_something_after(robots, name, seed) -> None:
    with_event, _ = trace(robots[name], seed, muted=False)
    without, event_ns = trace(robots[name], seed, muted=True)
    assert not event_ns
    apart = np.flatnonzero((with_event != without).any(axis=1))
    assert len(apart) > 0
    # Both are told of the event at the tick after which its first effect shows.
    robot = robots[name]
    robot.reset(seed)
    while not robot.task.event_ns():
        robot.advance_to(round(robot.data.time * 1e9) + TICK)
    assert 0 <= apart[0] * TICK - robot.task.event_ns() <= TICK


def test_a_muted_mole_keeps_every_later_draw(robots) -> None:
    """A still arm sees the same moles from the second appearance on, muted or not."""
    with_event, _ = trace(robots["whack"], 3, muted=False, ticks=400)
    without, _ = trace(robots["whack"], 3, muted=True, ticks=400)
    first_down = np.flatnonzero(np.diff(with_event[:, -1]) < 0)[0] + 1
    assert with_event[:first_down, -1].any()
    assert not without[:first_down, -1].any()
    np.testing.assert_array_equal(with_event[first_down:], without[first_down:])
    assert without[first_down:, -1].any()


def test_a_muted_mole_cannot_be_hit(robots) -> None:
    robot = robots["whack"]
    robot.task.muted = True
    robot.reset(0)
    task = robot.task
    while robot.data.time < 1.5:
        if any(mole.up for mole in task._moles[:1]):
            # Puts the tip where the mole would be.
            robot.data.site("tip").xpos[:] = [*task._moles[0].position, 0.045]
            task.advance(robot.model, robot.data, 0.0)
        robot.advance_to(round(robot.data.time * 1e9) + TICK)
        if task._moles[0].appearances > 1:
            break
    robot.task.muted = False
    assert task._moles[0].hits == 0


def measure(robot: SimRobot, seed: int, latency_ns: int, **options) -> int | None:
    stream: Stream = whole(expert(robot, 32))
    config, latency = loop_config(1), Fixed(latency_ns)
    return reaction_ns(robot, stream, seed, latency=latency, config=config, **options)


def startled(robot: SimRobot) -> Stream:
    """Rests, and turns aside once the event has happened: its reaction is known beforehand."""

    def infer(observation: Observation) -> np.ndarray:
        pose = np.zeros(6)
        pose[0] = 0.5 if robot.task.event_ns() else 0.0
        return np.tile(pose, (32, 1))

    return whole(infer)


@pytest.mark.parametrize("name", ["whack", "intercept", "conveyor"])
@pytest.mark.parametrize("execute_steps", [1, 3])
def test_the_reaction_is_the_wait_for_an_observation_the_latency_and_the_motion(
    robots, name, execute_steps
) -> None:
    robot, motions = robots[name], []
    for seed in range(6):
        robot.reset(seed)
        while not robot.task.event_ns():
            robot.advance_to(round(robot.data.time * 1e9) + TICK)
        wait_ns = -robot.task.event_ns() % (execute_steps * 40 * MS)
        for latency_ns in (0, 40 * MS, 120 * MS):
            reaction = reaction_ns(
                robot,
                startled(robot),
                seed,
                latency=Fixed(latency_ns),
                config=loop_config(execute_steps),
            )
            assert reaction is not None
            motions.append(reaction - wait_ns - latency_ns)
    # From the first set-point of the step to the threshold: the same in every episode.
    assert 0 < min(motions) <= 60 * MS
    assert max(motions) - min(motions) <= TICK


@pytest.mark.parametrize("delay", [0, 1, 3])
def test_what_is_committed_is_waited_for_also_when_the_answer_is_there_at_once(
    robots, delay
) -> None:
    robot, motions = robots["intercept"], []
    for seed in range(4):
        robot.reset(seed)
        while not robot.task.event_ns():
            robot.advance_to(round(robot.data.time * 1e9) + TICK)
        wait_ns = -robot.task.event_ns() % (3 * 40 * MS)
        config = loop_config(3, strategy="prefix", delay_steps=delay)
        reaction = reaction_ns(robot, startled(robot), seed, latency=Fixed(0), config=config)
        assert reaction is not None
        motions.append(reaction - wait_ns - delay * 40 * MS)
    assert 0 < min(motions) <= 60 * MS
    assert max(motions) - min(motions) <= TICK


def test_later_answers_make_the_experts_reaction_later(robots) -> None:
    for name, most in (("whack", 150), ("intercept", 250)):
        times = {
            latency: np.mean([measure(robots[name], seed, latency * MS) for seed in range(8)]) / MS
            for latency in (0, 40, 120)
        }
        assert 0 < times[0] < most
        # Its plan starts from where the arm then is, so that the motion is not quite the same.
        assert times[40] - times[0] == pytest.approx(40, abs=15)
        assert times[120] - times[0] == pytest.approx(120, abs=15)


def test_an_answer_within_the_step_is_acted_on_within_it(robots) -> None:
    """20 ms later, not a whole step later."""
    robot = robots["whack"]
    sooner = [measure(robot, seed, 0) for seed in range(8)]
    later = [measure(robot, seed, 20 * MS) for seed in range(8)]
    mean = np.mean(later) - np.mean(sooner)
    assert 10 * MS <= mean <= 25 * MS


def test_who_does_not_look_does_not_react(robots) -> None:
    robot = robots["intercept"]

    def still(observation: Observation) -> np.ndarray:
        return np.tile(observation.state[:6], (32, 1))

    assert reaction_ns(robot, whole(still), 1, latency=Fixed(0), config=loop_config(1)) is None
    assert measure(robot, 1, 0, window_ns=20 * MS) is None  # too soon for any


def test_without_an_event_there_is_no_reaction() -> None:
    robot = SimRobot(make_task("intercept", kick_probability=0.0))
    assert measure(robot, 1, 0) is None
    assert not robot.task.muted
    quiet = SimRobot(make_task("pick_place"))
    assert measure(quiet, 1, 0) is None


def test_every_task_can_be_muted() -> None:
    assert all(task.muted is False for task in TASKS.values())
