r"""The executor as a process of its own.

    python -m controller.executor_process --segment arm --robot so101-sim \
        --joints sim.device:make_joints --options '{"segment": "sim-arm"}'

``controller/runtime.py`` starts it. It outlives its client: an arm that is held up by its servos
must not depend on the program that plans for it. SIGTERM and SIGINT end it after a stop and, where
the robot's file has a park pose and ``--when-done park`` is given, the way there.
"""

from __future__ import annotations

import importlib
import json
import logging
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import tyro

from controller.clock import Clock, MonotonicClock
from controller.errors import ErrorCode, OnsetError
from controller.exchange import STOP_LAYOUT, layout, recording_name, stop_name
from controller.executor import Executor, ExecutorConfig
from controller.executor_loop import ExecutorLoop, LoopSettings
from controller.limits import MotionLimits
from controller.realtime import RealtimeConfig, Ticker, make_realtime
from controller.record import Level, describe_run
from controller.recorder import record_layout
from controller.rehearsal import Rehearsal
from controller.robot import Joints
from controller.robot_file import load_robot
from controller.shared import Segment
from controller.watchdog import LadderConfig

_log = logging.getLogger("onset.executor")


@dataclass(frozen=True)
class Args:
    """Moves a robot along the plan in shared memory.

    Attributes:
        segment: Name of the shared memory.
        robot: Robot file, or the name of a bundled one: limits and park pose.
        joints: ``module:function`` that makes the joints.
        options: What that function is given, as JSON.
        control_hz: Set-points per second.
        read_every: Read the joints at every so many ticks.
        speed: Share of the limits of velocity, acceleration and jerk that is used, e.g. 0.2 for a
            first motion. An arm that may not follow its policy lags.
        when_done: What to do at the end: hold where the arm stopped, or go to the park pose first.
        orphan_s: Without a client for so long, end [s]; 0: hold for ever.
        rehearse: Run a tick that moves nothing shortly before each, so that the tick finds its
            caches warm; costs 3 to 6 % of a core.
        ladder: Thresholds of the modes.
        realtime: What is asked of the system.
    """

    segment: str
    robot: str
    joints: str
    options: str = "{}"
    control_hz: int = 200
    read_every: int = 1
    speed: float = 1.0
    when_done: Literal["hold", "park"] = "hold"
    orphan_s: float = 30.0
    rehearse: bool = True
    ladder: LadderConfig = field(default_factory=LadderConfig)
    realtime: RealtimeConfig = field(default_factory=RealtimeConfig)


def main(args: Args) -> None:
    """Runs until told to quit.

    Raises:
        OnsetError: Something of what was given is not allowed, or the robot does not answer.
    """
    clock = MonotonicClock()
    robot = load_robot(args.robot)
    joints = make(args.joints, json.loads(args.options))
    joints.connect()
    spec, period_ns = joints.spec, 1_000_000_000 // args.control_hz
    limits = slowed(robot.limits, args.speed)
    park = robot.park if args.when_done == "park" else None
    config = ExecutorConfig(period_ns, args.ladder)
    executor = Executor(spec, limits, config)
    rehearsal = Rehearsal(spec, limits, config, clock) if args.rehearse else None
    orphan_ns = round(args.orphan_s * 1e9) or None
    settings = LoopSettings(period_ns, args.read_every, orphan_ns=orphan_ns)
    meta = describe_run(spec, period_ns, clock.now_ns())
    parked = False
    try:
        with (
            Segment.attach(args.segment, layout(spec)) as segment,
            Segment.attach(recording_name(args.segment), record_layout(meta)) as recording,
            Segment.attach(stop_name(args.segment), STOP_LAYOUT) as stops,
        ):
            loop = ExecutorLoop(
                segment, recording, stops, joints, executor, limits, settings, park, clock
            )
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, lambda *_: loop.stop())
            said = make_realtime(args.realtime)
            loop.start(clock.now_ns())
            for sentence in said:
                _log.warning("%s", sentence)
                loop.event(clock.now_ns(), Level.WARNING, sentence)
            run(loop, clock, period_ns, None if rehearsal is None else rehearsal.run)
            parked = loop.parked and executor.at_rest
            if loop.orphaned:  # then nobody else takes the names away
                for part in (segment, recording, stops):
                    part.unlink()
    finally:
        # Limp only where it lies anyway.
        joints.close(release=parked)


def run(
    loop: ExecutorLoop,
    clock: Clock,
    period_ns: int,
    before: Callable[[], None] | None = None,
) -> None:
    """Ticks until the loop is done; an unforeseen error stops the arm before it is raised.

    Args:
        loop: What ticks.
        clock: Where time comes from.
        period_ns: From tick to tick [ns].
        before: Called shortly before each tick.
    """
    ticker = Ticker(clock, period_ns, before=before)
    try:
        for tick in ticker:
            if not loop.tick(tick.deadline_ns, tick.late_ns, tick.missed):
                return
    except BaseException:
        _log.exception("the executor stops the arm after an unforeseen error")
        loop.stop(blind=True)
        for tick in ticker:
            if not loop.tick(tick.deadline_ns, tick.late_ns, tick.missed):
                break
        raise


def make(name: str, options: dict) -> Joints:
    """Calls ``module:function`` with options.

    Raises:
        OnsetError: BAD_VALUE when there is no such function.
    """
    module, _, function = name.partition(":")
    try:
        maker: Callable[[dict], Joints] = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise OnsetError(
            ErrorCode.BAD_VALUE, "joints", f"{name}: {error}", "module:function"
        ) from error
    return maker(options)


def slowed(limits: MotionLimits, speed: float) -> MotionLimits:
    """Limits for a share of the speed.

    Raises:
        OnsetError: BAD_VALUE when the share is not in (0, 1].
    """
    if not 0 < speed <= 1:
        raise OnsetError(ErrorCode.BAD_VALUE, "speed", speed, "0 < speed <= 1")
    names = ("velocity", "acceleration", "jerk")
    return replace(limits, **{name: getattr(limits, name) * speed for name in names})


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        main(tyro.cli(Args))
    except OnsetError as error:
        sys.exit(f"error: {error}")
