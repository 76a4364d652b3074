import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.errors import ErrorCode, OnsetError
from controller.timeline import MergeResult, Timeline
from controller.types import ActionSlice
from tests.controller.timeline_fakes import piece


def standing(timeline: Timeline, until: int) -> list[tuple[float, ...] | None]:
    actions = [timeline.action(step) for step in range(until)]
    return [None if action is None else tuple(action) for action in actions]


@st.composite
def pieces(draw) -> list[ActionSlice]:
    """Chunks of several observations, each cut into slices."""
    cut = []
    for observation_id in range(draw(st.integers(1, 5))):
        start = draw(st.integers(0, 12))
        length = draw(st.integers(1, 10))
        edge = draw(st.integers(0, length))
        steps = list(range(start, start + length))
        cut += [piece(observation_id, part) for part in (steps[:edge], steps[edge:]) if part]
    return cut


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_what_stands_does_not_depend_on_the_order_of_arrival(data):
    sent = data.draw(pieces())
    doubled = sent + data.draw(st.lists(st.sampled_from(sent), max_size=4))
    shuffled = data.draw(st.permutations(doubled))
    one, other = Timeline(), Timeline()
    for item in sent:
        one.merge(item, 0)
    total = sum((other.merge(item, 0) for item in shuffled), start=MergeResult())
    assert standing(one, 30) == standing(other, 30)
    counted = sum(vars(total).values())
    assert counted == sum(len(item.steps) for item in shuffled)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_under_shuffle_delay_doubling_and_loss_nothing_is_executed_twice_or_skipped_unseen(data):
    sent = data.draw(pieces())
    kept = [item for item in sent if data.draw(st.booleans())]
    kept += data.draw(st.lists(st.sampled_from(sent), max_size=4))
    # Each arrives at the beginning of a step, or (True) while the step is under way.
    moments = st.tuples(st.integers(0, 20), st.booleans())
    coming = [(data.draw(moments), item) for item in data.draw(st.permutations(kept))]
    timeline = Timeline()
    newest: dict[int, float] = {}  # step to the newest observation that has an action for it
    promised: dict[int, tuple[float, ...]] = {}
    executed: set[int] = set()
    missing = 0

    def receive(moment: tuple[int, bool]) -> MergeResult:
        total = MergeResult()
        for item in [item for at, item in coming if at <= moment]:
            total += timeline.merge(item, moment[0])
            for at in item.steps.tolist():
                newest[at] = max(newest.get(at, 0), item.observation_id)
        coming[:] = [(at, item) for at, item in coming if at > moment]
        return total

    step = 0
    while step < 25:
        assert receive((step, False)).amended == 0
        if data.draw(st.booleans()):
            delay = data.draw(st.integers(0, 4))
            for offset, action in enumerate(timeline.commit(step, delay)):
                value = tuple(action)
                assert promised.setdefault(step + offset, value) == value
        begun = timeline.execute(step)
        missing += begun is None
        with pytest.raises(OnsetError):
            timeline.execute(step)
        amended = receive((step, True)).amended
        ended = timeline.action(step)
        # It changes under way when that is counted, and only then.
        assert (ended is not begun) == (amended > 0)
        assert step not in executed
        executed.add(step)
        free = (newest[step], step) if step in newest else None
        assert (None if ended is None else tuple(ended)) == promised.get(step, free)
        step += data.draw(st.sampled_from([1, 1, 1, 2]))
    assert timeline.missing == missing
    assert timeline.skipped == max(executed) + 1 - len(executed)


def test_a_committed_action_stays_and_the_new_chunk_takes_over_behind_it():
    timeline = Timeline()
    timeline.merge(piece(0, list(range(8))), 0)
    committed = timeline.commit(2, 3)
    assert committed.tolist() == [[0, 2], [0, 3], [0, 4]]
    merged = timeline.merge(piece(1, list(range(2, 12))), 2)
    assert merged == MergeResult(accepted=7, committed=3)
    owners = [timeline.action(step)[0] for step in range(12)]
    assert owners == [0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1]


def test_without_a_commitment_the_present_step_is_still_open():
    timeline = Timeline()
    timeline.merge(piece(0, [0, 1]), 0)
    assert timeline.commit(0, 0).size == 0
    timeline.merge(piece(1, [0, 1]), 0)
    assert timeline.execute(0).tolist() == [1, 0]


def test_a_newer_observation_amends_the_step_under_way_and_an_older_one_never_does():
    timeline = Timeline()
    timeline.merge(piece(1, [0, 1]), 0)
    timeline.execute(0)
    assert timeline.merge(piece(2, [0, 1, 2]), 0) == MergeResult(amended=1, accepted=2)
    assert timeline.action(0).tolist() == [2, 0]
    assert timeline.merge(piece(1, [0]), 0) == MergeResult(superseded=1)
    assert timeline.merge(piece(2, [0]), 0) == MergeResult(duplicate=1)
    assert timeline.action(0).tolist() == [2, 0]
    # The step is over, also before the next one has begun.
    assert timeline.merge(piece(3, [0, 1]), 1) == MergeResult(late=1, accepted=1)


def test_a_committed_step_is_not_amended():
    timeline = Timeline()
    timeline.merge(piece(0, [0, 1]), 0)
    timeline.commit(0, 1)
    timeline.execute(0)
    assert timeline.merge(piece(1, [0, 1]), 0) == MergeResult(committed=1, accepted=1)
    assert timeline.action(0).tolist() == [0, 0]


