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
from typing import TYPE_CHECKING, Literal

import tyro

from controller.errors import ErrorCode, OnsetError

if TYPE_CHECKING:
    from vla.serve.served import Served


@dataclass(frozen=True)
class Args:
    """Settings of the server.

    Attributes:
        policy: Name of a bundled policy, e.g. whack, or path of a .safetensors file; or of LeRobot
            a checkpoint's directory or hub id (SmolVLA, pi0, pi0.5, X-VLA).
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
        cameras: For a LeRobot policy, which of its images each of the robot's cameras is, e.g.
            front=observation.images.camera1. By default each image's last part is the camera.
        language: For a LeRobot policy, a directory with its tokeniser (and for SmolVLA the
            configuration of its vision-language model), where the hub is out of reach.
        cache: Which image tokens are computed anew: off (all of them), learned (a trained
            selector's), or a control: pixel, random, oracle, periodic, dense. Of LeRobot's
            policies SmolVLA, pi0 and pi0.5 keep some, without the oracle.
        cache_rows: Share of the image tokens to compute, 0.25, 0.5, 0.75 or 1; by default what the
            trained predictor says. The controls need one.
        cache_mib: Memory for the caches of all sessions [MiB].
        max_sessions: How many robots at a time.
        metrics_every_s: How often counts and durations are logged [s].
        keep_awake: Keeps the machine's processors from falling asleep while a session is open,
            which costs power; takes write permission to /dev/cpu_dma_latency.
        shared_frames: Lets robots on this machine send frames through shared memory, as they are.
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
    cameras: tuple[str, ...] = ()
    language: Path | None = None
    cache: Literal["off", "learned", "pixel", "random", "oracle", "periodic", "dense"] = "off"
    cache_rows: float | None = None
    cache_mib: int = 256
    max_sessions: int = 64
    metrics_every_s: float = 60.0
    keep_awake: bool = True
    shared_frames: bool = True


def main(args: Args) -> int:
    # OpenMP reads these when torch is loaded, and threads made later obey nothing else.
    os.environ["OMP_NUM_THREADS"] = str(max(1, args.threads))
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from vla.cache.config import CacheConfig, CacheMode
    from vla.serve.config import ServeConfig, check_config
    from vla.serve.server import serve

    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    try:
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
            keep_awake=args.keep_awake,
            shared_frames=args.shared_frames,
            cache=CacheConfig(
                CacheMode(args.cache), args.cache_rows, budget=args.cache_mib * 2**20
            ),
        )
        check_config(config)
        policy = load(args)
        said = policy.describe(config)
        line = f"serving {said.model} ({said.model_hash[:12]}) at"
        asked = asyncio.run(serve(policy, config, lambda at: print(line, at, flush=True)))
    except (OnsetError, RuntimeError) as error:
        print(f"serve: {error}", file=sys.stderr)
        return 2
    return 0 if asked else 1


def load(args: Args) -> Served:
    """The policy that is named.

    Raises:
        OnsetError: There is none, or it is not whole.
    """
    from vla.checkpoint import WEIGHTS, load_checkpoint
    from vla.serve.served import ServedCheckpoint

    path = Path(args.policy)
    bundled = path.suffix == ".safetensors" or (WEIGHTS / f"{path}.safetensors").is_file()
    # A directory and a hub id are LeRobot's; a name that is neither gets the list of the bundled.
    if bundled or (not path.is_dir() and "/" not in args.policy):
        if args.cameras or args.language:
            raise OnsetError(
                ErrorCode.BAD_VALUE, "cameras, language", args.policy, "a LeRobot policy"
            )
        return ServedCheckpoint(load_checkpoint(path))
    # Imported here: transformers alone takes ten seconds.
    from vla.adapters.load import load_lerobot_policy
    from vla.adapters.served import ServedLeRobot, camera_map

    loaded = load_lerobot_policy(args.policy, language=args.language, device=args.device)
    return ServedLeRobot(loaded, camera_map(args.cameras))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, description=__doc__)))
