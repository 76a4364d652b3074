"""Settings of a server, and what it says of itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from controller.bounds import MAX_HORIZON, check_range
from controller.errors import ErrorCode, OnsetError
from controller.messages import Description
from vla.checkpoint import Checkpoint
from vla.schedule import make_schedule

STRATEGIES = ("naive",)
MAX_THREADS = 256
MAX_SESSIONS = 4096


@dataclass(frozen=True)
class ServeConfig:
    """Settings of a server.

    Attributes:
        host: Address to listen at.
        port: 0 takes a free one.
        threads: Threads that torch may use for one operation.
        decode_threads: Threads that decode frames.
        schedule: One of ``vla.schedule.SCHEDULES``.
        expert_steps: Expert steps per chunk; the checkpoint's own when None.
        device: ``"cpu"`` or ``"cuda"``.
        seed: Seeds the noise, with each observation's id.
        max_sessions: How many robots at a time.
        drain_s: Longest wait for answers under way when the server leaves [s].
        metrics_every_s: How often the counts are logged [s].
    """

    host: str = "127.0.0.1"
    port: int = 0
    threads: int = 1
    decode_threads: int = 2
    schedule: str = "constant"
    expert_steps: int | None = None
    device: str = "cpu"
    seed: int = 0
    max_sessions: int = 64
    drain_s: float = 10.0
    metrics_every_s: float = 60.0


def describe(checkpoint: Checkpoint, config: ServeConfig) -> Description:
    """What a server of this checkpoint says of itself.

    Raises:
        OnsetError: The schedule is unknown.
    """
    meta = checkpoint.meta
    steps = config.expert_steps or meta.expert_steps
    schedule = make_schedule(config.schedule, meta.model.horizon, 0, steps)
    return Description(
        model=meta.name,
        model_hash=checkpoint.digest or "0",
        prompts=meta.prompts,
        horizon=meta.model.horizon,
        robot=meta.robot,
        strategies=STRATEGIES,
        expert_steps=schedule.steps,
        min_delay=0,
        max_delay=meta.model.horizon - 1,
    )


def check_config(config: ServeConfig) -> None:
    """Checks settings before anything is loaded.

    Raises:
        OnsetError: BAD_VALUE, with what is allowed.
    """
    if config.device not in ("cpu", "cuda"):
        raise OnsetError(ErrorCode.BAD_VALUE, "device", config.device, "cpu or cuda")
    if config.device == "cuda" and not torch.cuda.is_available():
        raise OnsetError(ErrorCode.BAD_VALUE, "device", "cuda, and there is none", "cpu")
    for name, lower, upper in (
        ("port", 0, 65535),
        ("threads", 1, MAX_THREADS),
        ("decode_threads", 1, MAX_THREADS),
        ("expert_steps", 1, MAX_HORIZON),
        ("max_sessions", 1, MAX_SESSIONS),
    ):
        value = getattr(config, name)
        if value is not None:
            check_range(name, value, lower, upper)
