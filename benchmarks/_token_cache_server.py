"""Serves the larger build of ``_large_policy``, whose weights are random, with a cache."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import asyncio
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from benchmarks._large_policy import large_checkpoint
from benchmarks._token_cache_large import large_selector
from vla.cache.config import CacheConfig, CacheMode
from vla.checkpoint import load_checkpoint
from vla.engine import Engine
from vla.serve.config import ServeConfig
from vla.serve.server import serve


@dataclass(frozen=True)
class Args:
    """Serves the larger build.

    Attributes:
        policy: Bundled policy whose robot and instructions it takes.
        port: Port to listen at; 0 takes a free one.
        cache: Off, or learned with an untrained selector.
        rows: Share of the image tokens to compute.
    """

    policy: str
    port: int = 0
    cache: Literal["off", "learned"] = "off"
    rows: float = 0.25


def main(args: Args) -> int:
    checkpoint = large_checkpoint(load_checkpoint(Path(args.policy)))
    config = CacheConfig(CacheMode(args.cache), args.rows)
    selector = large_selector(checkpoint)
    asked = asyncio.run(
        serve(
            checkpoint,
            ServeConfig(port=args.port, schedule="has"),
            lambda at: print("serving the larger build at", at, flush=True),
            lambda: Engine(checkpoint, schedule="has", cache=config, selector=selector),
        )
    )
    return 0 if asked else 1


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, description=__doc__)))
