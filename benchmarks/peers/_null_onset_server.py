"""Our server with a policy that costs nothing: a whole chunk, all zero, for each observation.

Prints `serving no model at HOST:PORT`.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import tyro

from benchmarks.peers._frames import HEIGHT, WIDTH
from benchmarks.peers._robots import robot
from controller.messages import Description
from controller.strategy import Strategy
from controller.types import Observation, RobotSpec
from vla.chunking import ChunkMemory
from vla.finished import Finished
from vla.serve.config import ServeConfig
from vla.serve.server import serve


@dataclass(frozen=True)
class Args:
    """Settings.

    Attributes:
        actions: State and action dimensions.
        chunk: Actions in a chunk.
        side: Height and width of the frames that the policy takes [px]; the camera's own when 0.
        port: Port to listen at; 0 takes a free one.
    """

    actions: int = 14
    chunk: int = 50
    side: int = 0
    port: int = 0


@dataclass(frozen=True)
class Nothing:
    """A policy that costs nothing."""

    robot: RobotSpec
    chunk: int

    def describe(self, config: ServeConfig) -> Description:
        return Description("nothing", "0", (), self.chunk, self.robot, ("naive",), 1, 0, 1)

    def check_robot(self, robot: RobotSpec) -> None:
        """Any robot will do."""

    def check_prompt(self, field: str, prompt: str) -> None:
        """Any text will do."""

    def engine(self, config: ServeConfig) -> Nothing:
        return self

    def stream(
        self,
        observation: Observation,
        prompt: str,
        strategy: Strategy,
        memory: ChunkMemory | None = None,
        **_: Any,
    ) -> Iterator[Finished]:
        steps = np.arange(self.chunk) + observation.step
        actions = np.zeros((self.chunk, len(self.robot.action)), np.float32)
        yield Finished(observation.step, steps, actions, True, 0, 0, 0, 0)


def main(args: Args) -> int:
    config = ServeConfig(port=args.port)
    ready = lambda at: print("serving no model at", at, flush=True)  # noqa: E731
    taken = robot(args.actions, args.side or HEIGHT, args.side or WIDTH)
    return 0 if asyncio.run(serve(Nothing(taken, args.chunk), config, ready)) else 1


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args)))
