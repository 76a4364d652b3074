"""Rollouts of a policy as it is served, through the real control loop, labelled by the expert.

``sim.collect`` drives a robot from action to action. Here the policy drives under a strategy and a
delay, within the limits of an arm, so that the states are those that it meets when it serves.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from controller.forecast import Forecaster
from controller.limits import MotionLimits
from controller.loop_types import LoopConfig, TickResult
from sim.collect import label, plan_now
from sim.delay import Latency, Stream
from sim.env import SimRobot
from sim.rollout import run_episode


def collect_served(
    robot: SimRobot,
    stream: Stream,
    seed: int,
    *,
    latency: Latency,
    config: LoopConfig,
    forecaster: Forecaster | None = None,
    limits: MotionLimits | None = None,
) -> tuple[dict[str, NDArray], bool]:
    """Runs one episode; arguments as in ``run_episode``, what it returns as ``collect_episode``.

    ``action`` is each step's last set-point: what the limits made of the policy's action.
    """
    rows: dict[str, list] = {}

    def see(result: TickResult) -> None:
        if result.boundary:
            for name, value in label(robot, plan_now(robot)).items():
                rows.setdefault(name, []).append(value)
            rows.setdefault("action", []).append(result.set_point)
        else:
            rows["action"][-1] = result.set_point

    episode = run_episode(
        robot,
        stream,
        seed,
        latency=latency,
        config=config,
        forecaster=forecaster,
        limits=limits,
        on_tick=see,
    )
    return {n: np.stack(v).astype(v[0].dtype) for n, v in rows.items()}, episode.success
