"""The timeline against a second account of the same episode, under shuffle, delay and loss.

The account keeps no timeline: per step it notes who offered an action in time, what was promised,
and how the step ended. What must stand follows from these notes.
"""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from controller.errors import OnsetError
from controller.timeline import MergeResult, Timeline
from controller.types import ActionSlice
from tests.controller.timeline_fakes import piece

HORIZON_LIMIT = 12
Value = tuple[float, float]


def value(action) -> Value | None:
    return None if action is None else tuple(action.tolist())


class Account:
    """Notes of one episode.

    Attributes:
        present: The step that is under way, or about to begin.
        begun: Whether the present step is under way.
        offered: Step to the observations whose action came in time.
        promised: Step to the observation whose action is committed.
        ended: Step to how it began: "acted", "missing" or "skipped".
    """

    def __init__(self) -> None:
        self.present, self.begun = 0, False
        self.offered: dict[int, set[int]] = {}
        self.promised: dict[int, int] = {}
        self.ended: dict[int, str] = {}

    def owner(self, step: int) -> int | None:
        """The observation whose action must stand at a step."""
        return self.promised.get(step, max(self.offered.get(step, ()), default=None))

    def standing(self, step: int) -> Value | None:
        owner = self.owner(step)
        return None if owner is None else (float(owner), float(step))

    def offer(self, step: int, observation_id: int, at_step: int) -> str:
        """Notes an action and says what must become of it."""
        if step < at_step:
            return "late"
        if step >= at_step + HORIZON_LIMIT:
            return "beyond"
        owner = self.owner(step)
        if owner == observation_id:
            return "duplicate"
        if step in self.promised:
            return "committed"
        if owner is not None and owner > observation_id:
            return "superseded"
        self.offered.setdefault(step, set()).add(observation_id)
        return "amended" if step in self.ended else "accepted"


class Episodes(RuleBasedStateMachine):
    """Observations are answered in slices that come late, twice, in any order, or never."""

    @initialize()
    def begin(self) -> None:
        self.timeline = Timeline(HORIZON_LIMIT)
        self.first_id = self.next_id = 0
        self.sent: list[ActionSlice] = []
        self.account = Account()

    @rule(
        ahead=st.integers(0, 4),
        length=st.integers(1, 14),
        cuts=st.sets(st.integers(1, 13), max_size=3),
        delay=st.integers(0, 5),
    )
    def observe(self, ahead, length, cuts, delay) -> None:
        """Commits what will be executed meanwhile, where the step has not begun."""
        account = self.account
        if not account.begun:
            committed = [value(a) for a in self.timeline.commit(account.present, delay)]
            expected = []
            for step in range(account.present, account.present + delay):
                if account.owner(step) is None:
                    break
                account.promised[step] = account.owner(step)
                expected.append(account.standing(step))
            assert committed == expected
        first = account.present + ahead
        edges = [0, *sorted(cut for cut in cuts if cut < length), length]
        for begin, end in zip(edges, edges[1:], strict=False):
            self.sent.append(piece(self.next_id, list(range(first + begin, first + end))))
        self.next_id += 1

    @precondition(lambda self: self.sent)
    @rule(picks=st.lists(st.integers(0, 1000), min_size=1, max_size=6))
    def deliver(self, picks) -> None:
        """Some of the slices sent, any order; the same one may come again, others never."""
        for pick in picks:
            item = self.sent[-1 - pick % len(self.sent)]
            merged = self.timeline.merge(item, self.account.present)
            if item.observation_id < self.first_id:
                expected = Counter(stale=len(item.steps))
            else:
                expected = Counter(
                    self.account.offer(step, item.observation_id, self.account.present)
                    for step in item.steps.tolist()
                )
            assert merged == MergeResult(**expected)
            assert sum(vars(merged).values()) == len(item.steps)

    @precondition(lambda self: not self.account.begun)
    @rule()
    def execute(self) -> None:
        step = self.account.present
        assert value(self.timeline.execute(step)) == self.account.standing(step)
        self.account.ended[step] = "missing" if self.account.owner(step) is None else "acted"
        self.account.begun = True

    @rule(passed=st.sampled_from([0, 0, 0, 1, 3]))
    def go_on(self, passed) -> None:
        """The next step is about to begin; one that has not begun by now never does."""
        account = self.account
        following = account.present + account.begun + passed
        for step in range(account.present + account.begun, following):
            account.ended[step] = "skipped"
        account.present, account.begun = following, False

    @rule(ahead=st.integers(0, 8))
    def drop(self, ahead) -> None:
        account = self.account
        first = account.present + account.begun + ahead
        gone = [s for s in account.offered if s >= first and s not in account.promised]
        assert self.timeline.drop(first) == len(gone)
        for step in gone:
            del account.offered[step]

    @rule()
    def reset(self) -> None:
        self.first_id = self.next_id
        self.timeline.reset(self.first_id)
        self.account = Account()

    @invariant()
    def what_stands_is_what_must(self) -> None:
        account = self.account
        ahead = range(account.present, account.present + HORIZON_LIMIT + 5)
        for step in ahead:
            assert value(self.timeline.action(step)) == account.standing(step)
        gap = next(step for step in ahead if account.owner(step) is None or step in account.ended)
        assert self.timeline.ahead(account.present) == gap - account.present
        planned = self.timeline.planned(account.present, HORIZON_LIMIT)
        whole = range(account.present, min(gap, account.present + HORIZON_LIMIT))
        assert [value(action) for action in planned] == [account.standing(s) for s in whole]

    @invariant()
    def nothing_is_left_of_what_is_past(self) -> None:
        first = self.timeline.next_step
        assert all(self.timeline.action(step) is None for step in range(first - 1))
        waiting = [step for step in self.account.offered if step >= first]
        assert self.timeline.last_step == max(waiting, default=None)
        under_way = self.account.owner(first - 1)
        assert self.timeline.under_way_id == (-1 if under_way is None else under_way)

    @invariant()
    def every_step_until_now_has_one_end(self) -> None:
        """Of those passed over, the timeline knows when the next one is executed."""
        last = self.timeline.next_step
        assert set(range(last)) <= set(self.account.ended)
        ends = Counter(self.account.ended[step] for step in range(last))
        assert (self.timeline.missing, self.timeline.skipped) == (ends["missing"], ends["skipped"])

    @invariant()
    def no_step_is_executed_again(self) -> None:
        if self.timeline.next_step > 0:
            with pytest.raises(OnsetError):
                self.timeline.execute(self.timeline.next_step - 1)


TestEpisodes = Episodes.TestCase
TestEpisodes.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_without_a_commitment_between_the_order_of_arrival_changes_nothing(data):
    """Within one step, after any earlier history, before and after the step begins."""
    starts = st.tuples(st.integers(0, 10), st.integers(1, 9))
    sent = [
        piece(observation_id, list(range(first, first + length)))
        for observation_id, (first, length) in enumerate(data.draw(st.lists(starts, max_size=8)))
    ]
    half = len(sent) // 2
    earlier, now = sent[:half], sent[half:]
    delay, begun = data.draw(st.integers(0, 4)), data.draw(st.booleans())
    one, other = Timeline(HORIZON_LIMIT), Timeline(HORIZON_LIMIT)
    for timeline, order in ((one, now), (other, data.draw(st.permutations(now)))):
        for item in earlier:
            timeline.merge(item, 0)
        timeline.execute(0)
        timeline.commit(1, delay)
        if begun:
            timeline.execute(1)
        for item in order:
            timeline.merge(item, 1)
    for step in range(1, 25):
        assert value(one.action(step)) == value(other.action(step))
