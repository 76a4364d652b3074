"""The ladder: every rung and arrow, and that no sequence of inputs leaves it."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.errors import OnsetError
from controller.watchdog import WORDS, Change, LadderConfig, Mode, Reason, Watchdog

RUNNING, COASTING, DECELERATING, HOLDING, FAULT = Mode
FRESH, OLD = 100, 101
CONFIG = LadderConfig(fresh_ns=100)


def tick(dog: Watchdog, **changes) -> Change | None:
    """By default a fresh action for a moving arm."""
    now_ns = changes.pop("now_ns", 0)
    return dog.tick(now_ns, **{"action": True, "age_ns": FRESH, "at_rest": False, **changes})


def dog_in(mode: Mode, config: LadderConfig = CONFIG) -> Watchdog:
    """One that has come to a mode by the arrows."""
    dog = Watchdog(config)
    if mode is FAULT:
        dog.fault(0, Reason.ESTOP)
    elif mode is not HOLDING:
        tick(dog)
    if mode is COASTING:
        tick(dog, age_ns=OLD)
    elif mode is DECELERATING:
        tick(dog, action=False)
    dog.changes.clear()
    assert dog.mode is mode
    return dog


@pytest.mark.parametrize(
    ("old", "given_", "new", "reason"),
    [
        (HOLDING, {}, RUNNING, Reason.NONE),
        (HOLDING, {"age_ns": OLD, "at_rest": True}, HOLDING, Reason.PLAN_OLD),
        (HOLDING, {"action": False, "at_rest": True}, HOLDING, Reason.NO_ACTION),
        (HOLDING, {"stop": True, "at_rest": True}, HOLDING, Reason.STOPPING),
        (RUNNING, {}, RUNNING, Reason.NONE),
        (RUNNING, {"age_ns": OLD}, COASTING, Reason.PLAN_OLD),
        (RUNNING, {"action": False}, DECELERATING, Reason.NO_ACTION),
        (RUNNING, {"action": False, "at_rest": True}, HOLDING, Reason.NO_ACTION),
        (RUNNING, {"action": False, "refused": True}, DECELERATING, Reason.ACTION_REFUSED),
        (RUNNING, {"stop": True}, DECELERATING, Reason.STOPPING),
        (RUNNING, {"stop": True, "at_rest": True}, HOLDING, Reason.STOPPING),
        (COASTING, {}, RUNNING, Reason.NONE),
        (COASTING, {"age_ns": 10**12}, COASTING, Reason.PLAN_OLD),
        (COASTING, {"age_ns": OLD, "action": False}, DECELERATING, Reason.NO_ACTION),
        (COASTING, {"age_ns": OLD, "stop": True}, DECELERATING, Reason.STOPPING),
        (DECELERATING, {}, RUNNING, Reason.NONE),
        (DECELERATING, {"age_ns": OLD}, DECELERATING, Reason.PLAN_OLD),
        (DECELERATING, {"age_ns": OLD, "at_rest": True}, HOLDING, Reason.PLAN_OLD),
        (DECELERATING, {"action": False, "at_rest": True}, HOLDING, Reason.NO_ACTION),
        (DECELERATING, {"stop": True}, DECELERATING, Reason.STOPPING),
        (FAULT, {}, FAULT, Reason.ESTOP),
        (FAULT, {"action": False, "at_rest": True}, FAULT, Reason.ESTOP),
        (FAULT, {"stop": True, "at_rest": True}, FAULT, Reason.ESTOP),
    ],
)
def test_every_arrow_of_the_diagram(old, given_, new, reason):
    dog = dog_in(old)
    change = tick(dog, now_ns=5, **given_)
    assert (dog.mode, dog.reason) == (new, reason)
    assert change == (None if new is old else Change(5, old, new, reason))
    assert dog.changes == Counter({(old, new): 1} if new is not old else {})


@pytest.mark.parametrize("old", [RUNNING, COASTING, DECELERATING, HOLDING])
@pytest.mark.parametrize("reason", [Reason.ESTOP, Reason.TRACKING, Reason.LIMIT, Reason.ROBOT])
def test_a_fault_comes_from_anywhere_and_the_first_one_stays(old, reason):
    dog = dog_in(old)
    assert dog.fault(3, reason) == Change(3, old, FAULT, reason)
    assert dog.fault(4, Reason.NOT_FINITE) is None
    assert tick(dog) is None
    assert (dog.mode, dog.reason) == (FAULT, reason)
    assert dog.reset(5) == Change(5, FAULT, HOLDING, Reason.NO_ACTION)
    assert dog.changes == {(old, FAULT): 1, (FAULT, HOLDING): 1}


@pytest.mark.parametrize("mode", [RUNNING, COASTING, DECELERATING, HOLDING])
def test_a_reset_is_for_a_fault_only(mode):
    dog = dog_in(mode)
    assert dog.reset(1) is None
    assert dog.mode is mode
    assert not dog.changes


def test_it_starts_by_holding():
    dog = Watchdog(LadderConfig())
    assert (dog.mode, dog.reason) == (HOLDING, Reason.NO_ACTION)


@pytest.mark.parametrize("mode", [HOLDING, DECELERATING])
def test_an_old_plan_starts_nothing_until_it_is_renewed(mode):
    dog = dog_in(mode)
    for _ in range(10):
        tick(dog, age_ns=OLD, at_rest=mode is HOLDING)
        assert dog.mode is mode
    tick(dog)
    assert dog.mode is RUNNING


def test_an_old_plan_is_played_out_no_longer_than_told():
    config = LadderConfig(fresh_ns=100, coast_ns=150)
    dog = dog_in(RUNNING, config)
    modes = []
    for age_ns in (100, 101, 150, 151, 120, 100):
        tick(dog, age_ns=age_ns)
        modes.append(dog.mode)
    assert modes == [RUNNING, COASTING, COASTING, DECELERATING, DECELERATING, RUNNING]


def test_the_way_to_the_park_pose_is_no_reason_to_brake():
    dog = dog_in(HOLDING)
    tick(dog, stop=True, at_rest=True)
    for _ in range(3):
        tick(dog, stop=True, at_rest=False)
        assert (dog.mode, dog.reason) == (HOLDING, Reason.STOPPING)
    # Let go of on its way, it brakes as any moving arm does.
    tick(dog, action=False, at_rest=False)
    assert dog.mode is DECELERATING


def test_a_change_says_what_and_why():
    assert all(WORDS[reason] for reason in Reason)
    said = str(Change(0, RUNNING, COASTING, Reason.PLAN_OLD))
    assert said == f"RUNNING -> COASTING: {WORDS[Reason.PLAN_OLD]}"


@pytest.mark.parametrize(
    "wrong", [{"fresh_ns": 0}, {"coast_ns": 499_999_999}, {"resume_ns": -1}, {"tracking_ns": -1}]
)
def test_thresholds_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(OnsetError, match=next(iter(wrong))):
        LadderConfig(**wrong)


TICKS = st.fixed_dictionaries(
    {
        "action": st.booleans(),
        "age_ns": st.sampled_from([-5, 0, 99, 100, 101, 200, 201, 10**15]),
        "at_rest": st.booleans(),
        "refused": st.booleans(),
        "stop": st.booleans(),
    }
)


@given(
    inputs=st.lists(st.one_of(TICKS, st.sampled_from(list(Reason)[5:]), st.none()), max_size=60),
    coast_ns=st.sampled_from([None, 100, 200]),
)
@settings(max_examples=300, deadline=None)
def test_no_sequence_of_inputs_leaves_the_ladder(inputs, coast_ns):
    """A dict is a tick, a reason a fault, None a reset."""
    dog = Watchdog(LadderConfig(fresh_ns=100, coast_ns=coast_ns))
    seen: Counter[tuple[Mode, Mode]] = Counter()
    for now_ns, given_ in enumerate(inputs):
        old = dog.mode
        if given_ is None:
            change = dog.reset(now_ns)
            assert dog.mode is (HOLDING if old is FAULT else old)
        elif isinstance(given_, Reason):
            change = dog.fault(now_ns, given_)
            assert dog.mode is FAULT
        else:
            change = dog.tick(now_ns, **given_)
            fresh = given_["action"] and given_["age_ns"] <= 100 and not given_["stop"]
            if old is FAULT:
                assert dog.mode is FAULT
            else:
                assert (dog.mode is RUNNING) == fresh
            if dog.mode is COASTING:
                assert old in (RUNNING, COASTING)
                assert given_["action"]
            if dog.mode is HOLDING and old is not HOLDING:
                assert given_["at_rest"]
            assert (dog.reason is Reason.NONE) == (dog.mode is RUNNING)
        assert (change is not None) == (dog.mode is not old)
        if change is not None:
            assert (change.old, change.new, change.now_ns) == (old, dog.mode, now_ns)
            assert change.reason is dog.reason
            seen[old, dog.mode] += 1
    assert dog.changes == seen
    assert not {(FAULT, RUNNING), (FAULT, COASTING), (FAULT, DECELERATING)} & set(seen)
    assert not {(HOLDING, COASTING), (DECELERATING, COASTING)} & set(seen)
