"""What a robot sees of it: time to the first action over gRPC, with and without the cache."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks._large_policy import large_checkpoint
from benchmarks._token_cache_large import moving_squares
from benchmarks._ttfa_clocks import Clocks, arriving
from controller.client import GrpcLink
from controller.client_session import LinkConfig
from controller.types import Observation, RobotSpec
from scripts.local_server import SERVE, LocalServer
from vla.checkpoint import Checkpoint

LARGE_SERVER = Path(__file__).with_name("_token_cache_server.py")
WARM_UP = 4  # replies of each that are not counted


@dataclass(frozen=True)
class Episode:
    """Recorded observations of one instruction, in order."""

    prompt: str
    observations: tuple[Observation, ...]


def bundled_ttfa(
    policy: str,
    checkpoint: Checkpoint,
    episodes: Sequence[Episode],
    out: Path,
    pause_s: float,
) -> dict[str, Clocks]:
    """HAS alone, and HAS with the learned cache, in turns on recorded observations.

    Args:
        policy: Its bundled name.
        checkpoint: The policy.
        episodes: Each is a session of its own.
        out: Folder of the servers' logs.
        pause_s: Between two observations of one robot: its slack time [s].
    """
    options = {name: ("--schedule", "has", "--cache", name) for name in ("off", "learned")}
    return _rounds(policy, checkpoint.meta.robot, episodes, options, SERVE, out, pause_s)


def large_ttfa(
    policy: str, like: Checkpoint, count: int, out: Path, pause_s: float
) -> dict[str, Clocks]:
    """The same for the larger build, which computes a quarter of its rows."""
    checkpoint = large_checkpoint(like)
    robot, prompt = checkpoint.meta.robot, checkpoint.meta.prompts[0]
    episode = Episode(prompt, tuple(moving_squares(robot, count)))
    options = {name: ("--cache", name) for name in ("off", "learned")}
    return _rounds(policy, robot, [episode], options, LARGE_SERVER, out, pause_s)


def _rounds(
    policy: str,
    robot: RobotSpec,
    episodes: Sequence[Episode],
    options: dict[str, tuple[str, ...]],
    script: Path,
    out: Path,
    pause_s: float,
) -> dict[str, Clocks]:
    done = {name: Clocks() for name in options}
    rng = np.random.default_rng(0)
    number = 0
    with ExitStack() as stack:
        servers = {}
        for name, given in options.items():
            log = out / f"{script.stem}_{name}.log"
            server = LocalServer(policy, log, *given, script=script)
            servers[name] = stack.enter_context(server)
        for episode in episodes:
            with ExitStack() as session:
                links = {}
                for name, server in servers.items():
                    link = _link(server.address, robot, episode.prompt)
                    links[name] = session.enter_context(link)
                for observation in episode.observations:
                    asked = replace(observation, id=number, prompt=None)
                    for index in rng.permutation(len(links)):
                        name = list(links)[index]
                        time.sleep(pause_s)
                        _ask(links[name], asked, done[name] if number >= WARM_UP else Clocks())
                    number += 1
    return done


def _ask(link: GrpcLink, observation: Observation, into: Clocks) -> None:
    began = time.perf_counter_ns()
    link.submit(observation)
    into.note(arriving(link), 4, began)


def _link(address: str, robot: RobotSpec, prompt: str) -> GrpcLink:
    config = LinkConfig(reply_deadline_s=10.0)
    return GrpcLink(address, robot, robot_id="cache", prompt=prompt, config=config)
