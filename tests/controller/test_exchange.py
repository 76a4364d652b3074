"""A plan crosses whole; what is longer than there is room for is cut at its far end."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.exchange import PLAN_ROWS, PlanReader, PlanWriter, Sent, layout
from controller.plan import EMPTY, Plan
from controller.shared import Segment
from controller.timeline import Timeline
from tests.controller.executor_fakes import ARM, plan_of

NAME = f"test-exchange-{os.getpid()}"
INT64 = st.integers(-(2**63), 2**63 - 1)


@pytest.fixture
def segment():
    with Segment.create(NAME, layout(ARM)) as made:
        yield made


@pytest.fixture
def other(segment):
    """As another process has it."""
    attached = Segment.attach(NAME, layout(ARM))
    yield attached
    attached.close()


def same(got: Sent, sent: Sent) -> None:
    plan, wanted = got.plan, sent.plan
    assert got._replace(plan=EMPTY) == sent._replace(plan=EMPTY)
    assert (plan.first_step, plan.renewed_ns, plan.version, len(plan)) == (
        wanted.first_step, wanted.renewed_ns, wanted.version, len(wanted.observation_ids),
    )  # fmt: skip
    for step in range(plan.first_step - 1, plan.first_step + len(plan) + 1):
        assert plan.observation_id(step) == wanted.observation_id(step)
        for count in (1, 3):
            np.testing.assert_array_equal(plan.rows(step, count), wanted.rows(step, count))


@given(
    counts=st.lists(st.integers(0, PLAN_ROWS), min_size=1, max_size=4),
    numbers=st.lists(INT64, min_size=6, max_size=6),
    placed=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_every_field_comes_as_it_went(counts, numbers, placed):
    """Also where a longer plan stood before."""
    rng = np.random.default_rng(0)
    with Segment.create(f"{NAME}-a", layout(ARM)) as here:
        writer, reader = PlanWriter(here, ARM), PlanReader(here, ARM)
        for count in counts:
            first, renewed, version, episode, begin, trip = numbers
            ids = rng.integers(-1, 2**62, count)
            actions = rng.normal(size=(count, 3)).astype(np.float32)
            actions[rng.random((count, 3)) < 0.1] = np.nan
            plan = Plan(first, actions, ids, renewed, version)
            sent = Sent(plan, episode, begin, placed, trip)
            writer.write(sent)
            same(reader.read(), sent)


def test_before_the_first_plan_there_is_none(segment, other):
    assert PlanReader(segment, ARM).read() is None
    assert PlanReader(other, ARM).read() is None


def test_a_reader_that_comes_late_gets_the_newest(segment, other):
    writer = PlanWriter(segment, ARM)
    for version in range(5):
        writer.write(Sent(plan_of([[version, 0, 0]], version=version), 2, 50))
    reader = PlanReader(other, ARM)
    assert reader.read().plan.version == 4
    assert reader.read().plan.version == 4  # it stands until there is another


def test_what_was_read_is_the_readers_own(segment, other):
    writer, reader = PlanWriter(segment, ARM), PlanReader(other, ARM)
    writer.write(Sent(plan_of([[1, 2, 3]]), 0, 0))
    first = reader.read()
    for _ in range(3):
        writer.write(Sent(plan_of([[7, 8, 9]], version=2), 0, 0))
    assert first.plan.rows(0, 1) == [[1, 2, 3]]
    assert reader.read().plan.rows(0, 1) == [[7, 8, 9]]


def test_a_plan_that_is_too_long_is_cut_and_its_rest_follows_later(segment):
    writer, reader = PlanWriter(segment, ARM), PlanReader(segment, ARM)
    rows = np.arange(3.0 * (PLAN_ROWS + 10)).reshape(-1, 3)
    writer.write(Sent(plan_of(rows, first=100), 0, 0))
    plan = reader.read().plan
    assert len(plan) == PLAN_ROWS
    assert plan.rows(100, 1) == rows[:1].tolist()
    assert plan.rows(100 + PLAN_ROWS - 1, 2) == rows[PLAN_ROWS - 1 : PLAN_ROWS].tolist()
    assert plan.rows(100 + PLAN_ROWS, 1) == []
    writer.write(Sent(plan_of(rows[10:], first=110), 0, 0))
    plan = reader.read().plan
    assert plan.rows(100 + PLAN_ROWS + 9, 1) == rows[-1:].tolist()


def test_an_empty_plan_takes_the_old_one_away(segment):
    writer, reader = PlanWriter(segment, ARM), PlanReader(segment, ARM)
    writer.write(Sent(plan_of(np.ones((5, 3))), 0, 0))
    writer.write(Sent(EMPTY, 0, 0))
    assert len(reader.read().plan) == 0
    assert reader.read().plan.rows(0, 1) == []
    # A timeline's, with a row for the step under way that has no action and no width.
    writer.write(Sent(plan_of(np.ones((5, 3))), 0, 0))
    writer.write(Sent(Timeline(50).plan(0), 0, 0))
    assert [reader.read().plan.rows(step, 1) for step in range(5)] == [[]] * 5
