"""Closed loop in virtual time, through the real control loop.

The clock moves only when the loop has done its tick, so an episode depends on its seed and on the
policy alone, however slow the machine is. Delays are injected.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from controller.loop import ControlLoop
from controller.loop_types import Counters, LoopConfig
from controller.types import Observation
from sim.collect import Infer
from sim.delay import DelayedLink, Fixed, Latency
from sim.env import SimRobot

CONTROL_PERIOD_NS = 10_000_000


@dataclass(frozen=True)
class Episode:
    """What came of an episode.

    Attributes:
        seed: Its seed.
        prompt: The instruction by which success is judged.
        success: Whether the task was done.
        score: Progress, 0..1.
        swapped: Whether the thing that was not named was dealt with instead.
        steps: Policy steps run.
        counters: The control loop's counts.
    """

    seed: int
    prompt: str
    success: bool
    score: float
    swapped: bool
    steps: int
    counters: Counters


def run_episode(
    robot: SimRobot,
    infer: Infer,
    seed: int,
    *,
    latency: Latency = Fixed(0),
    execute_steps: int = 4,
    on_step: Callable[[int], None] | None = None,
) -> Episode:
    """Runs one episode to its end.

    Args:
        robot: The simulated arm with its task.
        infer: The policy, in process.
        seed: Seeds the scene and the latency.
        latency: Time from capture to the arrival of the chunk.
        execute_steps: K, steps between observations.
        on_step: Called after every policy step, to film.
    """
    prompt = robot.reset(seed)
    config = LoopConfig(CONTROL_PERIOD_NS, execute_steps, delay_steps=0)
    loop = ControlLoop(robot, DelayedLink(infer, latency, seed), config, prompt)
    period, now, step = robot.spec.period_ns, 0, 0
    while step < robot.task.steps and not robot.task.done():
        for _ in range(period // CONTROL_PERIOD_NS):
            result = loop.tick(now)
            if result.error is not None:
                raise result.error
            now += CONTROL_PERIOD_NS
            robot.advance_to(now)
        step += 1
        if on_step is not None:
            on_step(step)
    task = robot.task
    return Episode(
        seed, prompt, task.success(), task.score(), task.swapped_success(), step, loop.counters
    )


def expert(robot: SimRobot, horizon: int) -> Infer:
    """The scripted expert as a policy that sees everything, for reference lines."""

    def infer(observation: Observation):
        dt = robot.spec.period_ns * 1e-9
        return robot.task.plan(robot.position, robot.velocity, horizon, dt)

    return infer
