"""Loops whose policy answers as a strategy says, and what they executed."""

from dataclasses import replace

import numpy as np

from controller.loop_types import TickCode, TickResult
from controller.strategy import STRATEGIES
from controller.types import ActionSlice, Float, Observation
from tests.controller.helpers import WIDE
from tests.controller.loop_fakes import FAST, Rig, numbered

STEP = WIDE.period_ns
LATE = ["last_command", "forecast", "oracle", "onset"]
GUIDED = ["rtc", "rtc_identity"]


class Recorder:
    """A forecaster that notes what it is asked and answers with the number of the question."""

    def __init__(self) -> None:
        self.asked: list[tuple[Float, Float, Float]] = []

    def forecast(self, state: Float, set_point: Float, actions: Float) -> Float:
        self.asked.append((state.copy(), np.array(set_point), actions.copy()))
        return np.full(len(WIDE.state), len(self.asked), np.float32)


def rig_of(
    strategy: str,
    *,
    horizon: int = 8,
    changes: dict | None = None,
    recorder: Recorder | None = None,
    **others,
) -> Rig:
    """A loop whose policy begins its chunks where the strategy says, behind what it continues."""
    way = STRATEGIES[strategy]
    rig = Rig(
        replace(FAST, strategy=strategy, **(changes or {})),
        forecaster=(recorder or Recorder()) if way.late else None,
        **others,
    )

    def chunk(observation: Observation) -> ActionSlice:
        start = way.start(observation.delay)
        piece = numbered(observation, start, horizon)
        given = len(observation.committed[start:]) if way.committed else 0
        return replace(piece, steps=piece.steps[given:], actions=piece.actions[given:])

    rig.link.chunk = chunk
    return rig


def executed(results: list[TickResult]) -> list[tuple[int, int] | None]:
    """(observation, index) per tick; None where the robot held."""
    points = [(int(r.set_point[0]), int(r.set_point[1])) for r in results]
    running = [r.code is TickCode.RUNNING for r in results]
    return [point if ran else None for point, ran in zip(points, running, strict=True)]


def random_chunks(rig: Rig, horizon: int) -> dict[int, Float]:
    """Lets chunks be random numbers; returns them by observation, as they come."""
    rng, chunks = np.random.default_rng(0), {}

    def chunk(observation: Observation) -> ActionSlice:
        piece = numbered(observation, 0, horizon)
        chunks[observation.id] = rng.normal(size=(horizon, 2)).astype(np.float32)
        return replace(piece, actions=chunks[observation.id])

    rig.link.chunk = chunk
    return chunks
