"""A plan is read by step; a gap is no action."""

from __future__ import annotations

import numpy as np
import pytest

from controller.plan import EMPTY
from controller.timeline import Timeline
from tests.controller.executor_fakes import plan_of
from tests.controller.timeline_fakes import piece


@pytest.mark.parametrize("step", [-3, -1, 0, 1, 10**12])
def test_the_empty_plan_has_nothing(step):
    assert EMPTY.action(step) is None
    assert EMPTY.observation_id(step) == -1
    assert EMPTY.renewed_ns == -1


def test_rows_are_steps_and_what_is_before_or_behind_is_nothing():
    plan = plan_of([[1, 2, 3], [4, 5, 6]], first=7, ids=[3, 4])
    assert [plan.observation_id(step) for step in range(5, 11)] == [-1, -1, 3, 4, -1, -1]
    assert plan.action(7).tolist() == [1, 2, 3]
    assert plan.action(8).tolist() == [4, 5, 6]
    assert plan.action(6) is None  # a negative row is not the last one
    assert plan.action(9) is None


def test_a_gap_is_no_action():
    plan = plan_of([[1, 2, 3], [np.nan, 0, 0], [7, 8, 9]], ids=[3, -1, 4])
    assert plan.action(1) is None
    assert plan.observation_id(1) == -1
    assert plan.action(2).tolist() == [7, 8, 9]


def test_rows_go_on_to_the_first_gap():
    plan = plan_of([[1, 2, 3], [4, 5, 6], [0, 0, 0], [7, 8, 9]], first=7, ids=[3, 3, -1, 4])
    assert plan.rows(7, 1) == [[1, 2, 3]]
    assert plan.rows(7, 9) == [[1, 2, 3], [4, 5, 6]]
    assert plan.rows(10, 9) == [[7, 8, 9]]
    assert [plan.rows(step, 2) for step in (6, 9, 11)] == [[], [], []]


def test_an_action_that_is_not_finite_is_given_as_it_came():
    plan = plan_of([[1, np.nan, 3]])
    assert np.isnan(plan.action(0)[1])


def test_what_a_timeline_gives_away_is_what_stands_in_it():
    timeline = Timeline(50)
    timeline.merge(piece(3, range(2, 6)), 0, 500)
    plan = timeline.plan(0)
    assert plan.first_step == 0
    assert [plan.action(step) is None for step in range(7)] == [True, True, *[False] * 4, True]
    assert [plan.observation_id(step) for step in range(2, 6)] == [3] * 4
    assert plan.renewed_ns == 500
    version = plan.version
    timeline.merge(piece(4, range(4, 6)), 0, 700)
    plan = timeline.plan(0)
    assert plan.version > version
    assert plan.renewed_ns == 700
    assert [plan.observation_id(step) for step in range(2, 6)] == [3, 3, 4, 4]
