"""A rehearsal ticks like the loop that moves the arm, and touches nothing that this one has."""

from __future__ import annotations

import numpy as np

from controller.clock import ManualClock
from controller.executor import ExecutorConfig
from controller.realtime_ticker import Ticker
from controller.rehearsal import Rehearsal
from controller.shared import used_segments
from controller.watchdog import Mode
from tests.controller.executor_fakes import ARM, TICK, limits_of
from tests.controller.helpers import MS

US = 1000


def test_it_runs_like_an_arm_that_follows_a_plan_for_ever_and_has_no_names():
    names = used_segments()
    rehearsal = Rehearsal(ARM, limits_of(), ExecutorConfig(TICK), ManualClock(5 * MS))
    executor = rehearsal._loop._executor
    steps = []
    for _ in range(10_000):
        rehearsal.run()
        steps.append(executor._index)
        assert executor.watchdog.mode is Mode.RUNNING
    assert steps[:4] == [1, 0, 1, 0]  # each begins a step
    assert used_segments() == names


class _Work:
    """Takes time of a virtual clock."""

    def __init__(self, clock: ManualClock, took_ns) -> None:
        self.clock, self.calls, self.ends = clock, [], []
        self._took_ns = iter(took_ns)

    def __call__(self) -> None:
        self.calls.append(self.clock.now_ns())
        self.clock.sleep_until_ns(self.clock.now_ns() + int(next(self._took_ns)))
        self.ends.append(self.clock.now_ns())


def test_it_comes_once_before_each_deadline_and_ends_in_time_19_times_of_20():
    clock = ManualClock()
    rng = np.random.default_rng(0)
    work = _Work(clock, rng.gamma(9.0, 20 * US, size=5000))
    ticker = Ticker(clock, TICK, start_ns=TICK, before=work)
    ticks = [next(ticker) for _ in range(5000)]
    assert len(work.calls) == len(ticks)
    late = np.array([tick.late_ns for tick in ticks])
    deadlines = np.array([tick.deadline_ns for tick in ticks])
    np.testing.assert_array_equal(deadlines, TICK * np.arange(1, 5001))
    assert 0.02 < (late[1000:] > 0).mean() < 0.09
    assert (deadlines - np.array(work.calls))[1000:].max() < 0.6 * MS  # no earlier than it must


def test_it_is_left_out_where_time_is_short():
    clock = ManualClock()
    work = _Work(clock, [100 * US] * 10)
    ticker = Ticker(clock, TICK, start_ns=TICK, before=work)
    next(ticker)
    clock.sleep_until_ns(2 * TICK - 50 * US)  # the tick took nearly its whole period
    tick = next(ticker)
    assert len(work.calls) == 1
    assert (tick.deadline_ns, tick.late_ns, tick.missed) == (2 * TICK, 0, 0)
    clock.sleep_until_ns(4 * TICK + 50 * US)  # and now longer
    tick = next(ticker)
    assert len(work.calls) == 1
    assert (tick.deadline_ns, tick.late_ns, tick.missed) == (4 * TICK, 50 * US, 1)
