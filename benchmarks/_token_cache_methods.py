"""The cache's ways to choose rows, side by side on the observations of one closed loop."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from benchmarks._token_cache_floor import half_precision
from controller.types import CacheFigures, Observation
from sim.env import SimRobot
from sim.reuse_film import ReuseFilm
from sim.rollout import loop_config, run_episode
from sim.tasks import make_task, task_of
from vla.cache.asked import Whose
from vla.cache.config import CacheConfig, CacheMode
from vla.cache.prefix import PrefixEncoder
from vla.cache.selector import Selector
from vla.checkpoint import Checkpoint
from vla.engine import Engine
from vla.finished import Finished
from vla.models.expert_graph import ExpertGraph

DRIVER = "learned"  # whose actions move the arm
COMPARED = 8  # actions of a chunk whose errors are taken: twice what is executed
FLOORS = ("bfloat16", "other noise")


@dataclass(frozen=True)
class Method:
    """A way to choose rows.

    Attributes:
        name: In tables.
        mode: Who chooses.
        rows: Share of the rows; None where a predictor says it.
        slack: Whether everything is computed again between two chunks.
    """

    name: str
    mode: CacheMode
    rows: float | None = None
    slack: bool = True


QUARTER = 0.25
METHODS = (
    Method("off", CacheMode.OFF),
    Method("dense", CacheMode.DENSE),
    Method("learned", CacheMode.LEARNED),
    *(
        Method(f"{mode}{tail}", CacheMode(mode), QUARTER, slack)
        for tail, slack in ((" 1/4", True), (" 1/4, no slack", False))
        for mode in ("learned", "pixel", "random", "oracle")
    ),
    Method("learned 1/2, no slack", CacheMode.LEARNED, 0.5, slack=False),
    Method("learned 3/4, no slack", CacheMode.LEARNED, 0.75, slack=False),
    Method("periodic 1/4", CacheMode.PERIODIC, QUARTER, slack=False),
)


@dataclass(frozen=True)
class Reply:
    """One observation under one method.

    Attributes:
        encode_ms: Inputs, choice of rows, vision and prefix [ms].
        choice_ms: Of it, the choice of rows: differences, rules, selector, predictor [ms].
        scoring_ms: Of that, selector and predictor [ms].
        figures: What was computed.
        error: Greatest difference of an arm action to the one of all rows [rad].
    """

    encode_ms: float
    choice_ms: float
    scoring_ms: float
    figures: CacheFigures
    error: float


@dataclass
class Worst:
    """The observation on which a method was farthest off.

    Attributes:
        error: As in ``Reply``.
        frames: Newest frame per camera. Shape (h, w, 3), uint8.
        chosen: Rows that were computed. Shape (M,).
    """

    error: float = -1.0
    frames: list[NDArray[np.uint8]] = field(default_factory=list)
    chosen: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))


@dataclass
class Measured:
    """What one policy gave.

    Attributes:
        film: The first episode, with what the driver reused.
        replies: By method, in order.
        floors: Errors of half precision and of another noise [rad].
        worst: By method.
        observations: All observations, with their prompts.
        session_bytes: Size of a session's cache.
        shared_bytes: Size of what the sessions share.
    """

    film: ReuseFilm
    replies: dict[str, list[Reply]] = field(default_factory=dict)
    floors: dict[str, list[float]] = field(default_factory=lambda: {n: [] for n in FLOORS})
    worst: dict[str, Worst] = field(default_factory=dict)
    observations: list[tuple[Observation, str]] = field(default_factory=list)
    session_bytes: int = 0
    shared_bytes: int = 0


def measure_policy(
    checkpoint: Checkpoint, selector: Selector, episodes: int, first_seed: int
) -> Measured:
    """Runs episodes in virtual time; each observation goes through every method.

    Args:
        checkpoint: The policy.
        selector: Its selector.
        episodes: How many.
        first_seed: Seeds first_seed, first_seed + 1, ...
    """
    # One of each for all: a robot's server has one too.
    prefix, expert = PrefixEncoder(checkpoint.model), ExpertGraph(checkpoint.model)
    engines = {
        m.name: Engine(
            checkpoint,
            schedule="has",
            cache=CacheConfig(m.mode, m.rows, slack=m.slack),
            selector=selector,
            prefix=prefix,
            expert=expert,
        )
        for m in METHODS
    }
    noisy = Engine(checkpoint, schedule="has", seed=1, prefix=prefix, expert=expert)
    robot = SimRobot(make_task(task_of(checkpoint.meta.prompts)), checkpoint.meta.robot)
    arm = np.flatnonzero([d.unit == "rad" for d in robot.spec.action])
    done = Measured(ReuseFilm(checkpoint.meta.model.patch))
    rng = np.random.default_rng(0)

    def stream(observation: Observation) -> list[Finished]:
        whose = Whose("robot", str(seed))
        frames = {n: np.array(f) for n, f in observation.frames.items()}
        done.observations.append((observation, robot.prompt))
        pieces, chunks = {}, {}
        for index in rng.permutation(len(METHODS)):
            name = METHODS[index].name
            engine = engines[name]
            pieces[name] = list(engine.stream(observation, robot.prompt, whose=whose))
            chunks[name] = joined(pieces[name])[:COMPARED, arm]
            engine.settle()
        exact = chunks["off"]
        for name, chunk in chunks.items():
            figures = pieces[name][0].cache or CacheFigures(0, 0)
            error = float(np.abs(chunk - exact).max())
            encoder = engines[name].encoder
            encode_ms = pieces[name][0].encode_ns * 1e-6
            reply = Reply(
                encode_ms,
                encoder.choice_ns * 1e-6,
                encoder.scoring_ns * 1e-6,
                figures,
                error,
            )
            done.replies.setdefault(name, []).append(reply)
            if error > done.worst.setdefault(name, Worst()).error:
                newest = [frames[c.name][0] for c in robot.spec.cameras]
                done.worst[name] = Worst(error, newest, encoder.chosen.copy())
        half = half_precision(engines["off"], observation, robot.prompt)
        other = joined(list(noisy.stream(observation, robot.prompt)))
        for name, chunk in zip(FLOORS, (half, other), strict=True):
            done.floors[name].append(float(np.abs(chunk[:COMPARED, arm] - exact).max()))
        if seed == first_seed:
            figures = done.replies[DRIVER][-1].figures
            text = f"{figures.rows_computed} of {figures.rows} computed"
            newest = [frames[c.name][0] for c in robot.spec.cameras]
            done.film.add(newest, engines[DRIVER].encoder.chosen, text)
        return pieces[DRIVER]

    for seed in range(first_seed, first_seed + episodes):
        run_episode(robot, stream, seed, config=loop_config(4))
    robot.close()
    store = engines[DRIVER].encoder.store
    done.session_bytes = store.nbytes // max(1, len(store))
    done.shared_bytes = engines[DRIVER].encoder.shared_bytes
    return done


def joined(pieces: list[Finished]) -> NDArray[np.float32]:
    """The whole chunk in order. Shape (n, A), robot's units."""
    order = np.argsort(np.concatenate([p.steps for p in pieces]))
    return np.concatenate([p.actions for p in pieces])[order]
