"""Rows of a policy that drives as it is served."""

from __future__ import annotations

import numpy as np
import pytest

from controller.robot_file import load_robot
from sim.collect import HORIZON
from sim.collect_served import collect_served
from sim.delay import Fixed, whole
from sim.env import SimRobot
from sim.rollout import expert, loop_config, run_episode
from sim.tasks import make_task


@pytest.fixture(scope="module")
def robot():
    robot = SimRobot(make_task("intercept"))
    yield robot
    robot.close()


def test_rows_are_those_of_the_episode_that_is_served(robot) -> None:
    delay = 3 * robot.spec.period_ns
    way = {
        "latency": Fixed(delay),
        "config": loop_config(4, strategy="naive"),
        "limits": load_robot("so101-sim").limits,
    }
    stream = whole(expert(robot, HORIZON))
    points: list = []

    def see(result) -> None:
        if result.boundary:
            points.append(result.set_point)
        points[-1] = result.set_point

    alone = run_episode(robot, stream, 7, on_tick=see, **way)
    rows, success = collect_served(robot, stream, 7, **way)
    assert success == alone.success
    assert np.array_equal(rows["action"], np.array(points, np.float32))
    assert len(rows["state"]) == alone.steps
    assert {len(values) for values in rows.values()} == {alone.steps}
    assert rows["frames_front"].dtype == np.uint8


def test_each_step_is_labelled_with_the_plan_from_its_own_state(robot) -> None:
    rows, _ = collect_served(
        robot, whole(expert(robot, HORIZON)), 3, latency=Fixed(0), config=loop_config(1)
    )
    # Without delay and limits, and with a chunk a step, what was done is what was planned; the
    # last step ends with the episode, on its way.
    assert np.allclose(rows["action"][:-1], rows["chunk"][:-1, 0], atol=1e-5)
    assert rows["chunk"].shape[1:] == (HORIZON, 6)
    assert np.ptp(rows["position"], axis=0).max() > 0
