"""Settings of a server, and what it says of itself."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from controller.bounds import MAX_HORIZON, check_range
from controller.errors import ErrorCode, OnsetError
from controller.messages import Description
from vla.cache.config import CacheConfig
from vla.checkpoint import Checkpoint
from vla.schedule import make_schedule

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
        schedule: One of ``vla.schedule.SCHEDULES`` that the checkpoint offers.
        steps: Expert steps per chunk; the checkpoint's own when None.
        executed: s, the free actions that robots execute of each chunk: the expert stops when
            they are finished, and unfinished ones are never sent. All of them when None.
        device: ``"cpu"`` or ``"cuda"``.
        seed: Seeds the noise, with each observation's id.
        max_sessions: How many robots at a time.
        drain_s: Longest wait for answers under way when the server leaves [s].
        metrics_every_s: How often the counts are logged [s].
        keep_awake: Whether processors may not sleep while a session is open; costs power.
        shared_frames: Whether robots on this machine may send frames through shared memory.
        cache: Which image tokens are reused; none by default.
    """

    host: str = "127.0.0.1"
    port: int = 0
    threads: int = 1
    decode_threads: int = 2
    schedule: str = "constant"
    steps: int | None = None
    executed: int | None = None
    device: str = "cpu"
    seed: int = 0
    max_sessions: int = 64
    drain_s: float = 10.0
    metrics_every_s: float = 60.0
    keep_awake: bool = True
    shared_frames: bool = True
    cache: CacheConfig = field(default_factory=CacheConfig)


def describe(checkpoint: Checkpoint, config: ServeConfig) -> Description:
    """What a server of this checkpoint says of itself.

    The greatest delay leaves free what robots execute: a longer one is refused with the
    observation. ``"prefix"`` is offered where the policy was trained to continue a prefix.

    Raises:
        OnsetError: The schedule is unknown, or more is to be executed than a chunk holds.
    """
    meta = checkpoint.meta
    horizon, executed = meta.model.horizon, config.executed or 1
    schedule = make_schedule(config.schedule, horizon, 0, config.steps or meta.expert_steps)
    check_range("executed", executed, 1, horizon)
    return Description(
        model=meta.name,
        model_hash=checkpoint.digest or "0",
        prompts=meta.prompts,
        horizon=horizon,
        robot=meta.robot,
        strategies=meta.strategies(schedule),
        expert_steps=schedule.steps,
        min_delay=0,
        max_delay=min(meta.max_delay or horizon - 1, horizon - executed),
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
        ("steps", 1, MAX_HORIZON),
        ("executed", 1, MAX_HORIZON),
        ("max_sessions", 1, MAX_SESSIONS),
    ):
        value = getattr(config, name)
        if value is not None:
            check_range(name, value, lower, upper)
