"""Judges what an executor did by its recording, without asking the limiter or the timeline.

::

    last action's step ends                      server is back
            v                                          v
    RUNNING | DECELERATING | HOLDING ........ HOLDING  | ....... RUNNING by an action whose
            |<------ hold ------>|                     |<-resume->|  observation is newer

Limits are checked on finite differences of the recorded commands, tick by tick: one tick is one
control period of motion.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from controller.limits import MotionLimits
from controller.recorder_read import Event
from controller.watchdog import Mode

# Words of the executor's events after which the command stands elsewhere: no motion leads there.
NEW_STARTS = ("the arm was put elsewhere", "FAULT -> HOLDING")
HOLD_MS = 250.0
RESUME_S = 1.0
LOST_MS = 100.0
_ROUNDING = 1e-6  # share of a limit

Records = NDArray[np.void]


def new_starts(records: Records, events: Iterable[Event]) -> NDArray[np.bool_]:
    """Which ticks begin another motion. Shape (n,)."""
    times = [event.time_ns for event in events if event.text.startswith(NEW_STARTS)]
    return np.isin(records["time_ns"], times)


@dataclass(frozen=True)
class Excess:
    """Where limits were exceeded.

    Attributes:
        count: Values over their limit: of a tick, a dimension and position, velocity,
            acceleration or jerk [count].
        worst: The greatest share of a limit that was used; 1 is at the limit. Positions are not
            in it.
    """

    count: int
    worst: float


def exceeded(
    records: Records, starts: NDArray[np.bool_], limits: MotionLimits, period_ns: int
) -> Excess:
    """Counts what is outside the limits.

    Args:
        records: Ticks in order. Shape (n,).
        starts: Those that begin another motion. Shape (n,).
        limits: The robot's.
        period_ns: Control period [ns].
    """
    commands, t = records["command"], period_ns * 1e-9
    outside = (commands < limits.lower - 1e-9) | (commands > limits.upper + 1e-9)
    count, worst = int(outside.sum() + (~np.isfinite(commands)).sum()), 0.0
    apart = np.diff(records["tick"]) != 1
    cuts = np.flatnonzero(starts[1:] | apart) + 1
    bounds = (limits.velocity, limits.acceleration, limits.jerk)
    for part in np.split(commands, cuts):
        for order, bound in enumerate(bounds, start=1):
            if len(part) > order:
                share = np.abs(np.diff(part, n=order, axis=0)) / t**order / bound
                count += int((share > 1 + _ROUNDING).sum())
                worst = max(worst, float(share.max()))
    return Excess(count, worst)


def driven(records: Records) -> NDArray[np.bool_]:
    """Which ticks follow a policy's action. Shape (n,)."""
    moving = (records["mode"] == Mode.RUNNING) | (records["mode"] == Mode.COASTING)
    return moving & (records["observation_id"] >= 0)


def executed_twice(records: Records) -> int:
    """Steps, and actions of a step, that came back after another had taken their place [count]."""
    used = records[driven(records)]
    return sum(
        _returns(used, names)
        for names in (("episode", "step"), ("episode", "step", "observation_id"))
    )


def _returns(records: Records, names: Sequence[str]) -> int:
    keys = np.stack([records[name] for name in names], axis=1)
    if not len(keys):
        return 0
    changed = np.any(np.diff(keys, axis=0) != 0, axis=1)
    runs = keys[np.concatenate([[True], changed])]
    return len(runs) - len(np.unique(runs, axis=0))


def misplaced(records: Records, sent: Mapping[tuple[int, int, int], NDArray]) -> int:
    """Ticks driven by an action other than the one sent for this step [count].

    Args:
        records: Ticks in order. Shape (n,).
        sent: What came over the link, by episode, observation and step. Shape (A,) each.
    """
    wrong = 0
    for row in records[driven(records)]:
        key = (int(row["episode"]), int(row["observation_id"]), int(row["step"]))
        action = sent.get(key)
        wrong += action is None or not np.array_equal(np.float32(row["desired"]), action)
    return wrong


def hold_times_ms(records: Records, step_ns: int, bound_ms: float = HOLD_MS) -> list[float]:
    """How long it took to HOLDING, each time that the actions ended [ms].

    Counted from the end of the last step that had an action, or from where it was broken off. An
    arm that got fresh actions before it stood is not in it, unless that was after the bound; one
    that never came to HOLDING is infinitely late.

    Args:
        records: Ticks in order. Shape (n,).
        step_ns: Policy period [ns].
        bound_ms: What is allowed [ms].
    """
    moves, times = driven(records), records["time_ns"]
    found = []
    for i in np.flatnonzero(moves[:-1] & ~moves[1:]) + 1:
        end_ns = min(int(times[i]), _end_of_step(records, i - 1, step_ns))
        later = np.flatnonzero(
            moves[i:] | (records["mode"][i:] == Mode.HOLDING) | (records["mode"][i:] == Mode.FAULT)
        )
        at = i + int(later[0]) if len(later) else -1
        took_ms = (int(times[at]) - end_ns) * 1e-6
        mode = records["mode"][at]
        if mode == Mode.FAULT or (not len(later) and took_ms > bound_ms):
            found.append(np.inf)
        elif mode == Mode.HOLDING or (len(later) and took_ms > bound_ms):
            found.append(took_ms)
    return found


def _end_of_step(records: Records, at: int, step_ns: int) -> int:
    """When the step under way at a tick ended [ns]; the earliest that the ticks allow."""
    row = records[at]
    same = records[records["episode"] == row["episode"]]
    # The episode began after this, by every tick: time < begin + (step + 1) T.
    begin_ns = int((same["time_ns"] - (same["step"] + 1) * step_ns).max())
    return begin_ns + (int(row["step"]) + 1) * step_ns


def resume_s(records: Records, captured: Mapping[tuple[int, int], int], return_ns: int) -> float:
    """From an instant to RUNNING by an action whose observation is newer than it [s].

    Args:
        records: Ticks in order. Shape (n,).
        captured: When observations were taken [ns], by episode and id.
        return_ns: The instant [ns], robot's clock.
    """
    later = records[(records["time_ns"] >= return_ns) & (records["mode"] == Mode.RUNNING)]
    for row in later:
        key = (int(row["episode"]), int(row["observation_id"]))
        if captured.get(key, -1) >= return_ns:
            return (int(row["time_ns"]) - return_ns) * 1e-9
    return np.inf


def entries(records: Records) -> dict[Mode, int]:
    """How often each mode was entered [count]."""
    modes = records["mode"]
    entered = modes[1:][np.diff(modes.astype(int)) != 0]
    return {mode: int((entered == mode).sum()) for mode in Mode}
