"""Serves no model: each observation is answered at once with one action, for the link's floor."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from controller.strategy import Strategy
from controller.types import Observation
from vla.checkpoint import load_checkpoint
from vla.chunking import ChunkMemory
from vla.finished import Finished
from vla.serve.config import ServeConfig
from vla.serve.server import serve


@dataclass(frozen=True)
class Args:
    """Serves no model: each observation is answered at once with one action.

    Attributes:
        policy: Name of the bundled policy, or path of the file, that it takes the place of.
        port: Port to listen at; 0 takes a free one.
    """

    policy: str
    port: int = 0


class NullEngine:
    """Answers with one action, all zero."""

    def __init__(self, action_dim: int) -> None:
        self._actions = np.zeros((1, action_dim), np.float32)

    def stream(
        self,
        observation: Observation,
        prompt: str,
        strategy: Strategy,
        memory: ChunkMemory | None = None,
    ) -> Iterator[Finished]:
        steps = np.array([observation.step], np.int64)
        yield Finished(observation.step, steps, self._actions, True, 0, 0, 0, 0)


def main(args: Args) -> int:
    checkpoint = load_checkpoint(Path(args.policy))
    width = len(checkpoint.meta.robot.action)
    asked = asyncio.run(
        serve(
            checkpoint,
            ServeConfig(port=args.port),
            lambda at: print("serving no model at", at, flush=True),
            lambda: NullEngine(width),
        )
    )
    return 0 if asked else 1


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args)))
