"""What a link waits for, what it counts, and what it says of its state: no network, no waiting."""

from random import Random

import pytest

from controller.client_backoff import Backoff, Patience
from controller.client_ledger import Ledger
from controller.client_types import LinkConfig, LinkStats
from controller.errors import OnsetError
from controller.link_state import LinkState, StateKeeper
from controller.mailbox import Letter, Mailbox
from tests.controller.grpc_fakes import answer
from tests.controller.helpers import MS, observation


def letter(id: int, **changes) -> Letter:
    return Letter(observation(id=id, **changes), put_ns=0, era=0)


def partial(id: int, final: bool = False):
    piece = answer(observation(id=id), 2)
    return type(piece)(id, piece.start_step, piece.steps, piece.actions, final)


def test_waits_are_random_shares_of_a_bound_that_doubles_up_to_its_own():
    waits = [[] for _ in range(8)]
    for seed in range(400):
        backoff = Backoff(0.05, 0.25, Random(seed))
        for into in waits:
            into.append(backoff.next_s())
    for into, bound in zip(waits, (0.05, 0.1, 0.2, *[0.25] * 5), strict=True):
        assert 0.95 * bound < max(into) <= bound
        assert min(into) < 0.05 * bound
        assert 0.4 < sum(into) / len(into) / bound < 0.6
    backoff.reset()
    assert backoff.next_s() <= 0.05


def test_the_same_seed_draws_the_same_waits():
    one, two = (Backoff(0.05, 0.25, Random(7)) for _ in range(2))
    assert [one.next_s() for _ in range(5)] == [two.next_s() for _ in range(5)]


def test_patience_doubles_when_it_was_too_short_and_comes_back_with_quick_replies():
    patience = Patience(0.25)
    for expected in (0.5, 1.0, 2.0, 4.0, 8.0, 8.0):
        patience.missed()
        assert patience.deadline_s == expected
    for _ in range(40):
        patience.answered(0.05)
    assert patience.deadline_s == 0.25


def test_patience_stays_over_twice_what_replies_take():
    patience = Patience(0.25)
    patience.answered(0.3)
    assert patience.deadline_s == 0.6
    patience.answered(0.05)
    assert patience.deadline_s == pytest.approx(0.48)


def test_a_server_that_was_gone_costs_no_patience():
    patience = Patience(0.25)
    patience.missed()
    patience.missed()
    for _ in range(3):  # attempts to open that fail
        patience.excuse()
    assert patience.deadline_s == 0.5
    patience.answered(0.24)
    patience.excuse()  # a later failure is about nothing that was missed
    assert patience.deadline_s == pytest.approx(0.48)


def test_an_observation_is_awaited_until_it_or_a_newer_one_is_answered():
    ledger = Ledger(LinkStats())
    ledger.begin(0.0)
    assert ledger.silence_s(9.0) == 0.0
    ledger.sending(letter(1), 10.0)
    ledger.sending(letter(2), 11.0)
    assert ledger.silence_s(11.5) == 1.5
    assert ledger.answered(partial(2), 12.0) == 1.0
    ledger.heard(12.0)
    assert ledger.silence_s(12.5) == 0.5  # its chunk is not complete
    assert ledger.answered(partial(2, final=True), 13.0) is None
    ledger.heard(13.0)
    assert ledger.silence_s(20.0) == 0.0
    assert len(ledger) == 1  # the first one is still owed an answer, if nobody waits for it


def test_a_pause_of_ones_own_is_no_silence():
    ledger = Ledger(LinkStats())
    ledger.begin(0.0)
    ledger.sending(letter(1), 0.0)
    ledger.heard(0.0)
    ledger.excuse(3.0)
    assert ledger.silence_s(3.1) == pytest.approx(0.1)


def test_each_observation_ends_under_one_heading():
    stats = LinkStats()
    ledger = Ledger(stats)
    ledger.begin(0.0)
    for id in range(6):
        ledger.sending(letter(id), float(id))
    ledger.sending(letter(4), 6.0)  # once more
    ledger.answered(partial(0, final=True), 7.0)
    ledger.answered(partial(0, final=True), 7.0)
    ledger.superseded(1)
    ledger.superseded(99)
    assert ledger.refused(2).observation.id == 2
    assert ledger.refused(2) is None
    assert ledger.end().observation.id == 5
    assert (stats.answered, stats.superseded, stats.refused, stats.lost) == (1, 2, 1, 3)
    assert stats.observations == 7
    assert len(ledger) == 0


