"""The command line of scripts/evaluate.py."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Args:
    """Evaluates a policy on a task, in virtual time through the real control loop.

    Attributes:
        task: whack, intercept, conveyor or pick_place.
        suite: onset for one of our tasks, metaworld for some of Meta-World's (sim/metaworld).
        tasks: Meta-World's tasks, e.g. reach-v3 push-v3; one policy for all of them.
        policy: Bundled name or path of a .safetensors file; by default the task's own, or the
            suite's.
        episodes: Held-out seeds 0 .. episodes-1.
        who: Rows of the table: policy, expert, still, random, untrained, swap_instruction (the
            policy is told to deal with the other thing) and swap_frames (it is shown another
            episode). All but the first two run a quarter of the episodes. By default all that
            the suite has; Meta-World names no other thing to deal with.
        schedule: One or more of constant, has (near-term actions first), one_step and
            has_meanflow. The others are compared with the first, seed by seed.
        steps: Expert steps of the schedules, each in turn; the policy's own by default. one_step
            always has one.
        cache: One or more of off, learned, and the controls pixel, random, oracle, periodic and
            dense: which image tokens are computed anew. Each is compared with the first.
        cache_rows: Share of the image tokens that are computed, 0.25, 0.5, 0.75 or 1: of the
            controls, which need it, and of learned, whose predictor decides by default.
        cache_slack: Whether all tokens are computed again between two chunks, as an idle server
            does.
        cache_selector: Trained selector; the policy's bundled one by default.
        delays: Delays to inject [steps]; 0 and 8 by default (metaworld: 0 and 4), none with
            --scales.
        scales: Factors of recorded times to inject, on a server that computes one chunk at a time.
            Event-to-motion is measured too, of our own tasks. The expert gets its chunk when the
            first schedule's last expert step is done.
        times: Where the times of prefix and expert step are recorded: a result file of
            benchmarks/ttfa.py; by default an older one, which all tables share.
        execute_steps: K, steps between observations; auto for the least that one server sustains,
            where the expert stops after the actions that are executed.
        least_steps: Least K of auto.
        hardness: Parameters of the task as name=value.
        flicker: Share of the fixed camera's picture, from below, in which the light flickers; 0
            for none. Of our own tasks.
        workers: Processes.
        json: Result file to write.
        plot: Picture to write: success against expert steps, or with --scales success and
            event-to-motion against scale.
    """

    task: str = ""
    suite: Literal["onset", "metaworld"] = "onset"
    tasks: tuple[str, ...] = ()
    policy: str | None = None
    episodes: int = 200
    who: tuple[str, ...] | None = None
    schedule: tuple[Literal["constant", "has", "one_step", "has_meanflow"], ...] = ("constant",)
    steps: tuple[int, ...] = ()
    cache: tuple[
        Literal["off", "learned", "pixel", "random", "oracle", "periodic", "dense"], ...
    ] = ("off",)
    cache_rows: float | None = None
    cache_slack: bool = True
    cache_selector: Path | None = None
    delays: tuple[int, ...] | None = None
    scales: tuple[float, ...] = ()
    times: Path = ROOT / "docs" / "results" / "times.json"
    execute_steps: int | Literal["auto"] = 4
    least_steps: int = 1
    hardness: tuple[str, ...] = ()
    flicker: float = 0.0
    workers: int = 2
    json: Path | None = None
    plot: Path | None = None
