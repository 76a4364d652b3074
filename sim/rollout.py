"""One episode in closed loop through the real control loop, in virtual or in wall-clock time.

In virtual time the clock moves only when the loop has done its tick, so an episode depends on its
seed and on the policy alone, however slow the machine is; delays are injected. In wall-clock time
the same code runs against a server.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from controller.clock import Clock, ManualClock
from controller.errors import OnsetError
from controller.forecast import Forecaster
from controller.limits import MotionLimits
from controller.loop import ControlLoop
from controller.loop_types import Counters, LoopConfig, TickResult
from controller.types import Float, Observation
from sim.collect import Infer
from sim.delay import DelayedLink, Fixed, Latency, Stream
from sim.env import CONTROL_PERIOD_NS
from sim.simulated import Simulated

NO_DELAY = Fixed(0)


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
        errors: What the link raised, in order.
    """

    seed: int
    prompt: str
    success: bool
    score: float
    swapped: bool
    steps: int
    counters: Counters
    errors: tuple[OnsetError, ...] = ()


def loop_config(
    execute_steps: int, control_period_ns: int = CONTROL_PERIOD_NS, **settings
) -> LoopConfig:
    """The control loop's settings for simulation: set-points every 10 ms, and ``settings``."""
    return LoopConfig(control_period_ns, execute_steps, **settings)


def drive(
    robot: Simulated,
    loop: ControlLoop,
    clock: Clock,
    seed: int,
    prompt: str,
    *,
    on_step: Callable[[int], None] | None = None,
    on_tick: Callable[[TickResult], None] | None = None,
) -> Episode:
    """Ticks the loop and the physics until the episode ends.

    Args:
        robot: Reset, at the clock's present.
        loop: Reset, at the clock's present.
        clock: Virtual or real.
        seed: The episode's, for the record.
        prompt: The instruction by which success is judged.
        on_step: Called at the end of every policy step, to film or to report.
        on_tick: Called with what every tick did, before physics goes on.
    """
    task, tick_ns, errors = robot.task, robot.control_period_ns, []
    deadline = clock.now_ns()
    end = deadline + task.steps * robot.spec.period_ns
    step = 0
    while deadline < end and not task.done():
        result = loop.tick(clock.now_ns())
        if result.error is not None:
            errors.append(result.error)
        if on_tick is not None:
            on_tick(result)
        # Absolute deadlines: a late tick does not shift those after it. Ticks that are wholly
        # past are left out, and the loop counts them.
        late = max(0, clock.now_ns() - deadline)
        deadline += (late // tick_ns + 1) * tick_ns
        clock.sleep_until_ns(deadline)
        robot.advance_to(deadline)
        if result.step > step and on_step is not None:
            on_step(result.step)
        step = result.step
    return Episode(
        seed,
        prompt,
        task.success(),
        task.score(),
        task.swapped_success(),
        step + 1,
        loop.counters,
        tuple(errors),
    )


def run_episode(
    robot: Simulated,
    stream: Stream,
    seed: int,
    *,
    latency: Latency = NO_DELAY,
    config: LoopConfig | None = None,
    forecaster: Forecaster | None = None,
    limits: MotionLimits | None = None,
    on_step: Callable[[int], None] | None = None,
    on_tick: Callable[[TickResult], None] | None = None,
) -> Episode:
    """Runs one episode in virtual time.

    Args:
        robot: The simulated arm with its task.
        stream: The policy, in process.
        seed: Seeds the scene.
        latency: When the pieces of a chunk arrive.
        config: The control loop's settings; naive with K = 4 by default.
        forecaster: Tells the state ahead; by default the strategy's.
        limits: Move smoothly within them; by default straight from action to action.
        on_step: Called at the end of every policy step.
        on_tick: Called with what every tick did, before physics goes on.
    """
    prompt = robot.reset(seed)
    config = config or loop_config(4, robot.control_period_ns)
    link = DelayedLink(stream, latency, seed)
    loop = ControlLoop(robot, link, config, prompt, forecaster=forecaster, limits=limits)
    episode = drive(robot, loop, ManualClock(), seed, prompt, on_step=on_step, on_tick=on_tick)
    if episode.errors:
        raise episode.errors[0]
    return episode


def expert(robot: Simulated, horizon: int) -> Infer:
    """The scripted expert as a policy that sees everything, for reference lines."""

    def infer(observation: Observation) -> Float:
        dt = robot.spec.period_ns * 1e-9
        plan = robot.task.plan(robot.position, robot.velocity, horizon, dt)
        return plan.astype(np.float32)

    return infer
