"""What a robot sees of it: time to the first action over gRPC, with and without the cache."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks._token_cache_large import large_checkpoint, moving_squares
from benchmarks._ttfa_clocks import Clocks, arriving
from controller.client import GrpcLink
from controller.client_session import LinkConfig
from controller.types import Observation, RobotSpec
from scripts.local_server import SERVE, LocalServer
from vla.checkpoint import Checkpoint

LARGE_SERVER = Path(__file__).with_name("_token_cache_server.py")
WARM_UP = 4  # replies of each that are not counted


def bundled_ttfa(
    policy: str,
    checkpoint: Checkpoint,
    observations: Sequence[tuple[Observation, str]],
    out: Path,
    pause_s: float,
) -> dict[str, Clocks]:
    """HAS alone, and HAS with the learned cache, in turns on recorded observations.

    Args:
        policy: Its bundled name.
        checkpoint: The policy.
        observations: Of one instruction, in order.
        out: Folder of the servers' logs.
        pause_s: Between two observations of one robot: its slack time [s].
    """
    options = {name: ("--schedule", "has", "--cache", name) for name in ("off", "learned")}
    return _rounds(policy, checkpoint.meta.robot, observations, options, SERVE, out, pause_s)


def large_ttfa(
    policy: str, like: Checkpoint, count: int, out: Path, pause_s: float
) -> dict[str, Clocks]:
    """The same for the larger build, which computes a quarter of its rows."""
    checkpoint = large_checkpoint(like)
    robot, prompt = checkpoint.meta.robot, checkpoint.meta.prompts[0]
    observations = [(o, prompt) for o in moving_squares(robot, count)]
    options = {name: ("--cache", name) for name in ("off", "learned")}
    return _rounds(policy, robot, observations, options, LARGE_SERVER, out, pause_s)


def _rounds(
    policy: str,
    robot: RobotSpec,
    observations: Sequence[tuple[Observation, str]],
    options: dict[str, tuple[str, ...]],
    script: Path,
    out: Path,
    pause_s: float,
) -> dict[str, Clocks]:
    done = {name: Clocks() for name in options}
    rng = np.random.default_rng(0)
    with ExitStack() as stack:
        links = {}
        for name, given in options.items():
            log = out / f"{script.stem}_{name}.log"
            server = stack.enter_context(LocalServer(policy, log, *given, script=script))
            config = LinkConfig(reply_deadline_s=10.0)
            prompt = observations[0][1]
            link = GrpcLink(server.address, robot, robot_id="cache", prompt=prompt, config=config)
            links[name] = stack.enter_context(link)
        for number, (observation, _) in enumerate(observations):
            asked = replace(observation, id=number, prompt=None)
            for index in rng.permutation(len(links)):
                name = list(links)[index]
                time.sleep(pause_s)
                into, began = done[name], time.perf_counter_ns()
                links[name].submit(asked)
                pieces = arriving(links[name])
                (into if number >= WARM_UP else Clocks()).note(pieces, 4, began)
    return done
