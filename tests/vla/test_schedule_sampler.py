"""The schedule's table and the Euler loop, against fields whose end is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.errors import OnsetError
from controller.strategy import STRATEGIES
from tests.vla.helpers import PROMPTS, inputs_of, observation
from vla.engine import Engine
from vla.flow import flow_matching_loss, interpolate, velocity_from_clean
from vla.policy import Context
from vla.sampler import Sampler
from vla.schedule import (
    AVERAGE,
    SCHEDULES,
    Schedule,
    constant,
    horizon_aware,
    make_schedule,
    one_step,
)

CONTEXT = Context((), torch.zeros(1, 1), 0)
H, A = 6, 2


class Field:
    """A velocity field; remembers what it was asked."""

    horizon, action_dim = H, A

    def __init__(self, velocity):
        self._velocity = velocity
        self.asked: list[tuple[torch.Tensor, torch.Tensor]] = []

    def encode(self, inputs):
        return CONTEXT

    def velocity(self, x, tau, context):
        self.asked.append((x.clone(), tau.clone()))
        return self._velocity(x, tau)


def noise(batch: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, H, A, generator=torch.Generator().manual_seed(seed))


def whole(policy, schedule, start, committed=None) -> torch.Tensor:
    """The chunk; indices that never ripen stay NaN."""
    chunk = torch.full_like(start, torch.nan)
    for ripe in Sampler(policy, schedule).run(CONTEXT, start, committed):
        chunk[:, torch.from_numpy(ripe.indices)] = ripe.values
    return chunk


# The table


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


tables = st.tuples(
    st.integers(1, 60), st.floats(0, 0.99), st.integers(1, 20), st.floats(0.1, 3.0)
).map(lambda t: horizon_aware(t[0], int(t[1] * t[0]), t[2], t[3]))


@given(schedule=tables)
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


# The loop


def staircase(steps: int, delay: int, order: np.ndarray) -> Schedule:
    """Index i is finished after ``order[i]`` steps; the first ``delay`` from the start."""
    ready = np.where(np.arange(H) < delay, 0, order)
    j = np.arange(steps + 1)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        tau = np.where(ready > 0, np.clip(1 - j / np.maximum(ready, 1), 0, 1), 0)
    return Schedule("staircase", tau.astype(np.float32), ready.astype(np.int64))


@settings(max_examples=30)
@given(data=st.data(), steps=st.integers(1, 8), delay=st.integers(0, H - 1))
def test_every_free_index_is_yielded_exactly_once_when_the_table_says(data, steps, delay):
    order = np.array(data.draw(st.lists(st.integers(1, steps), min_size=H, max_size=H)))
    schedule = staircase(steps, delay, order)
    pieces = list(Sampler(Field(lambda x, tau: x), schedule).run(CONTEXT, noise(2)))
    seen = np.concatenate([piece.indices for piece in pieces])
    assert sorted(seen) == list(range(delay, H))
    for piece in pieces:
        assert (schedule.ready_at[piece.indices] == piece.step).all()
        assert (np.diff(piece.indices) > 0).all()
        assert piece.values.shape == (2, len(piece.indices), A)
    assert [piece.final for piece in pieces] == [False] * (len(pieces) - 1) + [True]


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_constant_velocity_ends_at_the_start_less_the_velocity(steps):
    v = noise(seed=1)
    ended = whole(Field(lambda x, tau: v), constant(H, 0, steps), noise())
    torch.testing.assert_close(ended, noise() - v, atol=1e-5, rtol=0)


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_the_field_of_one_action_ends_there_exactly(steps):
    # v = (x - a) / t is a straight line to a: Euler is exact in any number of steps.
    a = noise(3, seed=2)
    ended = whole(Field(lambda x, tau: (x - a) / tau[..., None]), constant(H, 0, steps), noise(3))
    torch.testing.assert_close(ended, a, atol=1e-5, rtol=0)


def test_a_staircase_reaches_the_action_at_every_index():
    a, order = noise(seed=2), np.array([1, 2, 2, 3, 5, 5])
    field = Field(lambda x, tau: (x - a) / tau.clamp(min=1e-3)[..., None])
    ended = whole(field, staircase(5, 0, order), noise())
    torch.testing.assert_close(ended, a, atol=1e-5, rtol=0)


def test_committed_actions_are_clean_before_every_step_and_never_yielded():
    committed = torch.full((1, 2, A), 9.0)
    field = Field(lambda x, tau: x + 1)
    ended = whole(field, constant(H, 2, 4), noise(), committed)
    assert len(field.asked) == 4
    for step, (x, tau) in enumerate(field.asked):
        torch.testing.assert_close(x[:, :2], committed)
        assert (tau[:, :2] == 0).all()
        torch.testing.assert_close(tau[:, 2:], torch.full((1, H - 2), 1 - step / 4))
    assert torch.isnan(ended[:, :2]).all()
    assert torch.isfinite(ended[:, 2:]).all()


@settings(max_examples=30)
@given(schedule=tables, share=st.floats(0, 1))
def test_an_early_stop_yields_what_the_full_run_yields_and_nothing_unfinished(schedule, share):
    a = torch.randn(1, schedule.horizon, A, generator=torch.Generator().manual_seed(0))
    start = torch.randn(a.shape, generator=torch.Generator().manual_seed(1))

    def run(executed):
        # Not exact for Euler: what an index ends with depends on the steps it was given.
        field = Field(lambda x, tau: (x - a) * tau[..., None].cos())
        pieces = list(Sampler(field, schedule, executed).run(CONTEXT, start))
        values = {int(i): p.values[:, n] for p in pieces for n, i in enumerate(p.indices)}
        return values, pieces, len(field.asked)

    free = int((schedule.ready_at > 0).sum())
    executed = max(1, round(share * free))
    full, _, all_steps = run(None)
    early, pieces, steps = run(executed)
    first = np.flatnonzero(schedule.ready_at > 0)[:executed]
    assert set(first) <= set(early)
    assert steps == schedule.ready_at[first].max() <= all_steps
    assert all(schedule.ready_at[i] <= steps for i in early)
    for index, value in early.items():
        assert torch.equal(value, full[index])
    assert [p.final for p in pieces] == [False] * (len(pieces) - 1) + [True]


@pytest.mark.parametrize("executed", [0, 5])
def test_more_executed_indices_than_free_ones_are_refused(executed):
    with pytest.raises(OnsetError, match="schedule.executed"):
        Sampler(Field(lambda x, tau: x), constant(H, 2, 4), executed)


class Jumps:
    """Knows average velocities only; remembers what it was asked."""

    horizon, action_dim = H, A

    def __init__(self, end: torch.Tensor):
        self.end = end
        self.asked: list[tuple[torch.Tensor, torch.Tensor]] = []

    def encode(self, inputs):
        return CONTEXT

    def velocity(self, x, tau, context):
        pytest.fail("an average schedule asked for a velocity")

    def average_velocity(self, x, start, end, context):
        self.asked.append((start.clone(), end.clone()))
        return (x - self.end) / start.clamp(min=1e-5)[..., None]


@pytest.mark.parametrize("name", AVERAGE)
def test_an_average_schedule_asks_for_the_jump_from_each_row_to_the_next(name):
    policy, schedule = Jumps(noise(seed=2)), make_schedule(name, H, 1, 4)
    ended = whole(policy, schedule, noise(), torch.zeros(1, 1, A))
    torch.testing.assert_close(ended[:, 1:], policy.end[:, 1:], atol=1e-5, rtol=0)
    for (start, end), before, after in zip(
        policy.asked, schedule.tau[:-1], schedule.tau[1:], strict=True
    ):
        np.testing.assert_array_equal(start[0], before)
        np.testing.assert_array_equal(end[0], after)


def test_the_average_schedules_are_the_plain_tables():
    assert [name for name in SCHEDULES if make_schedule(name, 8, 1, 10).average] == list(AVERAGE)
    np.testing.assert_array_equal(
        make_schedule("has_meanflow", 8, 1, 10).tau, horizon_aware(8, 1, 10).tau
    )


def test_sampling_leaves_the_noise_it_was_given_alone():
    start = noise()
    whole(Field(lambda x, tau: x), constant(H, 2, 3), start, torch.zeros(1, 2, A))
    torch.testing.assert_close(start, noise())


# The convention


def test_flow_time_runs_from_noise_at_one_to_the_action_at_zero():
    a, n = noise(seed=3), noise(seed=4)
    torch.testing.assert_close(interpolate(a, n, torch.ones(1, H)), n)
    torch.testing.assert_close(interpolate(a, n, torch.zeros(1, H)), a)


def test_the_velocity_is_noise_minus_action_and_an_euler_step_moves_along_x_t():
    a, n = noise(seed=3), noise(seed=4)
    t, later = torch.full((1, H), 0.8), torch.full((1, H), 0.3)
    x = interpolate(a, n, t)
    v = velocity_from_clean(x, a, t)
    torch.testing.assert_close(v, n - a, atol=1e-5, rtol=1e-5)
    moved = x + v * (later - t)[..., None]
    torch.testing.assert_close(moved, interpolate(a, n, later), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("time", [1.0, 0.3, 1e-2, 1e-4])
def test_a_step_to_time_zero_ends_at_the_predicted_action_however_small_it_is(time):
    clean, t = noise(seed=5), torch.full((1, H), time)
    ended = noise() - velocity_from_clean(noise(), clean, t) * t[..., None]
    torch.testing.assert_close(ended, clean, atol=1e-5, rtol=0)


def test_at_time_zero_the_velocity_is_finite():
    assert velocity_from_clean(noise(), noise(seed=1), torch.zeros(1, H)).isfinite().all()


def test_the_loss_is_nought_at_the_action_and_blind_behind_the_mask_and_at_time_zero():
    a, tau = noise(seed=3), torch.full((1, H), 0.5)
    mask = torch.arange(H)[None] < 3
    wrong = a + torch.where(mask, 0.0, 7.0)[..., None]
    assert flow_matching_loss(wrong, a, tau, mask) == 0
    # Velocity error (7 / t)^2, weighted by t.
    assert flow_matching_loss(wrong, a, tau, ~mask) == pytest.approx(49 / 0.5)
    assert flow_matching_loss(wrong, a, torch.where(mask, tau, 0.0), ~mask) == 0


# The built-in model


def test_equal_times_per_index_are_the_scalar_path(tiny):
    engine, model = Engine(tiny), tiny.model
    with torch.inference_mode():
        context = model.encode(inputs_of(engine, observation(1)))
        x = torch.randn(1, model.horizon, model.action_dim)
        scalar = torch.tensor([[0.4]]).expand(1, model.horizon)
        written_out = torch.full((1, model.horizon), 0.4)
        torch.testing.assert_close(
            model.velocity(x, scalar, context), model.velocity(x, written_out, context)
        )
        # A time of one index is that index's own: it changes the velocity there most directly.
        one = written_out.clone()
        one[0, 3] = 0.9
        assert not torch.allclose(
            model.velocity(x, one, context)[0, 3], model.velocity(x, written_out, context)[0, 3]
        )


def test_rows_of_a_batch_at_different_times_do_not_touch(tiny):
    engine, model = Engine(tiny), tiny.model
    with torch.inference_mode():
        context = model.encode(inputs_of(engine, observation(1)))
        x = torch.randn(2, model.horizon, model.action_dim)
        tau = torch.tensor([[0.9], [0.2]]).expand(2, model.horizon)
        # Two draws of one sample: they share its keys and values.
        shared = replace(context, summary=context.summary.expand(2, -1))
        both = model.velocity(x, tau, shared)
        for row in range(2):
            alone = model.velocity(x[row : row + 1], tau[row : row + 1], context)
            torch.testing.assert_close(both[row : row + 1], alone, atol=1e-5, rtol=1e-5)


def test_a_chunk_can_be_made_again_from_its_id_and_seed(tiny):
    first = Engine(tiny, seed=3).chunk(observation(5), PROMPTS[0])
    np.testing.assert_array_equal(first, Engine(tiny, seed=3).chunk(observation(5), PROMPTS[0]))
    other = Engine(tiny, seed=4).chunk(observation(5), PROMPTS[0])
    assert np.abs(first - other).max() > 1e-3


def test_expert_steps_come_from_the_checkpoint_or_from_the_caller(tiny):
    assert Engine(tiny).schedule.steps == 4
    (finished,) = Engine(tiny, expert_steps=2).stream(observation(0), PROMPTS[0])
    assert (finished.expert_steps, finished.final) == (2, True)


def test_what_is_streamed_is_the_full_run_index_by_index(mean_flow):
    for name in SCHEDULES:
        engine = Engine(mean_flow, schedule=name)
        seen = observation(3)
        streamed: dict[int, np.ndarray] = {}
        for part in engine.stream(seen, PROMPTS[0]):
            streamed |= dict(zip((part.steps - seen.step).tolist(), part.actions, strict=True))
        # The full run: the Euler loop written out, without streaming and without an early stop.
        model, scales = mean_flow.model, mean_flow.normaliser
        with torch.inference_mode():
            context = model.encode(inputs_of(engine, seen))
            generator = torch.Generator().manual_seed(seen.id)
            x = torch.randn(1, model.horizon, model.action_dim, generator=generator)
            table = torch.from_numpy(engine.schedule.tau)
            for before, after in zip(table[:-1], table[1:], strict=True):
                if engine.schedule.average:
                    v = model.average_velocity(x, before[None], after[None], context)
                else:
                    v = model.velocity(x, before[None], context)
                x = x + v * (after - before)[:, None]
        full = scales.actions(x[0].numpy(), seen.state, np.arange(model.horizon))
        assert sorted(streamed) == list(range(model.horizon))
        for index, action in streamed.items():
            np.testing.assert_allclose(action, full[index], atol=1e-5)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_conditioned_chunk_continues_the_committed_actions(mean_flow, name):
    engine, seen = Engine(mean_flow, schedule=name), observation(3)
    given = np.linspace(0, 0.6, 6).reshape(3, 2).astype(np.float32)
    prefix = STRATEGIES["prefix"]
    parts = list(engine.stream(replace(seen, committed=given, delay=3), PROMPTS[0], prefix))
    steps = np.concatenate([part.steps for part in parts])
    assert sorted(steps - seen.step) == list(range(3, mean_flow.model.horizon))
    moved = replace(seen, committed=given + 0.5, delay=3)
    others = list(engine.stream(moved, PROMPTS[0], prefix))
    assert np.abs(parts[0].actions - others[0].actions).max() > 1e-4
    # An unconditioned one begins at its first index, and does not see them.
    free = [engine.stream(replace(seen, committed=c), PROMPTS[0]) for c in (given, given + 0.5)]
    firsts = [next(iter(stream)) for stream in free]
    assert firsts[0].steps[0] == seen.step
    np.testing.assert_array_equal(firsts[0].actions, firsts[1].actions)


@pytest.mark.parametrize("name", AVERAGE)
def test_a_checkpoint_without_the_head_lists_what_it_offers(tiny, name):
    with pytest.raises(OnsetError, match=rf"schedule: given {name}; .*\['constant', 'has'\]"):
        Engine(tiny, schedule=name)


@pytest.mark.parametrize("executed", [0, 9])
def test_an_engine_refuses_to_execute_more_than_there_is(tiny, executed):
    with pytest.raises(OnsetError, match=r"schedule.executed: given \d; allowed: 1..8"):
        Engine(tiny, executed=executed)


def test_an_engine_refuses_no_steps(tiny):
    with pytest.raises(OnsetError, match="schedule.steps"):
        Engine(tiny, expert_steps=0)


def test_a_first_velocity_that_is_known_is_not_asked_for_again():
    policy, start = Field(lambda x, tau: x - tau[..., None]), noise()
    schedule = constant(H, 0, 4)
    expected = list(Sampler(policy, schedule).run(CONTEXT, start))[-1].values
    first = policy.velocity(start, torch.ones(1, H), CONTEXT)
    policy.asked.clear()
    found = list(Sampler(policy, schedule).run(CONTEXT, start, velocity=first))[-1].values
    torch.testing.assert_close(found, expected)
    assert len(policy.asked) == schedule.steps - 1
