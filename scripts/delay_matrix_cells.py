"""What the delay matrix runs: cells of task, strategy and delay, and one episode of a cell."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch

from controller.forecast import Forecaster, make_forecaster
from controller.limits import MotionLimits
from controller.loop_types import LoopConfig, TickResult
from controller.robot_file import load_robot
from controller.strategy import STRATEGIES, Strategy
from controller.types import Observation
from scripts.evaluate_cases import hardness_options
from sim.collect import HORIZON
from sim.delay import Compute, Fixed, Latency, whole
from sim.env import SimRobot
from sim.jitter import Jitter
from sim.motion import MotionMeter
from sim.oracle import OracleForecaster
from sim.reaction import reaction_ns
from sim.rollout import CONTROL_PERIOD_NS, Episode, loop_config, run_episode
from sim.stale import StaleExpert
from sim.tasks import make_task
from vla.checkpoint import Checkpoint, load_checkpoint
from vla.chunking import ChunkMemory
from vla.engine import Engine
from vla.schedule import make_schedule

STALE = "stale expert"
OURS = "onset"
MAX_DELAY = 12
RESERVE = 2  # actions behind the executed ones, for a chunk that comes a little late
# A guided step goes back through the expert as well: measured against a plain one.
GUIDED_STEP = 2.9


@dataclass(frozen=True)
class Scene:
    """A task at one hardness.

    Attributes:
        name: What the tables call it.
        task: The task.
        hardness: Its parameters, as name=value.
    """

    name: str
    task: str
    hardness: tuple[str, ...] = ()


# Of its success the stale expert keeps at d = 8 about .5 on whack, .52 on intercept, .67 on fast
# belts; .9 or more on the easy ones and on the belts of conveyor; all of it on a table that stands
# still; and nothing where moles are up for as short as in training.
SCENES = (
    Scene("whack", "whack", ("up_min=1.65", "up_max=2.05")),
    Scene("whack easy", "whack", ("up_min=1.5", "up_max=1.9", "speed_min=0.04", "speed_max=0.07")),
    Scene("whack short", "whack"),
    Scene("intercept", "intercept", ("kick_from=0.35", "kick_to=0.41")),
    Scene("intercept easy", "intercept", ("kick_from=0.38", "kick_to=0.44")),
    Scene("conveyor", "conveyor", ("speed_min=0.05", "speed_max=0.16", "change_probability=1")),
    Scene("conveyor fast", "conveyor", ("speed_min=0.16", "speed_max=0.2", "change_probability=1")),
    Scene("pick_place", "pick_place"),
)


@dataclass(frozen=True)
class Cell:
    """One number of the matrix.

    Attributes:
        scene: Name of the scene.
        strategy: A strategy's name, or the stale expert.
        delay: d [steps]; None where the recorded times are injected.
        scale: Their factor; None with a delay.
        jitter: Spread of the log-normal factor of the latency; 0 for none.
        speedup: q, actions merged into one.
        execute_steps: K, steps between observations; with recorded times the least one.
        expert_steps: Expert steps of a chunk.
        robot: Robot file, or the name of a bundled one, within whose limits the arm moves; None for
            straight from action to action.
    """

    scene: str
    strategy: str
    delay: int | None
    scale: float | None = None
    jitter: float = 0.0
    speedup: int = 1
    execute_steps: int = 4
    expert_steps: int = 5
    robot: str | None = None

    @property
    def key(self) -> str:
        """A name for files and for telling cells apart."""
        how = f"d{self.delay}" if self.delay is not None else f"x{self.scale:g}"
        parts = [self.scene, self.strategy, how, f"k{self.execute_steps}", f"n{self.expert_steps}"]
        parts += [f"j{self.jitter:g}"] if self.jitter else []
        parts += [f"q{self.speedup}"] if self.speedup > 1 else []
        parts += [Path(self.robot).stem] if self.robot else []
        return "-".join(parts).replace(" ", "_")

    @property
    def schedule(self) -> str:
        """Ours streams near-term actions first; the others finish all of a chunk together."""
        return "has" if self.strategy == OURS else "constant"


@dataclass(frozen=True)
class Job:
    """One episode of a cell.

    Attributes:
        cell: The cell.
        scene: Its scene.
        seed: Of the episode.
        policies: Folder with TASK_delay.safetensors or TASK.safetensors.
        times_ns: Recorded times of prefix and expert step [ns].
        reaction: Whether event-to-motion is measured as well.
    """

    cell: Cell
    scene: Scene
    seed: int
    policies: Path
    times_ns: tuple[float, float]
    reaction: bool


def quiet() -> None:
    """Sets a worker up: one thread each."""
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


_robots: dict[str, SimRobot] = {}
_engines: dict[tuple, Engine] = {}


def _limits(cell: Cell) -> MotionLimits | None:
    return load_robot(cell.robot).limits if cell.robot else None


def run_job(job: Job) -> dict:
    """Runs one episode and returns its row."""
    cell, scene = job.cell, job.scene
    if scene.name not in _robots:
        task = make_task(scene.task, **hardness_options(scene.task, scene.hardness))
        policy = policy_path(job.policies, scene.task)
        _robots[scene.name] = SimRobot(task, _checkpoint(policy).meta.robot)
    robot = _robots[scene.name]
    meter = MotionMeter(robot.spec.period_ns * 1e-9)
    if cell.strategy == STALE:
        return _stale_row(job, robot, meter)
    strategy = STRATEGIES[cell.strategy]
    way = make_way(cell, strategy, job.times_ns, robot.spec.period_ns)
    config, latency = way.config, way.latency
    engine = _engine(policy_path(job.policies, scene.task), cell, way.executed)

    forecaster = forecaster_of(cell.strategy, robot)
    memory = ChunkMemory(forecaster)

    def stream(observation: Observation):
        nonlocal memory
        if observation.id == 0:
            memory = ChunkMemory(forecaster)  # a new episode
        return engine.stream(observation, robot.prompt, strategy, memory)

    episode = run_episode(
        robot,
        stream,
        job.seed,
        latency=latency,
        config=config,
        forecaster=forecaster,
        limits=_limits(cell),
        on_tick=meter.see,
    )
    reaction = None
    if job.reaction and cell.strategy != "oracle":
        reaction = reaction_ns(
            robot, stream, job.seed, latency=latency, config=config, limits=_limits(cell)
        )
    return _row(job, episode, meter, reaction)


def forecaster_of(name: str, robot: SimRobot) -> Forecaster | None:
    """What a strategy expects the robot's state by; None where it does without."""
    if name == "oracle":
        return OracleForecaster(robot, CONTROL_PERIOD_NS)
    way = STRATEGIES[name].forecaster
    return make_forecaster(way, robot.spec) if way else None


