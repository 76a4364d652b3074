"""What a server needs of a policy, whichever kind it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from controller.bounds import check_agreement
from controller.errors import OnsetError
from controller.messages import Description
from controller.types import RobotSpec
from vla.cache.selector import selector_for
from vla.checkpoint import Checkpoint
from vla.engine import Engine
from vla.serve.config import ServeConfig, describe
from vla.serve.runner import Inference


class Served(Protocol):
    """A policy to serve."""

    def describe(self, config: ServeConfig) -> Description:
        """What a server of it says of itself.

        Raises:
            OnsetError: A setting asks for what the policy does not support.
        """
        ...

    def check_robot(self, robot: RobotSpec) -> None:
        """Checks that a robot is one that it can drive.

        Raises:
            OnsetError: Fatal, with both sides in the message.
        """
        ...

    def check_prompt(self, field: str, prompt: str) -> None:
        """Checks an instruction.

        Raises:
            OnsetError: UNKNOWN_PROMPT with the ones there are, or the text is not allowed.
        """
        ...

    def engine(self, config: ServeConfig) -> Inference:
        """The engine. Called on the model's thread."""
        ...


@dataclass(frozen=True)
class ServedCheckpoint:
    """The built-in policy.

    Attributes:
        checkpoint: Its weights and what they were trained for.
    """

    checkpoint: Checkpoint

    def describe(self, config: ServeConfig) -> Description:
        return describe(self.checkpoint, config)

    def check_robot(self, robot: RobotSpec) -> None:
        check_agreement(robot, self.checkpoint.meta.robot)

    def check_prompt(self, field: str, prompt: str) -> None:
        try:
            self.checkpoint.tokeniser.encode(prompt)
        except OnsetError as error:
            raise OnsetError(error.code, field, error.given, error.allowed) from error

    def engine(self, config: ServeConfig) -> Engine:
        return Engine(
            self.checkpoint,
            schedule=config.schedule,
            expert_steps=config.steps,
            executed=config.executed,
            seed=config.seed,
            device=torch.device(config.device),
            cache=config.cache,
            selector=selector_for(self.checkpoint.digest, config.cache),
        )


def as_served(policy: Checkpoint | Served) -> Served:
    """A checkpoint as what is served; anything else as it is."""
    return ServedCheckpoint(policy) if isinstance(policy, Checkpoint) else policy