def test_only_what_was_not_heard_of_and_is_the_last_is_given_back():
    ledger = Ledger(LinkStats())
    ledger.begin(0.0)
    ledger.sending(letter(1), 0.0)
    ledger.answered(partial(1), 0.0)
    assert ledger.end() is None
    ledger.begin(0.0)
    ledger.sending(letter(1), 0.0)
    ledger.sending(letter(2), 0.0)
    ledger.superseded(2)
    assert ledger.end() is None


def test_a_slice_is_a_stray_unless_its_observation_can_have_been_sent_in_this_session():
    ledger = Ledger(LinkStats())
    ledger.begin(0.0)
    assert not ledger.asked(3)
    for id in (3, 5):
        ledger.sending(letter(id), 0.0)
    assert [ledger.asked(id) for id in (2, 3, 4, 5, 6)] == [False, True, True, True, False]
    ledger.end()
    ledger.begin(0.0)
    assert not ledger.asked(3)


def test_a_letter_knows_its_deadline_and_what_is_left_of_it():
    timed = letter(1, deadline_ns=100 * MS)
    assert not timed.expired(100 * MS - 1)
    assert timed.expired(100 * MS)
    assert timed.outgoing(30 * MS).deadline_ns == 70 * MS
    untimed = letter(1, deadline_ns=0)
    assert not untimed.expired(10**18)
    assert untimed.outgoing(10**18).deadline_ns == 0


def test_an_observation_goes_back_once_and_only_in_its_episode_and_before_newer_ones():
    box = Mailbox("e", "p")
    box.put(observation(id=1))
    first = box.take()
    assert box.put_back(first)
    again = box.take()
    assert (again.observation, again.put_ns, again.resent) == (
        first.observation,
        first.put_ns,
        True,
    )
    assert not box.put_back(again)
    box.put(observation(id=2))
    assert not box.put_back(first)
    box.take()
    box.put_reset("f", "q")
    assert not box.put_back(first)


def test_a_prompt_outlives_the_observation_that_carried_it():
    box = Mailbox("e", "first")
    box.put(observation(id=1, prompt="second"))
    box.keep_prompt(box.take())
    box.put(observation(id=2))
    assert box.take().observation.prompt == "second"

    box.put(observation(id=3, prompt="third"))
    unsent = box.take()
    box.put(observation(id=4))
    box.keep_prompt(unsent)
    assert box.take().observation.prompt == "third"

    box.put(observation(id=5, prompt="fourth"))
    box.keep_prompt(box.take())
    assert box.take_opening() == ("e", "fourth")  # said with the Open
    box.put(observation(id=6))
    assert box.take().observation.prompt is None

    box.put(observation(id=7, prompt="fifth"))
    unsent = box.take()
    box.put_reset("f", "sixth")
    box.keep_prompt(unsent)
    box.take()
    box.put(observation(id=8))
    assert box.take().observation.prompt is None


def test_a_status_is_whole_and_the_last_one_is_closed():
    times = iter(range(1, 100))
    told = []
    keeper = StateKeeper(told.append, lambda: next(times))
    assert (keeper.state, keeper.status.since_ns) == (LinkState.CONNECTING, 1)
    keeper.enter(LinkState.CONNECTING, "still")
    assert keeper.status.since_ns == 1
    keeper.enter(LinkState.STREAMING, "opened")
    keeper.enter(LinkState.CLOSED, "done")
    keeper.enter(LinkState.STREAMING, "too late")
    assert [(s.state, s.since_ns, s.reason) for s in told] == [
        (LinkState.STREAMING, 2, "opened"),
        (LinkState.CLOSED, 3, "done"),
    ]
    assert keeper.status.age_ns(10) == 7
    assert keeper.status.age_ns(1) == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"reply_deadline_s": 0.0}, "config.reply_deadline_s: given 0.0"),
        ({"stale_after_s": float("nan")}, "config.stale_after_s: given nan"),
        ({"min_backoff_s": 1.0}, "at most max_backoff_s = 0.25"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, words):
    with pytest.raises(OnsetError, match=words):
        LinkConfig(**changes)
