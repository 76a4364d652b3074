"""From the runs of a fault and their recording to one row of the matrix."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks._faults_check import (
    HOLD_MS,
    LOST_MS,
    RESUME_S,
    Records,
    entries,
    exceeded,
    executed_twice,
    hold_times_ms,
    misplaced,
    resume_s,
)
from benchmarks._faults_stack import Traffic
from controller.limits import MotionLimits
from controller.watchdog import Mode


@dataclass(frozen=True)
class Run:
    """One run of a fault.

    Attributes:
        fault_ns: When it began [ns], robot's clock.
        return_ns: From when on the robot could be served again [ns].
        end_ns: The executor's last tick that belongs to it [ns].
        mode: What the arm was doing then.
        lost_ms: How much of the recording would have been lost had everything died then.
    """

    fault_ns: int
    return_ns: int
    end_ns: int
    mode: Mode
    lost_ms: float = 0.0


@dataclass
class Verdict:
    """What all runs of a fault came to.

    Attributes:
        name: The fault.
        clock: wall or virtual.
        holds: Whether the arm had to come to HOLDING.
        runs: How many.
        held: Runs in which it came to HOLDING.
        hold_ms: Each time, how long that took.
        resume_s: Of each run, how long it took to act on something new.
        violations: Values outside the limits.
        worst_share: Greatest share of a limit that was used.
        twice: Actions and steps executed twice.
        misplaced: Ticks with an action that was not sent for this step.
        missing: Ticks that are not in the recording.
        lost_ms: Greatest loss of recording [ms].
        modes: How often each mode was entered from the fault on.
        running: Runs that ended in RUNNING.
    """

    name: str
    clock: str
    holds: bool
    runs: int = 0
    held: int = 0
    hold_ms: list[float] = field(default_factory=list)
    resume_s: list[float] = field(default_factory=list)
    violations: int = 0
    worst_share: float = 0.0
    twice: int = 0
    misplaced: int = 0
    missing: int = 0
    lost_ms: float = 0.0
    modes: Counter[Mode] = field(default_factory=Counter)
    running: int = 0

    def take(
        self,
        runs: Sequence[Run],
        records: Records,
        starts: np.ndarray,
        traffic: Traffic,
        limits: MotionLimits,
        period_ns: int,
        step_ns: int,
    ) -> None:
        """Judges runs of one recording."""
        excess = exceeded(records, starts, limits, period_ns)
        self.violations += excess.count
        self.worst_share = max(self.worst_share, excess.worst)
        self.twice += executed_twice(records)
        self.misplaced += misplaced(records, traffic.sent)
        times = records["time_ns"]
        for run in runs:
            part = records[(times >= run.fault_ns) & (times <= run.end_ns)]
            held = hold_times_ms(part, step_ns)
            self.runs += 1
            self.held += bool(held)
            self.hold_ms += held
            self.resume_s.append(resume_s(part, traffic.captured, run.return_ns))
            self.modes.update(entries(part))
            self.running += run.mode is Mode.RUNNING
            self.lost_ms = max(self.lost_ms, run.lost_ms)

    @property
    def failures(self) -> list[str]:
        """What is not as it should be."""
        counts: Mapping[str, int | bool] = {
            "limits exceeded": self.violations,
            "executed twice": self.twice,
            "misplaced": self.misplaced,
            f"hold over {HOLD_MS:.0f} ms": sum(ms > HOLD_MS for ms in self.hold_ms),
            f"resume over {RESUME_S:.0f} s": sum(s > RESUME_S for s in self.resume_s),
            "never held": (self.runs - self.held) * self.holds,
            "not running at the end": self.runs - self.running,
            f"recording lost over {LOST_MS:.0f} ms": self.lost_ms > LOST_MS,
            "fault latched": self.modes[Mode.FAULT],
        }
        return [f"{name}: {int(count)}" for name, count in counts.items() if count]

    def row(self) -> dict[str, Any]:
        """As a row of a result file; infinite times are None."""
        hold, resume = np.array(self.hold_ms), np.array(self.resume_s)
        return {
            "fault": self.name,
            "clock": self.clock,
            "runs": self.runs,
            "held": self.held,
            "hold_ms_p50": _quantile(hold, 0.5),
            "hold_ms_max": _quantile(hold, 1),
            "resume_s_p50": _quantile(resume, 0.5),
            "resume_s_max": _quantile(resume, 1),
            "limit_violations": self.violations,
            "worst_share_of_limit": self.worst_share,
            "executed_twice": self.twice,
            "misplaced": self.misplaced,
            "missing_ticks": self.missing,
            "recording_lost_ms_max": self.lost_ms,
            **{f"entered_{mode.name.lower()}": self.modes[mode] for mode in Mode},
            "final_running": self.running,
            "failures": "; ".join(self.failures),
        }


def _quantile(values: np.ndarray, share: float) -> float | None:
    return float(np.quantile(values, share, method="higher")) if len(values) else None


def figures(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """The figures of a matrix; what never came is given as a million."""
    never = 1e6

    def most(values: list[float]) -> float:
        return min(max(values, default=0.0), never)

    return {
        "limit_violations": sum(v.violations for v in verdicts),
        "hold_ms_max": most([ms for v in verdicts for ms in v.hold_ms]),
        "resume_s_max": most([s for v in verdicts for s in v.resume_s]),
        "executed_twice": sum(v.twice + v.misplaced for v in verdicts),
        "recording_lost_ms_max": most([v.lost_ms for v in verdicts]),
        "not_running_at_the_end": sum(v.runs - v.running for v in verdicts),
        "runs": sum(v.runs for v in verdicts),
        "failed_faults": sum(bool(v.failures) for v in verdicts),
    }
