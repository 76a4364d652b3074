"""Chunks that begin late, in the loop: what is asked for, and which of several replies stands."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.strategy import STRATEGIES
from controller.types import Float, Observation
from tests.controller.loop_fakes import FAST, Rig, numbered
from tests.controller.strategy_fakes import GUIDED, LATE, STEP, Recorder, executed, rig_of

# ---- strategies that begin late


@pytest.mark.parametrize("delay", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("strategy", LATE)
def test_a_late_chunk_is_asked_for_with_the_state_at_its_beginning_and_takes_over_there(
    strategy, delay
):
    recorder, start = Recorder(), STRATEGIES[strategy].start(delay)
    rig = rig_of(
        strategy, changes={"delay_steps": delay}, recorder=recorder, latency_ns=delay * STEP
    )
    results = rig.run(26)
    points = np.array([r.set_point for r in results])
    answered = [o for o in rig.link.sent if o.step + delay < len(results)]
    assert [o.step for o in answered] == [s for s in range(0, 26, 4) if s + delay < 26]
    for observation in answered[1:]:
        k = observation.step
        # What it counts on is what came.
        assert observation.delay == len(observation.committed) == delay
        np.testing.assert_array_equal(observation.committed, points[k : k + delay])
        owners = {r.observation_id for r in results[k : k + delay]}
        assert owners <= {observation.id - 1}
        # The new chunk takes over d steps later, at its index d - start.
        assert executed(results)[k + delay] == (observation.id, delay - start)
        if start == 0:
            assert observation.forecast is None
            continue
        state, set_point, actions = recorder.asked[observation.id]
        np.testing.assert_array_equal(state, rig.states[k])
        np.testing.assert_array_equal(set_point, points[k - 1])
        np.testing.assert_array_equal(actions, points[k : k + start])
        assert observation.forecast is not None
        np.testing.assert_array_equal(observation.forecast, np.full(3, observation.id + 1))
    counters = rig.loop.counters
    assert (counters.late, counters.committed) == (delay - start, 0)
    assert counters.starved == delay


@pytest.mark.parametrize("strategy", LATE)
@pytest.mark.parametrize("latency", [0, 1, 3])
def test_an_early_answer_waits_for_its_beginning(strategy, latency):
    rig = rig_of(strategy, changes={"delay_steps": 3}, latency_ns=latency * STEP)
    results = rig.run(20)
    owners = [r.observation_id for r in results]
    assert owners[3:] == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4 + [4]
    assert [o.step for o in rig.link.sent] == list(range(0, 20, 4))
    assert rig.loop.counters.committed == 0


@pytest.mark.parametrize("strategy", LATE)
def test_of_a_later_answer_the_first_actions_are_late(strategy):
    rig = rig_of(strategy, changes={"delay_steps": 1}, latency_ns=3 * STEP)
    results = rig.run(24)
    owners = [r.observation_id for r in results]
    assert owners == [-1] * 3 + [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4 + [4] * 4 + [5]
    indices = {r.step: int(r.set_point[1]) for r in results if r.observation_id >= 0}
    start = STRATEGIES[strategy].start(1)
    for observation in rig.link.sent[:5]:
        assert indices[observation.step + 3] == 3 - start
    counters = rig.loop.counters
    assert counters.late == 2 * counters.slices


def test_past_the_end_of_the_old_chunk_the_forecast_holds_its_last_action():
    recorder = Recorder()
    rig = rig_of(
        "forecast",
        horizon=3,
        changes={"delay_steps": 2},
        recorder=recorder,
        latency_ns=2 * STEP,
    )
    results = rig.run(8)
    # Nothing at all stands at first: the robot holds what it was read at.
    np.testing.assert_array_equal(recorder.asked[0][2], np.zeros((2, 2)))
    assert executed(results)[2:6] == [(0, 0), (0, 1), (0, 2), None]
    second = rig.link.sent[1]
    assert (second.step, second.committed.tolist()) == (4, [[0, 2]])
    np.testing.assert_array_equal(recorder.asked[1][2], [[0, 2], [0, 2]])


@pytest.mark.parametrize("strategy", LATE)
def test_the_error_of_a_forecast_is_told_in_the_step_that_it_is_about(strategy):
    rig = rig_of(strategy, changes={"delay_steps": 3}, latency_ns=3 * STEP)
    results = rig.run(22)
    start = STRATEGIES[strategy].start(3)
    about = {o.step + start: o.forecast for o in rig.link.sent}
    for result in results:
        if result.step not in about:
            assert result.forecast_error is None
            continue
        error = rig.states[result.step] - about[result.step]
        np.testing.assert_array_equal(result.forecast_error, error)


def test_a_new_episode_forgets_the_forecasts_of_the_one_before():
    rig = rig_of("forecast", changes={"delay_steps": 3}, latency_ns=3 * STEP)
    rig.run(9)  # the one of step 8 is about step 11
    rig.loop.reset(rig.clock.now_ns(), "hit the red mole", "episode-2")
    results = rig.run(15)
    assert [r.step for r in results if r.forecast_error is not None] == [3, 7, 11]
    forecast = rig.link.sent[-2].forecast
    assert forecast is not None
    np.testing.assert_array_equal(results[11].forecast_error, rig.states[9 + 11] - forecast)


def test_the_last_command_is_the_forecast_of_its_own_strategy():
    rig = Rig(replace(FAST, strategy="last_command", delay_steps=2), latency_ns=2 * STEP)
    rig.link.chunk = lambda observation: numbered(observation, 2)
    rig.run(9)
    last = rig.link.sent[2]
    assert last.forecast is not None
    np.testing.assert_array_equal(last.forecast[:2], last.committed[-1])


# ---- several replies under way


@pytest.mark.parametrize("strategy", ["prefix", *GUIDED, *LATE])
@pytest.mark.parametrize("latency", [0, 3, 5])
@pytest.mark.parametrize(("execute_steps", "delay"), [(2, 5), (1, 5), (4, 5), (5, 5)])
def test_each_of_several_replies_takes_over_where_it_begins(
    strategy, latency, execute_steps, delay
):
    """An observation is due every K, also where d is longer: none freezes out the one before."""
    changes = {"execute_steps": execute_steps, "delay_steps": delay}
    rig = rig_of(strategy, horizon=16, changes=changes, latency_ns=latency * STEP)
    results = rig.run(40)
    assert [o.step for o in rig.link.sent] == list(range(0, 40, execute_steps))
    owners = {r.step: r.observation_id for r in results}
    for observation in [o for o in rig.link.sent if o.step >= delay]:
        begins = observation.step + delay
        for step in range(begins, min(begins + execute_steps, 40)):
            assert owners[step] == observation.id


@pytest.mark.parametrize("strategy", ["prefix", *GUIDED, *LATE])
@pytest.mark.parametrize(("execute_steps", "delay"), [(2, 5), (4, 8), (3, 2)])
def test_what_is_frozen_is_executed_and_what_a_reply_takes_over_is_still_told(
    strategy, execute_steps, delay
):
    changes = {"execute_steps": execute_steps, "delay_steps": delay}
    rig = rig_of(strategy, horizon=16, changes=changes, latency_ns=delay * STEP)
    results = rig.run(40)
    points = np.array([r.set_point for r in results])
    told = 0
    for observation in [o for o in rig.link.sent if o.id and o.step + delay < 40]:
        k = observation.step
        under_way = [o for o in rig.link.sent if o.step < k < o.step + delay]
        first = min([delay, *(o.step + delay - k for o in under_way)])
        frozen = observation.committed[:first]
        np.testing.assert_array_equal(frozen, points[k : k + len(frozen)])
        # The rest is what stands, which the reply under way is going to replace.
        rest = observation.committed[first:]
        if len(rest) and k + first >= delay:
            told += 1
            assert (rest != points[k + first : k + len(observation.committed)]).any(axis=1).all()
    assert bool(told) == (delay > execute_steps)


@settings(max_examples=60, deadline=None)
@given(
    strategy=st.sampled_from(["prefix", *GUIDED, *LATE]),
    latencies=st.lists(st.integers(0, 9), min_size=15, max_size=15),
    lost=st.sets(st.integers(0, 14), max_size=3),
    delay=st.integers(0, 6),
    execute_steps=st.integers(1, 5),
)
def test_a_step_that_is_frozen_is_never_changed(strategy, latencies, lost, delay, execute_steps):
    changes = {"execute_steps": execute_steps, "delay_steps": delay}
    rig = rig_of(strategy, horizon=16, changes=changes, lost=lost)
    submit, freeze = rig.link.submit, rig.loop.timeline.commit
    frozen: dict[int, list[float]] = {}

    def submit_with_latency(observation: Observation) -> None:
        rig.link.latency_ns = latencies[observation.id % 15] * STEP
        submit(observation)

    def commit(step: int, delay: int) -> Float:
        actions = freeze(step, delay)
        for i, action in enumerate(actions.tolist()):
            assert frozen.setdefault(step + i, action) == action
        return actions

    rig.link.submit, rig.loop.timeline.commit = submit_with_latency, commit
    for result in rig.run(50):
        if result.step in frozen:
            assert result.set_point.tolist() == frozen[result.step]


def test_an_observation_says_the_command_that_stands():
    rig = rig_of("forecast", changes={"delay_steps": 2}, latency_ns=2 * STEP)
    points = np.array([[0.0, 0.0], *(r.set_point for r in rig.run(20))])
    for observation in rig.link.sent:
        np.testing.assert_array_equal(observation.set_point, points[observation.step])


def test_no_error_is_told_of_a_forecast_that_a_reply_under_way_overtakes():
    """The robot does not know what that reply says; the server does, and forecasts again."""
    changes = {"delay_steps": 5, "execute_steps": 2}
    rig = rig_of("forecast", horizon=16, changes=changes, latency_ns=5 * STEP)
    told = [r.step for r in rig.run(30) if r.forecast_error is not None]
    assert told == [5]  # of the first observation, before which there was none
