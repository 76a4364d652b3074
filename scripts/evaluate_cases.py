"""What an evaluation runs: who, under which schedule, with which times, observing how often."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from controller.errors import ErrorCode, OnsetError
from sim.cadence import Cadence, fastest_cadence
from sim.delay import Compute, Fixed
from sim.rollout import CONTROL_PERIOD_NS
from sim.tasks import hardness

MAIN_ROWS = ("policy", "expert")
POLICY_ROWS = ("policy", "untrained", "swap_instruction", "swap_frames")


@dataclass(frozen=True)
class Variant:
    """A way to run the policy's expert.

    Attributes:
        schedule: The schedule's name.
        steps: Its expert steps.
        ready_at: Expert steps after which each index is finished; H of them.
        cache: Which image tokens are computed anew, a ``vla.cache.config.CacheMode``.
    """

    schedule: str
    steps: int
    ready_at: tuple[int, ...] = field(repr=False)
    cache: str = "off"


@dataclass(frozen=True)
class Condition:
    """How late the actions are: a fixed delay, or the recorded times of the computation.

    Attributes:
        delay: Delay [steps]; None where times are injected.
        scale: Factor of the recorded times; None for a fixed delay.
        latency: The model of it.
    """

    delay: int | None
    scale: float | None
    latency: Fixed | Compute


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        who: Who drives.
        variant: How the policy's expert runs; for who is no policy, whose times it takes.
        condition: How late its actions are.
        cadence: Steps between observations, and the actions of a chunk that are executed.
        episodes: Seeds 0 .. episodes-1.
    """

    who: str
    variant: Variant
    condition: Condition
    cadence: Cadence
    episodes: int

    @property
    def schedule(self) -> str | None:
        """The schedule's name; None for who has none."""
        return self.variant.schedule if self.who in POLICY_ROWS else None


def conditions(
    delays: Sequence[int], scales: Sequence[float], times: Path, period_ns: int
) -> list[Condition]:
    """Fixed delays, then recorded times.

    Raises:
        OnsetError: A delay or scale is negative, or the file holds no times.
    """
    found = [Condition(delay, None, Fixed(delay * period_ns)) for delay in delays]
    if scales:
        prefix_ns, step_ns = recorded_times(times)
        for scale in scales:
            latency = Compute(round(scale * prefix_ns), round(scale * step_ns))
            found.append(Condition(None, scale, latency))
    return found


def recorded_times(path: Path) -> tuple[float, float]:
    """Medians of prefix and expert step in a result file of benchmarks/ttfa.py [ns].

    Raises:
        OnsetError: BAD_VALUE when there is no such file, or it does not hold them.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        parts = {r["what"]: float(r["p50_ms"]) * 1e6 for r in rows if r["where"] == "parts"}
        return parts["prefix"], parts["expert step"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OnsetError(
            ErrorCode.BAD_VALUE,
            "times",
            f"{path.name}: {type(error).__name__} {error}",
            "a result file of benchmarks/ttfa.py, whose parts are prefix and expert step",
        ) from error


def make_cases(
    who: Sequence[str],
    variants: Sequence[Variant],
    conditions: Sequence[Condition],
    execute_steps: int | None,
    least_steps: int,
    episodes: int,
    period_ns: int,
    tick_ns: int = CONTROL_PERIOD_NS,
) -> list[Case]:
    """The rows, in the order of the table.

    The policy runs in every variant and condition, the expert in every condition. A reference line
    runs in the first variant and condition, for a quarter of the episodes.

    Args:
        who: Rows to run.
        variants: Ways to run the expert, the first of which the others are compared with.
        conditions: How late the actions are.
        execute_steps: K, steps between observations; None for as often as a server sustains.
        least_steps: Least K where it is not given.
        episodes: Episodes of a row.
        period_ns: Policy period [ns].
        tick_ns: Time between set-points [ns].

    Raises:
        OnsetError: A server with these times is too slow for the policy's chunks.
    """
    cases = []
    for name in who:
        for condition in conditions if name in MAIN_ROWS else conditions[:1]:
            for variant in variants if name == "policy" else variants[:1]:
                # Who is no policy has whole chunks: all of one is there after the last step.
                whole = (variant.steps,) * len(variant.ready_at)
                ready_at = variant.ready_at if name in POLICY_ROWS else whole
                cadence = _cadence(
                    ready_at, condition, execute_steps, least_steps, period_ns, tick_ns
                )
                count = episodes if name in MAIN_ROWS else max(1, episodes // 4)
                cases.append(Case(name, variant, condition, cadence, count))
    return cases


def _cadence(
    ready_at: Sequence[int],
    condition: Condition,
    execute_steps: int | None,
    least_steps: int,
    period_ns: int,
    tick_ns: int,
) -> Cadence:
    if execute_steps is not None:
        return Cadence(execute_steps, len(ready_at))
    if isinstance(condition.latency, Fixed):
        return Cadence(least_steps, len(ready_at))  # nothing that would keep a server busy
    return fastest_cadence(np.array(ready_at), condition.latency, period_ns, tick_ns, least_steps)


def hardness_options(task: str, pairs: Sequence[str]) -> dict[str, float]:
    """Parses ``name=value`` pairs for the task's constructor.

    Raises:
        OnsetError: BAD_VALUE for an unknown task or parameter, or what is no number; the message
            lists the task's parameters.
    """
    known, options = hardness(task), {}
    allowed = ", ".join(f"{name}={value}" for name, value in known.items())
    for pair in pairs:
        name, _, text = pair.partition("=")
        try:
            options[name] = type(known[name])(text)
        except (KeyError, ValueError) as error:
            raise OnsetError(ErrorCode.BAD_VALUE, f"hardness[{task}]", pair, allowed) from error
    return options
