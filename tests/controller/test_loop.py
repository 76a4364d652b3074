from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.errors import ErrorCode, OnsetError
from controller.link import EpisodicLink
from controller.loop_types import TickCode
from controller.types import ActionKind, ActionSlice, Observation
from tests.controller.grpc_fakes import answer
from tests.controller.helpers import MS, ROBOT, WIDE
from tests.controller.loop_fakes import CONFIG, FAST, Rig, first_values

PREFIX = replace(FAST, strategy="prefix")


def test_with_no_delay_an_observation_is_acted_on_in_its_own_step():
    rig = Rig()
    results = rig.run(10)
    # Actions carry the id of their observation; a new one takes over in the step it was taken in.
    assert first_values(results) == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]
    assert [r.observed for r in results] == [i % 4 == 0 for i in range(10)]
    counters = rig.loop.counters
    assert (counters.starved, counters.late, counters.missed_deadlines) == (0, 0, 0)
    assert rig.loop.estimator.latency_ns is None  # three replies, all left out as cold


def test_with_a_delay_the_old_chunk_goes_on_until_the_new_one_takes_over():
    rig = Rig(replace(PREFIX, delay_steps=2), latency_ns=80 * MS)
    results = rig.run(12)
    assert first_values(results)[2:] == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]
    assert [r.code for r in results[:3]] == [TickCode.STARVED, TickCode.STARVED, TickCode.RUNNING]
    second = rig.link.sent[1]
    assert (second.step, second.delay) == (4, 2)
    assert second.committed.tolist() == [[0, 0], [0, 0]]
    assert second.deadline_ns == 4 * WIDE.period_ns  # the old chunk ends at step 8
    counters = rig.loop.counters
    assert counters.starved == 2
    assert counters.late == 2 * counters.slices  # two of each chunk's actions were past


def test_an_early_reply_does_not_touch_what_is_committed():
    rig = Rig(replace(PREFIX, delay_steps=3), latency_ns=40 * MS)
    results = rig.run(12)
    assert first_values(results)[1:] == [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2]
    assert rig.loop.counters.committed > 0


def test_naive_takes_a_new_chunk_over_as_soon_as_it_is_there_and_promises_nothing():
    rig = Rig(latency_ns=80 * MS)
    results = rig.run(40)
    # A reply after 80 ms is there for the step 2 after its observation's.
    assert first_values(results)[2:12] == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]
    assert {(o.delay, len(o.committed)) for o in rig.link.sent} == {(0, 0)}
    assert rig.loop.estimator.delay() == 2  # measured for the record


def test_a_lost_reply_is_bridged_by_the_rest_of_the_chunk_then_held():
    rig = Rig(lost={1, 2}, horizon=6)
    results = rig.run(13)
    codes = [r.code for r in results]
    assert codes == [TickCode.RUNNING] * 6 + [TickCode.STARVED] * 6 + [TickCode.RUNNING]
    assert first_values(results)[5:12] == [0] * 7
    assert rig.loop.counters.starved == 6


def test_an_empty_timeline_is_answered_at_once_only_when_nothing_is_on_its_way():
    config = replace(FAST, execute_steps=20)
    asking = Rig(config, horizon=3)
    asking.run(9)
    assert [o.step for o in asking.link.sent] == [0, 3, 6]
    waiting = Rig(config, horizon=3, latency_ns=80 * MS)
    waiting.run(9)
    assert [o.step for o in waiting.link.sent] == [0, 3, 6]
    patient = Rig(replace(config, observe_when_empty=False), horizon=3)
    patient.run(9)
    assert [o.step for o in patient.link.sent] == [0]


