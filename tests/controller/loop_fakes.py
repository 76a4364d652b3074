"""A control loop in virtual time: a robot without a body, and a link that answers when told to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from controller.clock import ManualClock
from controller.errors import OnsetError
from controller.forecast import Forecaster
from controller.latency import DelayEstimator
from controller.loop import ControlLoop
from controller.loop_types import LoopConfig, TickResult
from controller.robot import FakeRobot
from controller.types import ActionSlice, Observation, RobotSpec
from tests.controller.grpc_fakes import answer
from tests.controller.helpers import MS, WIDE

CONFIG = LoopConfig(control_period_ns=10 * MS, execute_steps=4)
FAST = replace(CONFIG, control_period_ns=40 * MS)


class FakeLink:
    """Answers each observation after ``latency_ns``; ``lost`` ids are never answered.

    A test may put its own function in the place of ``chunk`` or ``pieces``.
    """

    def __init__(self, clock: ManualClock, latency_ns: int = 0, lost=(), horizon: int = 8) -> None:
        self.clock = clock
        self.latency_ns = latency_ns
        self.lost = lost
        self.horizon = horizon
        self.sent: list[Observation] = []
        self.resets: list[tuple[str, str]] = []
        self.due: list[tuple[int, ActionSlice]] = []
        self.error: OnsetError | None = None

    def submit(self, observation: Observation) -> None:
        if self.error is not None:
            raise self.error
        self.sent.append(observation)
        if observation.id not in self.lost:
            at = self.clock.now_ns() + self.latency_ns
            self.due += [(at, piece) for piece in self.pieces(observation)]

    def pieces(self, observation: Observation) -> list[ActionSlice]:
        return [self.chunk(observation)]

    def chunk(self, observation: Observation) -> ActionSlice:
        return answer(observation, 2, self.horizon)

    def poll(self, now_ns: int) -> list[ActionSlice]:
        arrived = [piece for at, piece in self.due if at <= now_ns]
        self.due = [(at, piece) for at, piece in self.due if at > now_ns]
        return arrived

    def reset(self, episode: str, prompt: str) -> None:
        self.resets.append((episode, prompt))


class Rig:
    """The loop, what it is connected to, and what it did.

    Attributes:
        states: What the robot measured before each tick. Shape (S,) each.
    """

    def __init__(
        self,
        config: LoopConfig = FAST,
        robot: RobotSpec = WIDE,
        *,
        estimator: DelayEstimator | None = None,
        forecaster: Forecaster | None = None,
        **link,
    ) -> None:
        self.clock = ManualClock(start_ns=5 * MS)
        self.link = FakeLink(self.clock, **link)
        self.robot = FakeRobot(robot, self.clock)
        self.config = config
        self.states: list[np.ndarray] = []
        self.loop = ControlLoop(
            self.robot,
            self.link,
            config,
            "hit the red mole",
            estimator=estimator,
            forecaster=forecaster,
        )

    def tick(self) -> TickResult:
        self.states.append(self.robot.state.copy())
        return self.loop.tick(self.clock.now_ns())

    def run(self, ticks: int) -> list[TickResult]:
        results = []
        for _ in range(ticks):
            results.append(self.tick())
            self.wait(self.config.control_period_ns)
        return results

    def wait(self, duration_ns: int) -> None:
        self.clock.sleep_until_ns(self.clock.now_ns() + duration_ns)


def numbered(observation: Observation, start: int = 0, horizon: int = 8) -> ActionSlice:
    """A chunk that begins ``start`` steps after its observation; its actions are (id, index)."""
    index = np.arange(horizon)
    first = observation.step + start
    actions = np.stack([np.full(horizon, observation.id), index], axis=1)
    return ActionSlice(observation.id, first, first + index, actions.astype(np.float32), final=True)


def first_values(results: list[TickResult]) -> list[float]:
    return [float(result.set_point[0]) for result in results]
