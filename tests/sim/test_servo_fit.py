"""The bundled servo model against the simulated arm, and the fit against a servo that is known."""

from __future__ import annotations

import json

import numpy as np
import pytest

from controller.errors import OnsetError
from controller.forecast import LastCommand, ServoForecast, ServoModel, load_servo
from controller.types import Command
from scripts import fit_servo
from sim.env import SimRobot
from sim.robots import so101
from sim.tasks import make_task

AHEAD, STEPS, TICKS = 8, 150, 4


@pytest.fixture(scope="module")
def flight() -> tuple[np.ndarray, np.ndarray]:
    """States (STEPS+1, 12) and commands (STEPS+1, 6) of an arm that swings about its start.

    The command of a row is the one that stood when the state was measured.
    """
    robot = SimRobot(make_task("whack"))
    robot.reset(3)
    period, rng = robot.spec.period_ns, np.random.default_rng(3)
    home = robot.position
    t = np.arange(STEPS)[:, None] * period * 1e-9
    # Upwards only, and with jumps past what the servos can follow.
    swing = 0.25 * np.sin(2 * np.pi * rng.uniform(0.4, 0.9, 6) * t)
    jumps = np.repeat(rng.uniform(-0.15, 0.15, (STEPS // 10, 6)), 10, axis=0)
    actions = home + (swing + jumps) * [1, 1, 1, 1, 1, 0]
    actions[:, 1] = home[1] - np.abs(actions[:, 1] - home[1])
    actions[:, 5] = 0.5 + 0.4 * np.sin(4 * t[:, 0])
    actions = np.clip(actions, robot.spec.action_lower, robot.spec.action_upper)
    states, commands = [robot.read().state], [home]
    for step, action in enumerate(actions):
        for tick in range(1, TICKS + 1):
            robot.write(Command(0, commands[-1] + (action - commands[-1]) * tick / TICKS))
            robot.advance_to(step * period + tick * period // TICKS)
        states.append(robot.read().state)
        commands.append(action)
    robot.close()
    return np.array(states), np.array(commands, dtype=np.float32)


@pytest.mark.parametrize("ahead", [1, 4, AHEAD])
def test_the_forecast_errs_a_third_of_the_last_command_in_free_motion(flight, ahead):
    states, commands = flight
    spec = so101.spec()
    rms = []
    for forecaster in (ServoForecast(load_servo(spec.name), spec), LastCommand(spec)):
        errors = [
            forecaster.forecast(states[i], commands[i], commands[i + 1 : i + 1 + ahead])
            - states[i + ahead]
            for i in range(len(states) - ahead)
        ]
        rms.append(np.sqrt(np.square(errors).mean(axis=0)))
    assert (rms[1][:6] > 0.01).all()  # every joint moves
    np.testing.assert_array_less(rms[0][:6] / rms[1][:6], 1 / 3)
    np.testing.assert_array_less(rms[0][6:] / rms[1][6:], 1 / 2)  # velocities


KNOWN = ServoModel(
    so101.spec().action_names,
    tuple(d.unit for d in so101.spec().action),
    np.array([4000.0, 3000.0, 2500.0, 2000.0, 1500.0, 1700.0]),
    np.array([200.0, 200.0, 150.0, 150.0, 100.0, 100.0]),
    np.array([40.0, 50.0, 60.0, 70.0, 80.0, 60.0]),
    np.full(6, np.inf),
)


@pytest.fixture
def logs(tmp_path) -> list[str]:
    """Three logs of a servo that is known."""
    rng = np.random.default_rng(0)
    paths = []
    for number in range(3):
        episodes = []
        for _ in range(4):
            actions = np.cumsum(rng.normal(0, 0.1, (1, 60, 6)), axis=1)
            start = np.zeros((1, 6))
            x, v = KNOWN.roll(start, start, start, actions, 0.04)
            state = np.concatenate([x, v], axis=2)[0, :-1]
            episodes.append((np.concatenate([np.zeros((1, 12)), state]), actions[0]))
        path = tmp_path / f"log{number}.npz"
        states, actions = (np.concatenate(rows) for rows in zip(*episodes, strict=True))
        np.savez(path, state=states, action=actions, length=np.full(4, 60))
        paths.append(path)
    return paths


def test_a_servo_that_is_known_is_found_again(logs, tmp_path):
    out, results = tmp_path / "servo.json", tmp_path / "fit.json"
    fit_servo.main(fit_servo.Args(tuple(logs), out=out, json=results))
    found = ServoModel.load(out)
    for field in ("stiffness", "damping", "acceleration"):
        np.testing.assert_allclose(getattr(found, field), getattr(KNOWN, field), rtol=0.1)
    document = json.loads(results.read_text())
    assert document["figures"]["forecast_over_last_command_rms"] < 0.01
    assert {row["joint"] for row in document["rows"]} == set(KNOWN.names)


def test_bad_arguments_and_logs_are_refused(logs, tmp_path):
    with pytest.raises(OnsetError, match="so101-sim"):
        fit_servo.main(fit_servo.Args(tuple(logs), robot="so999"))
    with pytest.raises(OnsetError, match="3 or more"):
        fit_servo.main(fit_servo.Args(tuple(logs[:2])))
    np.savez(tmp_path / "bad.npz", state=np.zeros((3, 5)))
    with pytest.raises(OnsetError, match=r"logs\[bad.npz\]"):
        fit_servo.main(fit_servo.Args((tmp_path / "bad.npz", *logs)))
