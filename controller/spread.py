"""A few like pieces of work at once, for the frames of one observation."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor

from controller.types import RobotSpec


def helpers_for(robot: RobotSpec) -> ThreadPoolExecutor:
    """Threads that compress a robot's frames beside the one that asks; begun when first needed.

    One processor is left to the control loop, where there are several.
    """
    frames = sum(len(camera.lags) for camera in robot.cameras)
    count = max(1, min(frames, os.cpu_count() or 1) - 1)
    return ThreadPoolExecutor(count, thread_name_prefix="onset-frames")


def spread[T, R](
    function: Callable[[T], R], items: Sequence[T], helpers: Executor | None = None
) -> list[R]:
    """Applies a function to each item; the caller does the first, and what no thread has begun.

    So it never waits for a thread that is still to wake up, and may be called from one of the
    helpers.

    Args:
        function: What is done with an item; it should leave the interpreter, as OpenCV does.
        items: Of like size.
        helpers: Threads that help; none when None.

    Returns:
        The results, in the order of the items.
    """
    if helpers is None or len(items) < 2:
        return [function(item) for item in items]
    futures = [helpers.submit(function, item) for item in items[1:]]
    results = [function(items[0])]
    for item, future in zip(items[1:], futures, strict=True):
        results.append(function(item) if future.cancel() else future.result())
    return results
