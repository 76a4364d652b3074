"""What the server remembers of one robot. A cache: losing it costs a new Open, no more."""

from __future__ import annotations

from dataclasses import dataclass, field

from controller.bounds import check_range
from controller.errors import ErrorCode, OnsetError
from controller.forecast import make_forecaster
from controller.messages import Description, Open, Reset
from controller.servo import servo_names
from controller.shared_frames import SharedFramesReader
from controller.strategy import STRATEGIES, Strategy, get_strategy
from controller.types import Observation, RobotSpec
from vla.chunking import ChunkMemory

OVERLOAD_INTERVAL_NS = 1_000_000_000


@dataclass
class Session:
    """One robot between Open and Close.

    Attributes:
        robot_id: One robot of a fleet.
        robot: As it was opened with; agrees with the policy's.
        episode: The episode under way.
        prompt: The instruction in force.
        strategy: How chunks are made.
        memory: What the robot was told in this episode.
        shared: Where its frames come through shared memory; None where they come in messages.
        last_step: Step of the last observation accepted in this episode; -1 before any.
        last_id: Id of the last observation accepted; -1 before any.
        outstanding: Ids of observations received and not answered yet.
        observations: Observations accepted [count].
    """

    robot_id: str
    robot: RobotSpec
    episode: str
    prompt: str
    strategy: Strategy = STRATEGIES["naive"]
    memory: ChunkMemory | None = None
    shared: SharedFramesReader | None = None
    last_step: int = -1
    last_id: int = -1
    outstanding: set[int] = field(default_factory=set)
    observations: int = 0
    _overload_told_ns: int | None = None

    @staticmethod
    def opened(opening: Open, shared_frames: bool = True) -> Session:
        """The session that an Open begins; it may start at any step and id.

        Args:
            opening: As received.
            shared_frames: Whether its frames may come through shared memory.
        """
        name = opening.shared_frames
        return Session(
            opening.robot_id,
            opening.robot,
            opening.episode,
            opening.prompt,
            strategy := get_strategy(opening.strategy, "open.strategy"),
            make_memory(strategy, opening.robot),
            SharedFramesReader.find(name, opening.robot) if name and shared_frames else None,
        )

    def check(self, observation: Observation, description: Description) -> None:
        """Checks an observation against the ones before and against the policy's delays.

        Raises:
            OnsetError: STEP_ORDER or BAD_VALUE; it carries the observation's id.
        """
        try:
            if observation.id <= self.last_id:
                raise OnsetError(
                    ErrorCode.STEP_ORDER, "observation.id", observation.id, f"> {self.last_id}"
                )
            if observation.step < self.last_step:
                raise OnsetError(
                    ErrorCode.STEP_ORDER,
                    "observation.step",
                    observation.step,
                    f">= {self.last_step}; a reset begins a new episode",
                )
            least, most = description.min_delay, description.max_delay
            check_range("observation.delay", observation.delay, least, most)
        except OnsetError as error:
            error.observation_id = observation.id
            raise

    def accept(self, observation: Observation) -> None:
        """Notes an observation that has passed every check."""
        self.last_step, self.last_id = observation.step, observation.id
        self.observations += 1

    def reset(self, message: Reset) -> set[int]:
        """Begins a new episode; returns the ids that nothing will answer any more."""
        self.episode, self.prompt = message.episode, message.prompt
        self.last_step = -1
        self.memory = make_memory(self.strategy, self.robot)
        abandoned, self.outstanding = self.outstanding, set()
        return abandoned

    def may_tell_overload(self, now_ns: int) -> bool:
        """Whether an overload notice is due: one a second is enough for people to see it."""
        told = self._overload_told_ns
        if told is not None and now_ns - told < OVERLOAD_INTERVAL_NS:
            return False
        self._overload_told_ns = now_ns
        return True


def make_memory(strategy: Strategy, robot: RobotSpec) -> ChunkMemory | None:
    """An empty memory; it forecasts where there is a servo model of the robot.

    None for a strategy that counts on no delay: it never asks for what was sent.
    """
    if not strategy.delayed:
        return None
    known = strategy.forecaster != "servo" or robot.name in servo_names()
    named = strategy.forecaster and known
    return ChunkMemory(make_forecaster(strategy.forecaster, robot) if named else None)


def check_strategy(strategy: str, strategies: tuple[str, ...]) -> None:
    """Checks that a strategy is one that is served.

    Raises:
        OnsetError: UNKNOWN_STRATEGY, with the ones that are.
    """
    if strategy not in strategies:
        raise OnsetError(
            ErrorCode.UNKNOWN_STRATEGY, "open.strategy", repr(strategy), list(strategies)
        )
