"""Messages of a session that are no observation and no slice, as frozen dataclasses."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from controller.bounds import PROTOCOL_VERSION
from controller.errors import OnsetError
from controller.types import ActionSlice, Observation, RobotSpec


class NoticeKind(StrEnum):
    """What a notice is about. The same names stand in ``policy.proto``."""

    OVERLOAD = "overload"
    DRAIN = "drain"
    SUPERSEDED = "superseded"


@dataclass(frozen=True)
class Open:
    """Opens a session, or resumes one.

    Attributes:
        robot_id: Names one robot of a fleet.
        robot: Names, units and limits of everything that follows.
        prompt: The instruction.
        episode: Names one episode, also across a resume.
        strategy: How chunks are made and joined, e.g. ``"naive"``.
        shared_frames: Names the file through which frames may come on one machine; "" for none.
        protocol: Version of the schema's meaning.
    """

    robot_id: str
    robot: RobotSpec
    prompt: str
    episode: str
    strategy: str
    shared_frames: str = ""
    protocol: int = PROTOCOL_VERSION


@dataclass(frozen=True)
class Reset:
    """A new episode in the same session: steps start again, observation ids go on.

    Attributes:
        episode: Names the new episode.
        prompt: Its instruction.
    """

    episode: str
    prompt: str


@dataclass(frozen=True)
class Close:
    """The robot ends the session."""


@dataclass(frozen=True)
class Opened:
    """What was agreed.

    Attributes:
        strategy: In force.
        prompt: In force.
        state_names: In order. Length S.
        action_names: In order. Length A.
        camera_names: In order.
        model: Model name.
        model_hash: Hash of the weights, hexadecimal.
        horizon: Length of a chunk [steps].
        period_ns: Policy period [ns].
        expert_steps: Expert steps per chunk [count].
        min_delay: Least delay that the policy accepts [steps].
        max_delay: Greatest delay that the policy accepts [steps].
        shared_frames: Whether frames may come through shared memory.
        protocol: Version of the schema's meaning.
    """

    strategy: str
    prompt: str
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    camera_names: tuple[str, ...]
    model: str
    model_hash: str
    horizon: int
    period_ns: int
    expert_steps: int
    min_delay: int
    max_delay: int
    shared_frames: bool = False
    protocol: int = PROTOCOL_VERSION


@dataclass(frozen=True)
class Description:
    """What a served policy is and what it expects.

    Attributes:
        model: Model name.
        model_hash: Hash of the weights, hexadecimal.
        prompts: Known instructions; empty when free text is taken.
        horizon: Length of a chunk [steps].
        robot: The robot that the policy was trained for; an Open must agree with it.
        strategies: Names that ``Open.strategy`` may take.
        expert_steps: Expert steps per chunk [count].
        min_delay: Least delay that the policy accepts [steps].
        max_delay: Greatest delay that the policy accepts [steps].
        protocol: Version of the schema's meaning.
    """

    model: str
    model_hash: str
    prompts: tuple[str, ...]
    horizon: int
    robot: RobotSpec
    strategies: tuple[str, ...]
    expert_steps: int
    min_delay: int
    max_delay: int
    protocol: int = PROTOCOL_VERSION


@dataclass(frozen=True)
class Notice:
    """The server says something that is neither a result nor an error.

    Attributes:
        kind: What it is about.
        message: For people.
        observation_id: The observation concerned; -1 for none.
    """

    kind: NoticeKind
    message: str = ""
    observation_id: int = -1


ClientMessage = Open | Observation | Reset | Close
ServerMessage = Opened | ActionSlice | Notice | OnsetError
