"""The table of strategies, and what a loop's settings may say about them."""

from dataclasses import replace

import pytest

from controller.errors import ErrorCode, OnsetError
from controller.loop_types import LoopConfig
from controller.strategy import STRATEGIES, get_strategy
from tests.controller.helpers import MS
from tests.controller.loop_fakes import FAST, Rig


def test_each_strategy_is_found_by_its_own_name():
    names = [strategy.name for strategy in STRATEGIES.values()]
    assert names == list(STRATEGIES)
    assert len({strategy.about for strategy in STRATEGIES.values()}) == len(STRATEGIES)
    assert all(get_strategy(name) is STRATEGIES[name] for name in STRATEGIES)
    assert FAST.way is STRATEGIES["naive"]


def test_an_unknown_strategy_is_refused_with_those_that_there_are():
    with pytest.raises(OnsetError) as caught:
        get_strategy("magic", "open.strategy")
    assert (caught.value.code, caught.value.field) == (ErrorCode.UNKNOWN_STRATEGY, "open.strategy")
    assert all(name in caught.value.allowed for name in STRATEGIES)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_late_chunk_begins_behind_the_delay_and_any_other_at_once(name):
    strategy = STRATEGIES[name]
    starts = [strategy.start(delay) for delay in range(5)]
    assert starts == ([0, 1, 2, 3, 4] if strategy.late else [0] * 5)


def test_who_continues_is_guided_or_begins_late_counts_on_a_delay():
    counting = {name for name, strategy in STRATEGIES.items() if strategy.delayed}
    assert counting == set(STRATEGIES) - {"sync", "naive", "blend"}


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_fixed_delay_is_for_those_alone_that_count_on_one(name):
    if STRATEGIES[name].delayed:
        assert LoopConfig(10 * MS, 4, strategy=name, delay_steps=2).delay_steps == 2
        return
    with pytest.raises(OnsetError) as caught:
        LoopConfig(10 * MS, 4, strategy=name, delay_steps=2)
    assert (caught.value.code, caught.value.field) == (ErrorCode.BAD_VALUE, "config.delay_steps")


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"strategy": "magic"}, ErrorCode.UNKNOWN_STRATEGY, "config.strategy"),
        ({"strategy": "prefix", "delay_steps": -1}, ErrorCode.BAD_VALUE, "config.delay_steps"),
        ({"strategy": "prefix", "delay_steps": 1025}, ErrorCode.BAD_VALUE, "config.delay_steps"),
        ({"speedup": 0}, ErrorCode.BAD_VALUE, "config.speedup"),
        ({"speedup": 1025}, ErrorCode.BAD_VALUE, "config.speedup"),
        ({"execute_steps": 0}, ErrorCode.BAD_VALUE, "config.execute_steps"),
        ({"control_period_ns": 0}, ErrorCode.BAD_VALUE, "config.control_period_ns"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(changes, code, field):
    with pytest.raises(OnsetError) as caught:
        replace(FAST, **changes)
    assert (caught.value.code, caught.value.field) == (code, field)


@pytest.mark.parametrize("name", ["forecast", "onset", "oracle"])
def test_a_late_beginning_without_anyone_who_can_forecast_it_is_refused(name):
    """There is no servo model of this robot, and nobody knows the truth."""
    with pytest.raises(OnsetError, match=r"servo\.robot|forecaster"):
        Rig(replace(FAST, strategy=name))
