"""Event-to-motion: how long after an event the arm first moves otherwise than without it.

The same seed is run twice, with the event and without. Virtual time is deterministic, so the two
are equal up to the event, and what differs after it is the reaction::

    joint
              with the event         ____----
                                 _--'  } threshold
        ----------------------=====================  without it
                   ^ event       ^ reaction
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from controller.limits import MotionLimits
from controller.loop import ControlLoop
from controller.loop_types import LoopConfig
from sim.delay import DelayedLink, Latency, Stream
from sim.env import SimRobot
from sim.robots.so101 import Array
from sim.rollout import CONTROL_PERIOD_NS

WINDOW_NS = 800_000_000
THRESHOLD = 0.01  # [rad]


@dataclass
class _Run:
    """Joints after each control tick [rad], and the first event [ns of episode time]."""

    joints: list[Array] = field(default_factory=list)
    event_ns: int | None = None


def reaction_ns(
    robot: SimRobot,
    stream: Stream,
    seed: int,
    *,
    latency: Latency,
    config: LoopConfig,
    limits: MotionLimits | None = None,
    threshold: float = THRESHOLD,
    window_ns: int = WINDOW_NS,
) -> int | None:
    """Time from an episode's first event to the first control tick with a reaction [ns].

    Args:
        robot: The simulated arm with its task; it is reset.
        stream: The policy, in process. It must answer equal observations equally.
        seed: Seeds the scene.
        latency: When the pieces of a chunk arrive.
        config: The control loop's settings.
        limits: Move smoothly within them; by default straight from action to action.
        threshold: Difference of any measured joint that counts as a reaction [rad].
        window_ns: How long after the event a reaction is looked for [ns].

    Returns:
        The time, or None where no event happens or nothing differs within the window.
    """

    def run(ticks: int | None) -> _Run:
        link = DelayedLink(stream, latency, seed)
        return _run(robot, link, seed, config, limits, ticks, window_ns)

    with_event = run(None)
    event_ns = with_event.event_ns
    if event_ns is None:
        return None
    robot.task.muted = True
    try:
        ticks = len(with_event.joints)
        without = run(ticks)
    finally:
        robot.task.muted = False
    # Either may end before the other, when nothing more can change its outcome.
    shared = min(ticks, len(without.joints))
    apart = np.abs(np.array(with_event.joints[:shared]) - np.array(without.joints[:shared]))
    reacted = np.flatnonzero((apart > threshold).any(axis=1))
    return None if len(reacted) == 0 else (int(reacted[0]) + 1) * CONTROL_PERIOD_NS - event_ns


def _run(
    robot: SimRobot,
    link: DelayedLink,
    seed: int,
    config: LoopConfig,
    limits: MotionLimits | None,
    ticks: int | None,
    window_ns: int,
) -> _Run:
    """Runs so many ticks; without a number, until the window after the first event is over."""
    task, run = robot.task, _Run()
    prompt = robot.reset(seed)
    loop = ControlLoop(robot, link, config, prompt, limits=limits)
    end_ns = task.steps * robot.spec.period_ns if ticks is None else ticks * CONTROL_PERIOD_NS
    now_ns = 0
    while now_ns < end_ns and not task.done():
        error = loop.tick(now_ns).error
        if error is not None:
            raise error
        now_ns += CONTROL_PERIOD_NS
        robot.advance_to(now_ns)
        run.joints.append(robot.data.qpos[:6].copy())
        if run.event_ns is None and task.event_ns():  # 0 is the beginning, and no event
            run.event_ns = task.event_ns()
            end_ns = min(end_ns, now_ns + window_ns)
    return run