def test_no_observation_is_asked_for_while_the_rest_of_a_chunk_is_on_its_way():
    rig = Rig(replace(FAST, execute_steps=20))
    first, rest = (
        ActionSlice(0, 0, np.array(steps), np.zeros((len(steps), 2), np.float32), final)
        for steps, final in (([0], False), ([1, 2], True))
    )
    rig.link.poll = lambda now_ns: {5: [first], 85: [rest]}.get(now_ns // MS, [])
    results = rig.run(5)
    assert [r.code for r in results][1] is TickCode.STARVED
    assert [o.step for o in rig.link.sent] == [0, 3]


def test_set_points_go_in_a_straight_line_within_a_step():
    rig = Rig(CONFIG)
    rig.link.chunk = lambda o: replace(answer(o, 2), actions=np.ones((8, 2), np.float32))
    results = rig.run(6)
    np.testing.assert_allclose(first_values(results), [0.25, 0.5, 0.75, 1, 1, 1], atol=1e-6)
    assert [r.boundary for r in results] == [True, False, False, False, True, False]


def values_of(rig: Rig, values: dict[int, float]) -> None:
    """Lets every chunk hold the value of its observation's id."""
    rig.link.chunk = lambda o: replace(
        answer(o, 2), actions=np.full((8, 2), values[o.id], np.float32)
    )


def test_an_action_that_comes_within_its_step_is_used_within_it():
    rig = Rig(replace(CONFIG, execute_steps=2))
    values_of(rig, {0: 4.0, 1: 8.0})
    rig.run(8)
    rig.link.latency_ns = 15 * MS
    results = rig.run(4)
    # Step 2 holds 4; the answer is there at its third tick, and the rest of the way is to 8.
    np.testing.assert_allclose(first_values(results), [4, 4, 6, 8], atol=1e-6)
    counters = rig.loop.counters
    assert (counters.amended, counters.late, counters.starved) == (1, 0, 0)
    assert counters.steps == 3


def test_a_starved_step_runs_once_its_action_comes():
    rig = Rig(CONFIG, latency_ns=15 * MS)
    values_of(rig, {0: 1.0})
    results = rig.run(5)
    assert [r.code for r in results] == [TickCode.STARVED] * 2 + [TickCode.RUNNING] * 3
    np.testing.assert_allclose(first_values(results), [0, 0, 0.5, 1, 1], atol=1e-6)
    assert rig.loop.counters.starved == 1


def test_a_committed_step_goes_on_when_the_answer_comes_early():
    config = replace(CONFIG, execute_steps=2, strategy="prefix", delay_steps=1)
    rig = Rig(config)
    values_of(rig, {0: 4.0, 1: 8.0})
    rig.run(8)
    rig.link.latency_ns = 15 * MS
    results = rig.run(8)
    np.testing.assert_allclose(first_values(results), [4, 4, 4, 4, 5, 6, 7, 8], atol=1e-6)
    assert (rig.loop.counters.amended, rig.loop.counters.committed) == (0, 1)


@pytest.mark.parametrize(
    ("late", "expected", "code", "clamped", "refused"),
    [
        (5.0, [0.25, 0.5, 1.25, 2.0], TickCode.RUNNING, 1, 0),
        (np.nan, [0.25, 0.5, 0.75, 1.0], TickCode.REFUSED, 0, 1),
    ],
)
def test_what_comes_within_a_step_is_clamped_or_refused_as_at_its_beginning(
    late, expected, code, clamped, refused
):
    # Observation 0, taken before the limits matter, leaves 1 for step 2, which begins at 0.
    rig = Rig(replace(CONFIG, execute_steps=2), robot=ROBOT)
    first = np.array([[0, 0], [0, 0], [1, 0], [1, 0]], np.float32)
    rig.link.chunk = lambda o: replace(
        answer(o, 2, 4), actions=np.full((4, 2), [late, 0], np.float32) if o.id else first
    )
    rig.run(8)
    rig.link.latency_ns = 15 * MS
    results = rig.run(4)
    np.testing.assert_allclose(first_values(results), expected, atol=1e-6)
    assert results[-1].code is code
    assert (rig.loop.counters.clamped, rig.loop.counters.refused) == (clamped, refused)


def test_the_measured_delay_reaches_the_observation():
    rig = Rig(PREFIX, latency_ns=90 * MS)
    rig.run(30)
    # A reply after 90 ms is seen at the tick at 120 ms: 3 steps.
    assert rig.link.sent[-1].delay == 3
    assert len(rig.link.sent[-1].committed) == 3
    slow = Rig(replace(PREFIX, max_delay=1), latency_ns=90 * MS)
    results = slow.run(30)
    assert slow.link.sent[-1].delay == 1
    assert results[-1].delay_over_limit
    assert slow.loop.counters.over_limit > 0


def test_actions_are_clamped_and_what_is_not_finite_is_refused():
    rig = Rig(robot=ROBOT)
    actions = np.array([[5, 0.5], [1, -3], [np.nan, 0], [1, 1]], np.float32)
    rig.link.chunk = lambda o: replace(answer(o, 2, 4), actions=actions)
    results = rig.run(4)
    np.testing.assert_allclose([r.set_point for r in results], [[2, 0.5], [1, 0], [1, 0], [1, 1]])
    assert [r.code for r in results][2] is TickCode.REFUSED
    assert [r.clamped for r in results] == [True, True, False, False]
    assert (rig.loop.counters.clamped, rig.loop.counters.refused) == (2, 1)


def test_the_first_set_point_is_the_measured_state_by_name_within_the_limits():
    rig = Rig(robot=ROBOT, lost={0})
    rig.robot.state = np.array([0.7, -0.001, 3.0], np.float32)
    np.testing.assert_allclose(rig.tick().set_point, [0.7, 0.0])


def test_frames_carry_their_lags_and_the_oldest_stands_in_at_the_start():
    rig = Rig()
    rig.run(9)
    lagged = [o.frames["front"][:, 0, 0, 0].tolist() for o in rig.link.sent]
    assert lagged == [[0, 0], [4, 2], [8, 6]]  # lags (0, 2); frames carry the count of reads
    assert rig.link.sent[1].frames["wrist"].shape == (1, 16, 16, 3)


def test_steps_that_time_passed_over_are_counted_and_never_executed():
    rig = Rig(CONFIG)
    rig.run(2)
    rig.wait(130 * MS)
    result = rig.tick()
    assert (result.step, result.skipped, result.missed) == (3, 2, 13)
    counters = rig.loop.counters
    assert (counters.skipped, counters.missed_deadlines, counters.steps) == (2, 13, 2)
    assert rig.loop.timeline.next_step == 4


def test_small_jitter_is_no_missed_deadline():
    rig = Rig(CONFIG)
    for wait in (14, 6, 12, 8, 19, 1, 10):
        assert rig.tick().missed == 0
        rig.wait(wait * MS)


def test_time_that_goes_back_is_refused():
    rig = Rig()
    rig.run(2)
    with pytest.raises(OnsetError, match="now_ns"):
        rig.loop.tick(0)


def test_an_error_of_the_link_is_reported_and_the_robot_plays_out_its_actions():
    rig = Rig()
    rig.run(4)
    rig.link.error = OnsetError(ErrorCode.UNAVAILABLE, "session", "gone", "a server", fatal=True)
    results = rig.run(6)
    assert results[0].error is rig.link.error
    assert [r.code for r in results] == [TickCode.RUNNING] * 4 + [TickCode.STARVED] * 2
    assert rig.loop.counters.errors >= 1
    assert len(rig.robot.commands) == 10


def test_a_reading_that_is_not_finite_is_never_sent():
    rig = Rig()
    rig.run(4)
    rig.robot.state[0] = np.nan
    result = rig.tick()
    assert result.error is not None
    assert result.error.code is ErrorCode.NON_FINITE
    assert len(rig.link.sent) == 1
    assert np.isfinite(result.set_point).all()


def test_a_slice_of_another_shape_is_dropped_and_counted():
    rig = Rig()
    rig.link.chunk = lambda o: answer(o, 3)
    assert rig.tick().code is TickCode.STARVED
    assert rig.loop.counters.malformed == 1


def test_a_reset_begins_at_step_0_drops_old_replies_and_tells_the_link():
    rig = Rig(latency_ns=120 * MS)
    rig.run(2)
    assert isinstance(rig.link, EpisodicLink)
    rig.loop.reset(rig.clock.now_ns(), "hit the blue mole", "episode-2")
    assert rig.link.resets == [("episode-2", "hit the blue mole")]
    results = rig.run(5)
    assert [r.step for r in results] == [0, 1, 2, 3, 4]
    assert rig.loop.counters.stale == 8
    first = rig.link.sent[1]
    assert (first.id, first.step, first.prompt) == (1, 0, "hit the blue mole")
    assert first.frames["front"][1, 0, 0, 0] == first.frames["front"][0, 0, 0, 0]
    assert rig.link.sent[2].prompt is None


def test_a_changed_prompt_travels_with_the_next_observation():
    rig = Rig()
    rig.run(2)
    rig.loop.set_prompt("hit the green mole")
    rig.run(8)
    assert [o.prompt for o in rig.link.sent] == ["hit the red mole", "hit the green mole", None]


@pytest.mark.parametrize(
    ("robot", "config"),
    [
        (ROBOT, replace(CONFIG, control_period_ns=15 * MS)),
        (replace(ROBOT, state=ROBOT.state[:1]), CONFIG),
        (
            replace(
                ROBOT,
                action=(replace(ROBOT.action[0], kind=ActionKind.DELTA_STATE), ROBOT.action[1]),
            ),
            CONFIG,
        ),
    ],
)
def test_what_cannot_work_is_refused_at_once(robot, config):
    with pytest.raises(OnsetError):
        Rig(config, robot=robot)
    with pytest.raises(OnsetError):
        replace(CONFIG, strategy="magic")
    with pytest.raises(OnsetError, match="delay_steps"):
        replace(CONFIG, strategy="naive", delay_steps=2)


@settings(max_examples=60, deadline=None)
@given(
    latencies=st.lists(st.integers(0, 400), min_size=20, max_size=20),
    lost=st.sets(st.integers(0, 19), max_size=8),
    strategy=st.sampled_from(["naive", "prefix"]),
    delay=st.none() | st.integers(0, 6),
    control_ms=st.sampled_from([10, 40]),
)
def test_under_any_latency_each_step_is_executed_once_and_counted(
    latencies, lost, strategy, delay, control_ms
):
    delay = delay if strategy == "prefix" else None
    ticks = 40 // control_ms
    rig = Rig(
        replace(CONFIG, control_period_ns=control_ms * MS, strategy=strategy, delay_steps=delay),
        lost=lost,
        horizon=10,
    )
    submit = rig.link.submit

    def submit_with_latency(observation: Observation) -> None:
        rig.link.latency_ns = latencies[observation.id % 20] * MS
        submit(observation)

    rig.link.submit = submit_with_latency
    results = rig.run(40 * ticks)
    assert [r.step for r in results] == [at // ticks for at in range(40 * ticks)]
    counters = rig.loop.counters
    taken = counters.accepted + counters.amended
    dropped = counters.late + counters.committed + counters.superseded + counters.duplicate
    assert taken + dropped == 10 * counters.slices
    begun, ended = results[::ticks], results[ticks - 1 :: ticks]
    assert counters.starved == sum(r.code is TickCode.STARVED for r in begun)
    # Every step that has an action ends at it, and within it the id never falls back.
    running = [r for r in ended if r.code is TickCode.RUNNING]
    values = [float(r.set_point[0]) for r in running]
    assert values == sorted(values)
    steps = {o.id: o.step for o in rig.link.sent}
    for result, value in zip(running, values, strict=True):
        assert steps[int(value)] <= result.step
        assert value == int(value)
