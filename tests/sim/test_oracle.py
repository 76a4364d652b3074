"""The oracle against the arm itself, which is run through the same actions afterwards."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from controller.loop_types import TickResult
from controller.types import Command, Float, Observation
from sim.delay import Fixed, Whole
from sim.env import SimRobot
from sim.oracle import OracleForecaster
from sim.robots import so101
from sim.rollout import CONTROL_PERIOD_NS, loop_config, run_episode
from sim.tasks import make_task

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def robot():
    robot = SimRobot(make_task("whack"))
    robot.render = lambda camera: np.zeros((96, 96, 3), np.uint8)  # nobody looks
    return robot


def wander(rng: np.random.Generator, begin: Float, count: int) -> Float:
    """Actions that go to and fro from a position, within the joints' limits."""
    steps = rng.uniform(-0.12, 0.12, (count, 6)) * [1, 1, 1, 1, 1, 2]
    path = begin + np.cumsum(steps, axis=0)
    lower, upper = so101.to_normalised(np.array([so101.LOWER, so101.UPPER]))
    return np.clip(path, lower, upper).astype(np.float32)


def execute(robot: SimRobot, set_point: Float, actions: Float, now_ns: int) -> tuple[Float, int]:
    """The arm's state once straight lines to each action were driven, and the time then."""
    ticks = robot.spec.period_ns // CONTROL_PERIOD_NS
    for action in actions:
        for tick in range(1, ticks + 1):
            point = set_point + (action - set_point) * np.float32(tick / ticks)
            robot.write(Command(now_ns, point.astype(np.float32)))
            now_ns += CONTROL_PERIOD_NS
            robot.advance_to(now_ns)
        set_point = action
    return robot.read().state, now_ns


@pytest.mark.parametrize("count", [0, 1, 3, 8])
@pytest.mark.parametrize("seed", range(3))
def test_it_tells_what_the_arm_then_does(robot, seed, count):
    robot.reset(seed)
    rng = np.random.default_rng(seed)
    oracle = OracleForecaster(robot, CONTROL_PERIOD_NS)
    actions = wander(rng, robot.position, 10 + count)
    begin = robot.position.astype(np.float32)
    _, now_ns = execute(robot, begin, actions[:10], 0)  # it moves, and lags its command
    state, before = robot.read().state, robot.data.qpos.copy()
    forecast = oracle.forecast(state, actions[9], actions[10:])
    assert (forecast.shape, forecast.dtype) == ((12,), np.float32)
    np.testing.assert_array_equal(robot.data.qpos, before)  # nothing has happened yet
    came, _ = execute(robot, actions[9], actions[10:], now_ns)
    np.testing.assert_allclose(forecast, came, atol=TOLERANCE, rtol=0)
    if count:
        assert np.abs(came - state).max() > 0.01


@pytest.mark.parametrize(("execute_steps", "delay"), [(4, 4), (4, 1), (8, 8)])
def test_in_the_loop_it_is_never_wrong(robot, execute_steps, delay):
    """Where one reply is under way at a time; else the robot does not know what comes."""
    oracle = OracleForecaster(robot, CONTROL_PERIOD_NS)
    rng = np.random.default_rng(0)
    errors: list[Float] = []

    def stream(asked: Observation) -> list[Whole]:
        assert asked.forecast is not None
        first = asked.step + asked.delay
        return [Whole(first, first + np.arange(16), wander(rng, asked.forecast[:6], 16), 0)]

    def on_tick(result: TickResult) -> None:
        if result.forecast_error is not None:
            errors.append(result.forecast_error)

    config = loop_config(execute_steps, strategy="oracle", delay_steps=delay)
    latency = Fixed(delay * robot.spec.period_ns)
    episode = run_episode(
        robot, stream, 1, latency=latency, config=config, forecaster=oracle, on_tick=on_tick
    )
    assert len(errors) >= (episode.steps - delay) // execute_steps
    assert np.abs(errors).max() < TOLERANCE
    # Whoever takes the last command for the state is far off.
    errors.clear()
    other = replace(config, strategy="last_command")
    run_episode(robot, stream, 1, latency=latency, config=other, on_tick=on_tick)
    assert np.abs(errors).max() > 0.01