def test_a_step_that_began_without_an_action_takes_one_under_way():
    timeline = Timeline()
    assert timeline.execute(0) is None
    assert timeline.merge(piece(0, [0]), 0) == MergeResult(amended=1)
    assert timeline.action(0).tolist() == [0, 0]
    assert timeline.missing == 1


def test_fewer_actions_are_committed_where_the_chunk_ends_or_has_a_gap():
    timeline = Timeline()
    timeline.merge(piece(0, [0, 1, 3]), 0)
    assert timeline.commit(0, 6).tolist() == [[0, 0], [0, 1]]
    assert timeline.ahead(0) == 2
    assert timeline.last_step == 3
    # Step 3 was behind the gap, so it was not promised.
    assert timeline.merge(piece(1, [3]), 0).accepted == 1


def test_late_beyond_duplicate_and_superseded_are_told_apart():
    timeline = Timeline(horizon_limit=10)
    timeline.merge(piece(1, [0, 1, 2]), 0)
    timeline.execute(0)
    assert timeline.merge(piece(2, [0, 1, 10, 11]), 1) == MergeResult(accepted=2, late=1, beyond=1)
    assert timeline.merge(piece(2, [1, 2]), 1) == MergeResult(duplicate=1, accepted=1)
    assert timeline.merge(piece(1, [1, 2]), 1) == MergeResult(superseded=2)


def test_after_a_reset_the_earlier_episode_is_stale():
    timeline = Timeline()
    timeline.merge(piece(4, [0, 1]), 0)
    timeline.execute(0)
    timeline.reset(first_observation_id=5)
    assert timeline.last_step is None
    assert timeline.next_step == 0
    assert timeline.merge(piece(4, [0, 1]), 0) == MergeResult(stale=2)
    assert timeline.merge(piece(5, [0]), 0).accepted == 1


def test_actions_on_the_timeline_cannot_be_changed_from_outside():
    timeline = Timeline()
    item = piece(0, [0])
    timeline.merge(item, 0)
    item.actions[:] = 99
    assert timeline.action(0).tolist() == [0, 0]
    with pytest.raises(ValueError, match="read-only"):
        timeline.action(0)[0] = 1


def test_a_step_that_goes_back_is_refused():
    timeline = Timeline()
    timeline.execute(3)
    assert (timeline.missing, timeline.skipped) == (1, 3)
    with pytest.raises(OnsetError) as caught:
        timeline.execute(3)
    assert caught.value.code is ErrorCode.STEP_ORDER


def test_an_average_is_of_what_stands_and_the_newer_action():
    timeline = Timeline(new_share=0.7)
    timeline.merge(piece(1, [10, 20]), 0)
    timeline.merge(piece(2, [20, 30]), 0)
    np.testing.assert_allclose(timeline.action(20), [0.3 * 1 + 0.7 * 2, 20], rtol=1e-6)
    assert timeline.action(10).tolist() == [1, 10]
    assert timeline.action(30).tolist() == [2, 30]
    # And once more: the average is what stands.
    timeline.merge(piece(3, [20]), 0)
    np.testing.assert_allclose(timeline.action(20), [0.3 * 1.7 + 0.7 * 3, 20], rtol=1e-6)
    # What is dropped changes nothing.
    assert timeline.merge(piece(3, [20]), 0) == MergeResult(duplicate=1)
    assert timeline.merge(piece(2, [20]), 0) == MergeResult(superseded=1)
    np.testing.assert_allclose(timeline.action(20), [2.61, 20], rtol=1e-6)


def test_an_average_is_taken_of_the_step_under_way_and_never_of_a_committed_one():
    timeline = Timeline(new_share=0.7)
    timeline.merge(piece(0, [0, 1]), 0)
    timeline.commit(1, 1)
    timeline.execute(0)
    assert timeline.merge(piece(1, [0, 1]), 0) == MergeResult(amended=1, committed=1)
    np.testing.assert_allclose(timeline.action(0), [0.7, 0], rtol=1e-6)
    assert timeline.action(1).tolist() == [0, 1]


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, np.nan])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(OnsetError, match="new_share"):
        Timeline(new_share=share)


def test_what_is_planned_ends_at_a_gap_and_is_a_copy():
    timeline = Timeline()
    timeline.merge(piece(0, [0, 1, 3]), 0)
    planned = timeline.planned(0, 6)
    assert planned.tolist() == [[0, 0], [0, 1]]
    planned[:] = 9
    assert timeline.action(0).tolist() == [0, 0]
    assert timeline.planned(1, 1).tolist() == [[0, 1]]
    assert timeline.planned(2, 3).shape == (0, 0)
    # It promises nothing.
    assert timeline.merge(piece(1, [0, 1]), 0).accepted == 2


def test_what_is_dropped_leaves_what_is_committed_and_what_is_before():
    timeline = Timeline()
    timeline.merge(piece(0, list(range(6))), 0)
    timeline.commit(2, 1)
    assert timeline.drop(1) == 4
    assert standing(timeline, 6) == [(0, 0), None, (0, 2), None, None, None]


def test_the_step_under_way_tells_its_observation():
    timeline = Timeline()
    assert timeline.under_way_id == -1
    timeline.merge(piece(4, [0]), 0)
    timeline.execute(0)
    assert timeline.under_way_id == 4
    timeline.merge(piece(6, [0]), 0)
    assert timeline.under_way_id == 6
    timeline.execute(1)
    assert timeline.under_way_id == -1
