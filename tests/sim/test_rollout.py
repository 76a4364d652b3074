"""Closed loop in virtual time: deterministic, and delay arrives where it should."""

from __future__ import annotations

import numpy as np
import pytest

from controller.errors import OnsetError
from controller.loop_types import TickCode, TickResult
from controller.types import Observation
from sim.collect import HORIZON, Noise, collect_episode
from sim.delay import Fixed, Stream, Whole, whole
from sim.env import SimRobot
from sim.metrics import mean_interval, sign_test, wilson
from sim.oracle import OracleForecaster
from sim.rollout import expert, loop_config, run_episode
from sim.tasks import make_task

PERIOD = 40_000_000


@pytest.fixture(scope="module")
def robot() -> SimRobot:
    return SimRobot(make_task("intercept"))


def test_same_seed_same_episode(robot: SimRobot) -> None:
    first = run_episode(robot, whole(expert(robot, 32)), 5, latency=Fixed(2 * PERIOD))
    path = robot.data.qpos.copy()
    second = run_episode(robot, whole(expert(robot, 32)), 5, latency=Fixed(2 * PERIOD))
    assert first == second
    np.testing.assert_array_equal(path, robot.data.qpos)


def test_each_step_is_executed_once_and_none_is_starved_without_delay(robot: SimRobot) -> None:
    episode = run_episode(robot, whole(expert(robot, 32)), 1)
    counters = episode.counters
    assert counters.starved == counters.skipped == counters.late == 0
    assert counters.steps == episode.steps
    assert counters.observations == -(-episode.steps // 4)


def test_a_delay_starves_its_first_steps_and_makes_its_actions_late(robot: SimRobot) -> None:
    episode = run_episode(robot, whole(expert(robot, 32)), 1, latency=Fixed(5 * PERIOD))
    assert episode.counters.starved == 5
    assert episode.counters.amended == 0  # whole steps: each answer is there at a boundary
    # Every chunk that arrived has 5 actions whose step was past.
    assert episode.counters.late == 5 * episode.counters.slices


def test_an_answer_within_a_step_starves_the_first_one_alone_and_is_never_late(
    robot: SimRobot,
) -> None:
    stream = whole(expert(robot, 32))
    episode = run_episode(robot, stream, 1, latency=Fixed(28_000_000), config=loop_config(1))
    counters = episode.counters
    assert (counters.starved, counters.late) == (1, 0)
    assert counters.amended == counters.slices


def test_a_rollout_takes_the_loops_settings_and_tells_of_every_tick(robot: SimRobot) -> None:
    ticks: list[TickResult] = []
    config = loop_config(5, strategy="sync")
    episode = run_episode(
        robot,
        whole(expert(robot, 32)),
        2,
        latency=Fixed(2 * PERIOD),
        config=config,
        on_tick=ticks.append,
    )
    assert len(ticks) == episode.counters.ticks == 4 * episode.steps
    assert [t.step for t in ticks[::4]] == list(range(episode.steps))
    # Two steps of rest, then K of the chunk.
    rests = [t.code is TickCode.STARVED for t in ticks[::4]]
    assert rests == [step % 7 < 2 for step in range(episode.steps)]
    assert episode.counters.observations == -(-episode.steps // 7)


def late_expert(robot: SimRobot, delay: int) -> Stream:
    """Plans from where the robot is said to be once its chunk begins."""

    def stream(observation: Observation) -> list[Whole]:
        assert observation.forecast is not None
        position, velocity = np.split(observation.forecast.astype(np.float64), 2)
        targets = robot.task.targets().later(delay * PERIOD * 1e-9)
        chunk = robot.task.plan_for(targets, position, velocity, 32, PERIOD * 1e-9)
        steps = observation.step + delay + np.arange(32)
        return [Whole(observation.step + delay, steps, chunk.astype(np.float32), 0)]

    return stream


def test_a_servo_model_forecasts_better_than_the_last_command_and_the_truth_exactly(
    robot: SimRobot,
) -> None:
    delay, size = 3, {}
    for strategy in ("last_command", "forecast", "oracle"):
        errors: list[np.ndarray] = []

        def note(result: TickResult, errors=errors) -> None:
            if result.forecast_error is not None:
                errors.append(np.abs(result.forecast_error[:6]))

        config = loop_config(4, strategy=strategy, delay_steps=delay)
        truth = OracleForecaster(robot, config.control_period_ns)
        for seed in range(4):
            episode = run_episode(
                robot,
                late_expert(robot, delay),
                seed,
                latency=Fixed(delay * PERIOD),
                config=config,
                forecaster=truth if strategy == "oracle" else None,
                on_tick=note,
            )
            assert (episode.counters.late, episode.counters.starved) == (0, delay)
        size[strategy] = np.mean(errors)
    assert size["oracle"] < 1e-6
    assert 1e-6 < size["forecast"] < 0.2 * size["last_command"]


def test_collected_frames_show_the_instant_of_their_labels(robot: SimRobot) -> None:
    """The named ball's colour is found where the projection says it is."""
    rows, _ = collect_episode(robot, 11, noise=Noise(wander=0.0, burst_size=0.0))
    colour = robot.prompt.split()[2]
    channel = {"red": (0,), "green": (1,), "blue": (2,), "yellow": (0, 1)}[colour]
    checked = 0
    for frame, uv, inside in zip(rows["frames_front"], rows["uv"], rows["inside"], strict=True):
        if not inside[0, 0]:
            continue
        x, y = (uv[0, 0] * frame.shape[0]).astype(int)
        pixel = frame[y, x].astype(int)
        others = [c for c in range(3) if c not in channel]
        if pixel.max() - pixel.min() < 60:  # hidden behind the gripper
            continue
        assert min(pixel[list(channel)]) > max(pixel[others]), (colour, pixel)
        checked += 1
    assert checked > 10


def test_noise_is_on_what_is_executed_and_never_on_the_label(robot: SimRobot) -> None:
    rows, _ = collect_episode(robot, 4, noise=Noise(), execute_steps=(1, 1))
    off = np.abs(rows["action"] - rows["chunk"][:, 0]).max()
    assert off > 0.01
    assert np.isfinite(rows["chunk"]).all()
    assert (rows["chunk"] >= robot.spec.action_lower - 1e-5).all()
    assert (rows["chunk"] <= robot.spec.action_upper + 1e-5).all()


def test_a_chunk_takes_over_after_its_delay_and_the_one_before_goes_on(robot: SimRobot) -> None:
    """Asked at 0, 4, 11 ..: the next one four steps after the last has taken over, three late."""
    made: list[int] = []

    def infer(observation: Observation) -> np.ndarray:
        made.append(observation.step)
        chunk = np.tile(robot.position.astype(np.float32), (HORIZON, 1))
        chunk[:, 4] = 0.01 * len(made) + 1e-4 * np.arange(HORIZON)
        return chunk

    calm = Noise(wander=0.0, burst_size=0.0)
    rows, _ = collect_episode(robot, 4, noise=calm, infer=infer, execute_steps=(4, 4), delay=3)
    assert made[:4] == [0, 4, 11, 18]
    for step in range(20):
        number = sum(step >= asked + 3 for asked in made[1:])
        expected = 0.01 * (number + 1) + 1e-4 * (step - made[number])
        assert rows["action"][step, 4] == pytest.approx(expected, abs=1e-6)


def test_a_chunk_that_would_end_before_the_next_one_is_refused(robot: SimRobot) -> None:
    with pytest.raises(OnsetError, match="delay"):
        collect_episode(robot, 4, noise=Noise(), execute_steps=(1, 6), delay=14)


def test_wilson_against_published_values() -> None:
    low, high = wilson(0, 10)
    assert low == 0.0
    assert high == pytest.approx(0.2775, abs=1e-3)
    low, high = wilson(8, 10)
    assert (low, high) == (pytest.approx(0.4902, abs=1e-3), pytest.approx(0.9433, abs=1e-3))


def test_sign_test_and_mean_interval_against_values_known_by_hand() -> None:
    assert sign_test(0, 0) == 1.0
    assert sign_test(3, 3) == 1.0
    assert sign_test(0, 5) == sign_test(5, 0) == pytest.approx(2 / 32)
    assert sign_test(2, 8) == pytest.approx(2 * (1 + 10 + 45) / 1024)
    mean, low, high = mean_interval([1.0, 3.0])
    assert (mean, low, high) == (2.0, pytest.approx(2 - 1.96), pytest.approx(2 + 1.96))