@dataclass(frozen=True)
class Way:
    """How a cell is run.

    Attributes:
        config: The control loop's settings.
        latency: When answers arrive.
        executed: Free actions of a chunk after which the expert stops; None for all.
    """

    config: LoopConfig
    latency: Latency
    executed: int | None


def make_way(cell: Cell, strategy: Strategy, times_ns: tuple[float, float], period_ns: int) -> Way:
    """Settings of a cell.

    With a delay it is known, unless it jitters, and inference keeps nobody waiting. With recorded
    times one server works on one chunk at a time, so that K is at least as long as that takes, and
    the delay is measured by the loop; ours stops after the actions that are executed.
    """
    if cell.delay is not None:
        latency: Latency = Fixed(cell.delay * period_ns)
        if cell.jitter:
            latency = Jitter(Fixed(cell.delay * period_ns), cell.jitter)
        known = cell.delay if strategy.delayed and not cell.jitter else None
        config = loop_config(
            cell.execute_steps,
            strategy=strategy.name,
            delay_steps=known,
            max_delay=MAX_DELAY,
            speedup=cell.speedup,
            keep_velocity=True,
        )
        return Way(config, latency, None)
    factor = (cell.scale or 1.0) * np.array([1.0, GUIDED_STEP if strategy.guided else 1.0])
    prefix_ns, step_ns = np.round(factor * times_ns).astype(int).tolist()
    compute = Compute(prefix_ns, step_ns)
    # Where it catches up, the longest that may take: one step more, and what nobody waits for.
    unused = MAX_DELAY if strategy.catch_up else 0
    schedule = make_schedule(cell.schedule, HORIZON, 0, cell.expert_steps, unused)
    execute_steps, executed = cell.execute_steps, None
    while True:
        if cell.schedule == "has":
            executed = execute_steps + RESERVE
        ran = None if executed is None else min(executed + unused, HORIZON)
        steps = schedule.steps_for(ran) + strategy.catch_up
        if compute.busy_ns(steps) <= execute_steps * period_ns:
            break
        execute_steps += 1
    # What comes within the first quarter of its step amends it, and is as good as in time.
    config = loop_config(
        execute_steps,
        strategy=strategy.name,
        max_delay=MAX_DELAY,
        margin_ns=-period_ns // 4,
        speedup=cell.speedup,
        keep_velocity=True,
    )
    return Way(config, compute, executed)


def policy_path(folder: Path, task: str) -> Path:
    """The task's policy that is tuned for delay, where there is one of its own."""
    tuned = folder / f"{task}_delay.safetensors"
    return tuned if tuned.is_file() else folder / f"{task}.safetensors"


@cache
def _checkpoint(policy: Path) -> Checkpoint:
    """Read once for the robot and the engines of every schedule."""
    return load_checkpoint(policy)


def _engine(policy: Path, cell: Cell, executed: int | None) -> Engine:
    key = (policy, cell.schedule, cell.expert_steps, executed)
    if key not in _engines:
        _engines[key] = Engine(
            _checkpoint(policy),
            schedule=cell.schedule,
            expert_steps=cell.expert_steps,
            executed=executed,
        )
    return _engines[key]


def _stale_row(job: Job, robot: SimRobot, meter: MotionMeter) -> dict:
    cell = job.cell
    expert = StaleExpert(robot, cell.delay or 0, HORIZON)

    def on_tick(result: TickResult) -> None:
        expert.watch(result)
        meter.see(result)

    config = loop_config(cell.execute_steps, speedup=cell.speedup, keep_velocity=True)
    episode = run_episode(
        robot, whole(expert), job.seed, config=config, limits=_limits(cell), on_tick=on_tick
    )
    return _row(job, episode, meter, None)


def _row(job: Job, episode: Episode, meter: MotionMeter, reaction: int | None) -> dict:
    motion, counters = meter.motion(), episode.counters
    errors = motion.forecast_errors[:, :6] if motion.forecast_errors.size else np.zeros((0, 6))
    return {
        "seed": job.seed,
        "success": bool(episode.success),
        "steps": episode.steps,
        "reaction_ns": reaction,
        "switches": np.round(motion.switches, 4).tolist(),
        "within": np.round(np.percentile(motion.within, [50, 99]), 4).tolist()
        if len(motion.within)
        else [],
        "jerk": motion.jerk,
        "hold": motion.hold,
        "late": counters.late,
        "skipped": counters.skipped,
        "missed": counters.missed_deadlines,
        "squared_forecast_error": np.square(errors).sum(0).tolist(),
        "forecasts": len(errors),
    }
