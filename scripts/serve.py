"""Serves a policy to robots over gRPC.

Prints one line on stdout once robots can connect:

    serving <name> (<digest>) at <host>:<port>

SIGTERM or Ctrl-C sends the robots elsewhere, answers what has been received, and ends; a second
one ends at once. The log goes to stderr.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from controller.errors import OnsetError


@dataclass(frozen=True)
class Args:
    """Settings of the server.

    Attributes:
        policy: Name of a bundled policy, e.g. whack, or path of a .safetensors file.
        host: Address to listen at; 0.0.0.0 for every network interface.
        port: Port to listen at; 0 takes a free one.
        threads: CPU threads of the model.
        schedule: When each action of a chunk is finished: constant (all after the last expert
            step), has (near-term ones first, each sent at once), one_step or has_meanflow (the
            same two with average velocities, which takes a policy with a MeanFlow head).
        steps: Expert steps per chunk; the policy's own by default. one_step takes one.
        executed: Actions that robots execute of each chunk, behind the committed ones: the expert
            stops when they are finished, and unfinished ones are never sent. All by default.
        device: Where the model runs.
        seed: Seeds the noise, with each observation's id.
        max_sessions: How many robots at a time.
        metrics_every_s: How often counts and durations are logged [s].
    """

    policy: str
    host: str = "127.0.0.1"
    port: int = 50051
    threads: int = 1
    schedule: Literal["constant", "has", "one_step", "has_meanflow"] = "constant"
    steps: int | None = None
    executed: int | None = None
    device: Literal["cpu", "cuda"] = "cpu"
    seed: int = 0
    max_sessions: int = 64
    metrics_every_s: float = 60.0


def main(args: Args) -> int:
    # OpenMP reads these when torch is loaded, and threads made later obey nothing else.
    os.environ["OMP_NUM_THREADS"] = str(max(1, args.threads))
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from vla.checkpoint import load_checkpoint
    from vla.serve.config import ServeConfig
    from vla.serve.server import serve

    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    config = ServeConfig(
        host=args.host,
        port=args.port,
        threads=args.threads,
        schedule=args.schedule,
        steps=args.steps,
        executed=args.executed,
        device=args.device,
        seed=args.seed,
        max_sessions=args.max_sessions,
        metrics_every_s=args.metrics_every_s,
    )
    try:
        checkpoint = load_checkpoint(Path(args.policy))
        line = f"serving {checkpoint.meta.name} ({checkpoint.digest[:12]}) at"
        asked = asyncio.run(serve(checkpoint, config, lambda at: print(line, at, flush=True)))
    except (OnsetError, RuntimeError) as error:
        print(f"serve: {error}", file=sys.stderr)
        return 2
    return 0 if asked else 1


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, description=__doc__)))
