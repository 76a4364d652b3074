"""How often one server can be asked, and how much of each chunk is executed then.

With an observation every K steps, chunk 0 is in use until the first actions of chunk 1 have
arrived, which is after chunk 1's observation by the time of the inference. Here K = 1, and each
chunk's action of index 0 arrives within its own step, that of index 1 before its step begins::

    step      k        k+1      k+2
    chunk 0   |...000000000|
    chunk 1            |...111111111|       . waits for its first actions
    chunk 2                     |...222222

Step k+1 begins with chunk 0's action of index 1 and goes on with chunk 1's of index 0. So K + 1
actions of a chunk are executed, and K + m where the first m of them come after their steps began.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from controller.errors import ErrorCode, OnsetError
from sim.delay import Compute


@dataclass(frozen=True)
class Cadence:
    """When to observe.

    Attributes:
        execute_steps: K, steps between observations.
        executed: Actions of each chunk that are executed: after these the sampler may stop.
    """

    execute_steps: int
    executed: int


def fastest_cadence(
    ready_at: NDArray[np.int64],
    latency: Compute,
    period_ns: int,
    tick_ns: int,
    least_steps: int = 1,
) -> Cadence:
    """The least K that one server can sustain without leaving a step without an action.

    An inference, stopped after the last action that is executed, takes at most K periods, and
    every step that begins before its action of the newest chunk has arrived finds one of the
    chunk before.

    Args:
        ready_at: Expert steps after which each index of a chunk is finished. Shape (H,).
        latency: Times of the parts of an inference.
        period_ns: Policy period [ns].
        tick_ns: Control period [ns]: what has arrived is seen at the next tick.
        least_steps: K is not less. A chunk is planned from the measured joints, which trail the
            set-points: an arm that is planned anew at every step is a softer one.

    Raises:
        OnsetError: BAD_VALUE when the server is too slow for chunks of this length.
    """
    arrival = np.array([latency.arrival_ns(int(steps)) for steps in ready_at])
    seen = -(-arrival // tick_ns) * tick_ns
    late = np.flatnonzero(seen > np.arange(len(ready_at)) * period_ns)
    overlap = int(late[-1]) + 1 if len(late) else 0
    for execute_steps in range(least_steps, len(ready_at) - overlap + 1):
        executed = execute_steps + overlap
        if latency.busy_ns(int(ready_at[:executed].max())) <= execute_steps * period_ns:
            return Cadence(execute_steps, executed)
    raise OnsetError(
        ErrorCode.BAD_VALUE,
        "latency",
        f"{arrival.max() / 1e6:.0f} ms for a chunk of {len(ready_at)} actions",
        f"less than {len(ready_at)} steps of {period_ns / 1e6:.0f} ms, with {overlap} in reserve",
    )
