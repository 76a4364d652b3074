"""The schedules' tables against their definitions and published counts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.errors import OnsetError
from tests.vla.helpers import TABLES
from vla.schedule import constant, horizon_aware, make_schedule, one_step


@given(
    horizon=st.integers(1, 40),
    steps=st.integers(1, 20),
    share=st.floats(0, 0.99),
)
def test_the_constant_table_is_what_its_docstring_says(horizon, steps, share):
    delay = int(share * horizon)
    schedule = constant(horizon, delay, steps)
    assert (schedule.steps, schedule.horizon) == (steps, horizon)
    for j in range(steps + 1):
        np.testing.assert_allclose(schedule.tau[j, delay:], (steps - j) / steps, atol=1e-6)
    assert (schedule.tau[:, :delay] == 0).all()
    assert schedule.ready_at.tolist() == [0] * delay + [steps] * (horizon - delay)
    assert (np.diff(schedule.tau, axis=0) <= 0).all()
    assert (schedule.tau[-1] == 0).all()


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ((0, 0, 1), "schedule.horizon"),
        ((4, 4, 1), "schedule.delay"),
        ((4, -1, 1), "schedule.delay"),
        ((4, 0, 0), "schedule.steps"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(arguments, field):
    with pytest.raises(OnsetError, match=field):
        constant(*arguments)


@pytest.mark.parametrize(
    ("horizon", "alpha", "delay", "finished"),
    [
        (50, 0.6, 3, [1, 2, 4, 8, 12, 18, 24, 31, 38, 47]),
        (30, 0.7, 3, [1, 2, 4, 6, 9, 12, 15, 19, 22, 27]),
        (10, 0.6, 0, [1, 1, 1, 2, 3, 4, 5, 6, 8, 10]),
    ],
)
def test_the_horizon_aware_table_has_the_published_counts(horizon, alpha, delay, finished):
    ready = horizon_aware(horizon, delay, 10, alpha).ready_at
    assert [int(((ready > 0) & (ready <= j)).sum()) for j in range(1, 11)] == finished


@given(schedule=TABLES)
def test_a_horizon_aware_time_falls_from_one_and_is_nought_just_when_its_index_is_ready(schedule):
    tau, ready = schedule.tau, schedule.ready_at
    assert (np.diff(tau, axis=0) <= 0).all()
    assert (tau[0, ready > 0] == 1).all()
    assert (np.diff(ready) >= 0).all()
    for j in range(schedule.steps + 1):
        np.testing.assert_array_equal(tau[j] == 0, ready <= j)
    free = ready[ready > 0]
    assert free[0] == 1
    assert len(free) == 1 or free[-1] == schedule.steps


@given(horizon=st.integers(1, 40), steps=st.integers(1, 20), share=st.floats(0, 0.99))
def test_a_hit_time_of_nought_is_the_constant_schedule(horizon, steps, share):
    delay = int(share * horizon)
    has, flat = horizon_aware(horizon, delay, steps, u0=0.0), constant(horizon, delay, steps)
    np.testing.assert_allclose(has.tau, flat.tau, atol=1e-6)
    np.testing.assert_array_equal(has.ready_at, flat.ready_at)


@given(
    horizon=st.integers(2, 40),
    steps=st.integers(1, 20),
    shares=st.tuples(st.floats(0, 0.5), st.floats(0, 0.99)),
)
def test_what_nobody_waits_for_is_finished_with_the_first_index_behind_it(horizon, steps, shares):
    delay = int(shares[0] * horizon)
    unused = int(shares[1] * (horizon - delay))
    schedule = horizon_aware(horizon, delay, steps, unused=unused)
    # Behind them it is the table of a chunk that is as much shorter.
    short = horizon_aware(horizon - unused, delay, steps)
    np.testing.assert_array_equal(schedule.tau[:, delay + unused :], short.tau[:, delay:])
    np.testing.assert_array_equal(schedule.ready_at[delay + unused :], short.ready_at[delay:])
    assert (schedule.ready_at[delay : delay + unused + 1] == 1).all()
    assert (schedule.ready_at[:delay] == 0).all()
    assert (make_schedule("has", horizon, delay, steps, unused).tau == schedule.tau).all()


def test_one_step_is_one_jump_from_noise():
    schedule = one_step(5, 2)
    assert schedule.tau.tolist() == [[0, 0, 1, 1, 1], [0, 0, 0, 0, 0]]
    assert schedule.ready_at.tolist() == [0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"alpha": 0.0}, "alpha"),
        ({"alpha": float("nan")}, "alpha"),
        ({"u0": 1.0}, "u0"),
        ({"u0": -0.1}, "u0"),
        ({"delay": 8}, "delay"),
        ({"steps": 0}, "steps"),
        ({"unused": -1}, "unused"),
        ({"delay": 3, "unused": 5}, "unused"),
    ],
)
def test_a_horizon_aware_table_that_makes_no_sense_is_refused(changes, field):
    with pytest.raises(OnsetError, match=f"schedule.{field}"):
        horizon_aware(**{"horizon": 8, "delay": 0, "steps": 10, **changes})
