"""The Euler loop, against fields whose end is known and with the built-in model."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.errors import OnsetError
from controller.strategy import STRATEGIES
from tests.vla.helpers import PROMPTS, TABLES, inputs_of, observation
from vla.engine import Engine
from vla.policy import Context
from vla.sampler import Sampler
from vla.schedule import (
    AVERAGE,
    SCHEDULES,
    Schedule,
    constant,
    horizon_aware,
    make_schedule,
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
@given(schedule=TABLES, share=st.floats(0, 1))
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


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0])
def test_a_chunk_begins_with_as_much_noise_as_the_checkpoint_says(tiny, scale):
    engine = Engine(replace(tiny, meta=replace(tiny.meta, noise_scale=scale)), seed=3)
    seen, model = observation(5), tiny.model
    generator = torch.Generator().manual_seed(3 * 1_000_003 + seen.id)
    drawn = torch.randn(1, model.horizon, model.action_dim, generator=generator)
    with torch.inference_mode():
        context = model.encode(inputs_of(engine, seen))
        sampler = Sampler(model, engine.schedule)
        *_, last = sampler.run(context, scale * drawn)
    expected = tiny.normaliser.actions(last.values[0].numpy(), seen.state, last.indices)
    np.testing.assert_allclose(engine.chunk(seen, PROMPTS[0]), expected, atol=1e-4)


def test_without_noise_the_seed_changes_nothing(tiny):
    still = replace(tiny, meta=replace(tiny.meta, noise_scale=0.0))
    chunks = [Engine(still, seed=seed).chunk(observation(5), PROMPTS[0]) for seed in (3, 4)]
    np.testing.assert_array_equal(*chunks)


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
