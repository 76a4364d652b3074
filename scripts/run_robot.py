r"""Runs a robot against a policy server, in wall-clock time.

    scripts/run_robot.py --server 127.0.0.1:50051 --task whack          the simulated arm
    scripts/run_robot.py --server HOST:PORT --robot so101 --port /dev/ttyACM0 \
        --prompt "put the red cube into the box" --dry-run              a real one, not moved yet

An executor in a process of its own moves the arm within the limits of its robot file, stops it when
actions stay away, and records every tick. Read docs/hardware.md before a real arm moves.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from controller.client import describe
from controller.errors import ErrorCode, OnsetError
from controller.loop_types import LoopConfig
from controller.meter import Reply
from controller.robot_file import load_robot
from controller.watchdog import WORDS, Mode, Reason
from scripts.results import code_commit, write_results
from scripts.robot_stack import Stack, StackSetup, lerobot_options, robot_stack
from sim.device import SimCameras, SimDevice
from sim.env import SimRobot
from sim.film import Film, write_video
from sim.rollout import Episode
from sim.tasks import make_task

CONSOLE = Console()
SIMULATED = "so101-sim"


@dataclass(frozen=True)
class Args:
    """Runs a robot against a policy server, in wall-clock time.

    Attributes:
        server: host:port of a server that serves a policy for the robot.
        task: Of the simulated arm: whack, intercept, conveyor or pick_place.
        episodes: Episodes of the simulated arm.
        seed: Seed of the first episode.
        execute_steps: K, steps between observations.
        strategy: How chunks take over from each other: a name that the server offers, e.g. naive,
            forecast (each begins late, from a forecast state) or onset (that, continuing the last
            action before it).
        speedup: q, actions of a chunk that are merged into one step.
        robot: Robot file, or the name of a bundled one; so101-sim is the simulated arm.
        robot_type: LeRobot's type of a real robot.
        port: Its serial port.
        options: Further fields of LeRobot's configuration of it, as JSON, e.g. its cameras.
        units: How LeRobot's units meet ours, as JSON: zeros, reversed, units, fit, modules.
        prompt: The instruction of a real robot.
        seconds: How long a real robot runs [s]; 0: until Ctrl-C.
        robot_id: Names this robot: to the server, to scripts/estop.py and in its calibration.
        control_hz: Set-points per second. A serial bus manages about 100.
        read_every: Read the joints at every so many of them.
        speed: Share of the robot's limits of velocity, acceleration and jerk that may be used: 0.2
            for a first motion.
        rehearse: Run a tick that moves nothing shortly before each, so that the tick finds its
            caches warm; costs 3 to 6 % of a core.
        when_done: At the end hold the arm where it stopped, or park it first.
        dry_run: Read and compute, but do not send commands to a real robot.
        recordings: Folder of the recording; scripts/replay.py plays it.
        video: Write a video of the simulated episodes.
        json: Result file to write.
        verbose: Log notices and lost sessions.
    """

    server: str
    task: str = ""
    episodes: int = 5
    seed: int = 0
    execute_steps: int = 4
    strategy: str = "naive"
    speedup: int = 1
    robot: str = SIMULATED
    robot_type: str = "so101_follower"
    port: str = ""
    options: str = "{}"
    units: str = "{}"
    prompt: str = ""
    seconds: float = 0.0
    robot_id: str = SIMULATED
    control_hz: int = 200
    read_every: int = 1
    speed: float = 1.0
    rehearse: bool = True
    when_done: Literal["hold", "park"] = "hold"
    dry_run: bool = False
    recordings: Path = Path("out/recordings")
    video: Path | None = None
    json: Path | None = None
    verbose: bool = False


@dataclass(frozen=True)
class Run:
    """One episode in wall-clock time.

    Attributes:
        task: Its task.
        episode: What came of it.
        replies: Times of the answers.
        film: Its states, to render.
        trace: Measured joints and set-points per step. Shape (T, 2, 6).
        recording: File with every tick of it.
    """

    task: str
    episode: Episode
    replies: tuple[Reply, ...]
    film: Film
    trace: np.ndarray
    recording: Path | None


def main(args: Args) -> None:
    logging.basicConfig(level=logging.INFO if args.verbose else logging.ERROR)
    if args.robot != SIMULATED:
        run_arm(args)
        return
    if not args.task:
        raise OnsetError(ErrorCode.BAD_VALUE, "task", "none", "a task for the simulated arm")
    commit = code_commit()
    with Progress(console=CONSOLE) as progress:
        runs = run_episodes(args, progress)
    CONSOLE.print(summary_table(runs))
    CONSOLE.print(f"wrote {runs[0].recording}")
    if args.video is not None:
        period_s = runs[0].film.robot.spec.period_ns * 1e-9
        write_video(args.video, [run.film for run in runs], 1 / period_s)
        CONSOLE.print(f"wrote {args.video}")
    if args.json is not None:
        rows = [row_of(run) for run in runs]
        success = float(np.mean([run.episode.success for run in runs]))
        write_results(args.json, {"success": success}, rows, commit=commit)
        CONSOLE.print(f"wrote {args.json}")


def loop_of(args: Args) -> LoopConfig:
    """When to observe, and how chunks take over."""
    return LoopConfig(
        1_000_000_000 // args.control_hz,
        args.execute_steps,
        strategy=args.strategy,
        speedup=args.speedup,
    )


def executor_options(args: Args) -> tuple[str, ...]:
    """The executor's command line, as far as it is the user's."""
    options = ["--speed", str(args.speed), "--when-done", args.when_done]
    options += ["--read-every", str(args.read_every)]
    options += ["--rehearse" if args.rehearse else "--no-rehearse"]
    if args.dry_run:  # the arm stands still however far the plan goes
        options += ["--ladder.tracking", "None"]
    return tuple(options)


def run_arm(args: Args) -> None:
    """Runs a real robot until Ctrl-C, or for a time.

    Raises:
        OnsetError: Something of the robot, its file or the server is not as it should be.
    """
    from controller.robots.lerobot import make_cameras

    if not args.prompt:
        raise OnsetError(ErrorCode.BAD_VALUE, "prompt", "none", "an instruction for the robot")
    options = lerobot_options(
        args.robot, args.robot_type, args.port, args.robot_id, args.options, args.units,
        dry_run=args.dry_run,
    )  # fmt: skip
    with CONSOLE.status("connecting the cameras"):
        cameras = make_cameras(options)
        cameras.connect()
    setup = StackSetup(
        load_robot(args.robot).spec, args.robot, "controller.robots.lerobot:make_joints", options,
        cameras, args.server, args.prompt, loop_of(args), args.robot_id, args.control_hz,
        args.recordings, executor_options(args), {"task": args.task},
    )  # fmt: skip
    try:
        with robot_stack(setup) as stack:
            said = stack.runtime.said()
            if said:
                CONSOLE.print(said)
            CONSOLE.print(
                f"{'dry run: ' if args.dry_run else ''}running; Ctrl-C ends in order, "
                f"scripts/estop.py {args.robot_id} stops at once"
            )
            stack.client.begin(args.prompt, tell=False)
            watch(stack, args.seconds)
            CONSOLE.print(f"wrote {stack.runtime.recording_path}")
    finally:
        cameras.close()


def watch(stack: Stack, seconds: float) -> None:
    """Runs and tells every change of mode, until Ctrl-C or a time [s] has passed."""
    end_s = time.monotonic() + seconds if seconds else float("inf")
    told: list[tuple[Mode, Reason]] = [(Mode.HOLDING, Reason.NO_ACTION)]

    def done() -> bool:
        state = stack.runtime.state()
        now = (Mode(int(state["mode"])), Reason(int(state["reason"])))
        if now != told[-1]:
            told.append(now)
            CONSOLE.print(f"{now[0].name}: {WORDS[now[1]]}")
        if not stack.runtime.running:
            raise OnsetError(
                ErrorCode.UNAVAILABLE, "executor", stack.runtime.said(), "a running executor"
            )
        return time.monotonic() > end_s

    try:
        error = stack.client.run(done)
        if error is not None:
            raise error
    except KeyboardInterrupt:
        CONSOLE.print("stopping")


def run_episodes(args: Args, progress: Progress) -> list[Run]:
    """Runs episodes of the simulated arm over one session.

    Raises:
        OnsetError: There is no server, or it refuses this robot.
    """
    description = describe(args.server)
    row = progress.add_task(f"{args.task} <- {description.model}", total=args.episodes)
    runs: list[Run] = []
    with SimDevice(args.task) as device, SimCamerasOf(device) as cameras:
        prompt = device.reset(args.seed)
        setup = StackSetup(
            device.spec.remembering(description.robot), SIMULATED,
            "sim.device:make_joints", {"segment": device.segment}, cameras,
            args.server, prompt, loop_of(args), args.robot_id, args.control_hz,
            args.recordings, executor_options(args),
            {"task": args.task, "seed": str(args.seed)},
        )  # fmt: skip
        filmed = SimRobot(make_task(args.task))
        with robot_stack(setup) as stack:
            for seed in range(args.seed, args.seed + args.episodes):
                runs.append(run_episode(args.task, seed, device, stack, filmed))
                progress.advance(row)
    return runs


class SimCamerasOf(SimCameras):
    """The cameras of a device, closed at the end."""

    def __init__(self, device: SimDevice) -> None:
        super().__init__(device.segment)

    def __enter__(self) -> SimCamerasOf:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def run_episode(task: str, seed: int, device: SimDevice, stack: Stack, filmed: SimRobot) -> Run:
    """Runs one episode; the arm is stopped while the scene is set."""
    client, runtime = stack.client, stack.runtime
    client.stop()
    prompt = device.reset(seed)
    before = runtime.state()
    client.begin(prompt, placed=True, tell=client.episode >= 0)
    client.go()
    film, trace = Film(filmed, f'{task}: "{prompt}"'), []
    limit = make_task(task).steps
    actions = len(device.spec.action)

    def done() -> bool:
        state, status = runtime.state(), device.status()
        if state["episode"] == client.episode and state["step"] >= len(trace):
            snapshot = device.capture()
            film.keep(snapshot.qpos, snapshot.mocap_pos, snapshot.mocap_quat)
            trace.append([state["measured"][:actions], state["command"]])
        return bool(status.done or state["step"] >= limit)

    error = client.run(done)
    state, status = runtime.state(), device.status()
    counters = replace(
        client.counters,
        ticks=int(state["tick"] - before["tick"]),
        missed_deadlines=int(state["missed"] - before["missed"]),
        starved=int(state["starved"]),
    )
    episode = Episode(
        seed, prompt, status.success, status.score, status.swapped, len(trace), counters,
        () if error is None else (error,),
    )  # fmt: skip
    return Run(
        task, episode, tuple(stack.link.replies), film, np.array(trace), runtime.recording_path
    )


def row_of(run: Run) -> dict[str, object]:
    """One episode as a row of a result file; times in ms."""
    counters = run.episode.counters
    times = {f"{name}_ms": _median_ms([ns(r) for r in run.replies]) for name, ns in TIMES.items()}
    return {
        "task": run.task,
        "seed": run.episode.seed,
        "prompt": run.episode.prompt,
        "success": run.episode.success,
        "score": run.episode.score,
        "steps": run.episode.steps,
        **times,
        "missed_ticks": counters.missed_deadlines,
        "starved_steps": counters.starved,
        "late_actions": counters.late,
        "errors": counters.errors,
    }


def _median_ms(values: Sequence[int]) -> float | None:
    return float(np.median(values)) * 1e-6 if values else None


# The times of a reply that rows and table show [ns].
TIMES: dict[str, Callable[[Reply], int]] = {
    "inference": lambda reply: reply.inference_ns,
    "round_trip": lambda reply: reply.whole_ns,
    "first_action": lambda reply: reply.first_ns,
}


def summary_table(runs: Sequence[Run]) -> Table:
    """One row a task: success, times [ms, p50 and p99] and missed ticks."""
    table = Table(title="wall-clock episodes over gRPC; times in ms, p50/p99", box=SIMPLE_HEAD)
    for name in (
        "task",
        "success",
        *(name.replace("_", " ") for name in TIMES),
        "missed ticks",
        "starved",
    ):
        first = name == "task"
        table.add_column(name, justify="left" if first else "right", no_wrap=first)
    for task in dict.fromkeys(run.task for run in runs):
        mine = [run for run in runs if run.task == task]
        replies = [reply for run in mine for reply in run.replies]
        cells = []
        for nanoseconds in TIMES.values():
            values = [nanoseconds(reply) for reply in replies]
            low, high = np.quantile(values, [0.5, 0.99]) * 1e-6 if values else (np.nan, np.nan)
            cells.append(f"{low:.0f}/{high:.0f}")
        ticks = sum(run.episode.counters.ticks for run in mine)
        missed = sum(run.episode.counters.missed_deadlines for run in mine)
        starved = sum(run.episode.counters.starved for run in mine)
        won = sum(run.episode.success for run in mine)
        table.add_row(task, f"{won}/{len(mine)}", *cells, f"{missed}/{ticks}", str(starved))
    return table


if __name__ == "__main__":
    try:
        main(tyro.cli(Args, description=__doc__))
    except OnsetError as error:
        raise SystemExit(f"error: {error}") from error
