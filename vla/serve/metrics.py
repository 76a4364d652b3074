"""Counts and durations of a server, for its log. Only the event loop's thread touches them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, fields

import numpy as np

from controller.types import Timing

WINDOW = 1024  # newest chunks that the quantiles are about


@dataclass
class Metrics:
    """Counts since the server began.

    Attributes:
        sessions: Sessions opened.
        observations: Observations accepted.
        superseded: Observations that a newer one or a reset replaced.
        slices: Slices sent to sessions.
        chunks: Chunks completed.
        errors: Errors sent, fatal or not.
        overloads: Overload notices sent.
        queue_ns: Receipt until the model began, newest chunks [ns].
        inference_ns: Encoding and expert steps, newest chunks [ns].
        total_ns: Receipt until the transport, newest chunks [ns].
    """

    sessions: int = 0
    observations: int = 0
    superseded: int = 0
    slices: int = 0
    chunks: int = 0
    errors: int = 0
    overloads: int = 0
    queue_ns: deque[int] = field(default_factory=lambda: deque(maxlen=WINDOW))
    inference_ns: deque[int] = field(default_factory=lambda: deque(maxlen=WINDOW))
    total_ns: deque[int] = field(default_factory=lambda: deque(maxlen=WINDOW))

    def slice_sent(self, timing: Timing, total_ns: int, final: bool) -> None:
        """Counts a slice; the last one of a chunk gives the chunk's durations."""
        self.slices += 1
        if final:
            self.chunks += 1
            self.queue_ns.append(timing.queue_ns)
            self.inference_ns.append(timing.encode_ns + timing.expert_ns)
            self.total_ns.append(total_ns)

    def quantiles_ms(self) -> dict[str, tuple[float, float]]:
        """Median and 99th percentile [ms] of each duration that has been seen."""
        rows = {"queue": self.queue_ns, "inference": self.inference_ns, "total": self.total_ns}
        return {
            name: (float(np.quantile(row, 0.5)) * 1e-6, float(np.quantile(row, 0.99)) * 1e-6)
            for name, row in rows.items()
            if row
        }

    def summary(self) -> str:
        """One line for the log."""
        counts = [f.name for f in fields(self) if not f.name.endswith("_ns")]
        parts = [f"{name} {getattr(self, name)}" for name in counts]
        parts += [
            f"{name} p50 {p50:.1f} ms p99 {p99:.1f} ms"
            for name, (p50, p99) in self.quantiles_ms().items()
        ]
        return ", ".join(parts)
