"""Inference-time RTC, against its formulas written out and fields whose Jacobian is known."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.errors import ErrorCode, OnsetError
from tests.vla.helpers import inputs_of, observation
from vla.engine import Engine
from vla.flow import velocity_from_clean
from vla.guidance import Guide, for_autograd, guidance_weight, guided_velocity, rtc_weights
from vla.policy import Context
from vla.sampler import Sampler
from vla.schedule import AVERAGE, constant, horizon_aware, make_schedule

CONTEXT = Context((), torch.zeros(1, 1), 0)
B, H, A = 2, 6, 2
RULES = ("vjp", "identity")


class Field:
    """A velocity field."""

    horizon, action_dim = H, A

    def __init__(self, velocity):
        self._velocity = velocity

    def encode(self, inputs):
        return CONTEXT

    def velocity(self, x, tau, context):
        return self._velocity(x, tau)

    def average_velocity(self, x, start, end, context):
        pytest.fail("a guide was taken along a jump")


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def times(seed: int = 0) -> torch.Tensor:
    return torch.rand(
        B, H, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).clamp(0.05, 0.95)


def gaussian(mean: torch.Tensor, scale: float) -> Field:
    """The exact field of actions that are normal about a mean, each on its own."""

    def velocity(x, tau):
        t = tau[..., None]
        gain = (1 - t) * scale**2 / ((1 - t) ** 2 * scale**2 + t**2)
        return velocity_from_clean(x, mean + gain * (x - (1 - t) * mean), tau)

    return Field(velocity)


def whole(policy, schedule, start, guide=None, committed=None, context=CONTEXT) -> torch.Tensor:
    chunk = torch.full_like(start, torch.nan)
    for ripe in Sampler(policy, schedule).run(context, start, committed, guide):
        chunk[:, torch.from_numpy(ripe.indices)] = ripe.values
    return chunk


# The rule


def test_on_a_linear_field_the_vjp_is_the_closed_form():
    matrix, offset = draw(H * A, H * A, seed=1), draw(H * A, seed=2)
    field = Field(lambda x, tau: (x.flatten(1) @ matrix.T + offset).unflatten(1, (H, A)))
    x, y, tau, weights = draw(B, H, A), draw(B, H, A, seed=3), times(), rtc_weights(H, 2, 1)
    guided = guided_velocity(field, x, tau, CONTEXT, Guide(y, weights, beta=3.0))
    for row in range(B):
        # Row by row in numpy: clean = x - t (M x + b), so J = I - diag(t) M.
        m, t = matrix.numpy(), tau[row].numpy().repeat(A)
        xs, ys = x[row].numpy().ravel(), y[row].numpy().ravel()
        v = m @ xs + offset.numpy()
        jacobian = np.eye(H * A) - np.diag(t) @ m
        error = weights.numpy().repeat(A) * (ys - (xs - t * v))
        gain = np.minimum(3.0, ((1 - t) ** 2 + t**2) / (t * (1 - t)))
        expected = v - gain * (jacobian.T @ error)
        np.testing.assert_allclose(guided[row].numpy().ravel(), expected, rtol=1e-9)


def test_on_a_bent_field_the_vjp_is_the_slope_of_the_error_by_finite_differences():
    first, second = draw(H * A, 9, seed=1), draw(9, H * A, seed=2)

    def velocity(x, tau):
        return (torch.tanh(x.flatten(1) @ first) @ second).unflatten(1, (H, A)) * (
            1 + tau[..., None]
        )

    x, y, tau, weights = draw(B, H, A), draw(B, H, A, seed=3), times(), rtc_weights(H, 2, 1)
    guided = guided_velocity(Field(velocity), x, tau, CONTEXT, Guide(y, weights))

    def misfit(at):
        clean = at - tau[..., None] * velocity(at, tau)
        return (weights[:, None] * (y - clean) ** 2).sum() / 2

    # J^T [W (Y - clean)] is how fast the misfit falls.
    slope, small = torch.zeros_like(x), 1e-5
    for place in np.ndindex(B, H, A):
        step = torch.zeros_like(x)
        step[place] = small
        slope[place] = (misfit(x - step) - misfit(x + step)) / (2 * small)
    expected = velocity(x, tau) - guidance_weight(tau, 5.0)[..., None] * slope
    torch.testing.assert_close(guided, expected, rtol=1e-6, atol=1e-7)


def test_the_identity_rule_is_the_vjp_where_the_jacobian_is_the_identity():
    wind = draw(1, H, A, seed=1)
    field = Field(lambda x, tau: wind + 0 * x)
    x, y, tau = draw(B, H, A), draw(B, H, A, seed=3), times()
    vjp, identity = (
        guided_velocity(field, x, tau, CONTEXT, Guide(y, rtc_weights(H, 2, 1), rule))
        for rule in RULES
    )
    assert torch.equal(vjp, identity)
    assert not torch.allclose(vjp, field.velocity(x, tau, CONTEXT))


def test_the_rules_differ_where_it_is_not():
    field, y = gaussian(draw(1, H, A, seed=1), 0.5), draw(B, H, A, seed=3)
    vjp, identity = (
        guided_velocity(field, draw(B, H, A), times(), CONTEXT, Guide(y, torch.ones(H), rule))
        for rule in RULES
    )
    assert not torch.allclose(vjp, identity)


def test_the_identity_rule_and_its_weights_are_lerobots():
    rtc = pytest.importorskip("lerobot.policies.rtc.modeling_rtc", reason="needs the serve extra")
    from lerobot.configs import RTCAttentionSchedule
    from lerobot.policies.rtc.configuration_rtc import RTCConfig

    delay, executed, beta = 2, 1, 4.0
    # Its own defaults are linear weights that end at index 10, and 10 for beta.
    config = RTCConfig(prefix_attention_schedule=RTCAttentionSchedule.EXP, max_guidance_weight=beta)
    peer = rtc.RTCProcessor(config)
    weights = rtc_weights(H, delay, executed)
    torch.testing.assert_close(peer.get_prefix_weights(delay, H - executed, H), weights)
    field = gaussian(draw(1, H, A, seed=1), 0.5)
    x, y = draw(B, H, A), draw(B, H, A, seed=3)
    for time in (1.0, 0.7, 0.5, 0.1):
        tau = torch.full((B, H), time, dtype=torch.float64)
        theirs = peer.denoise_step(
            x, y, delay, time, lambda x, tau=tau: field.velocity(x, tau, CONTEXT), H - executed
        )
        ours = guided_velocity(field, x, tau, CONTEXT, Guide(y, weights, "identity", beta))
        torch.testing.assert_close(ours, theirs.detach())


@pytest.mark.parametrize("rule", RULES)
def test_an_index_at_time_zero_is_left_alone_and_leaves_the_others_alone(rule):
    field, tau = gaussian(draw(1, H, A, seed=1), 0.5), times()
    tau[:, :2] = 0.0
    x, y = draw(B, H, A), draw(B, H, A, seed=3)
    far = y.clone()
    far[:, :2] += 100.0
    one, other = (
        guided_velocity(field, x, tau, CONTEXT, Guide(target, torch.ones(H), rule))
        for target in (y, far)
    )
    assert torch.equal(one, other)
    assert torch.equal(one[:, :2], field.velocity(x, tau, CONTEXT)[:, :2])


def test_each_sample_has_its_own_weights():
    field, x, y, tau = gaussian(torch.zeros(1, H, A), 0.5), draw(B, H, A), draw(B, H, A), times()
    weights = torch.stack([torch.zeros(H), torch.ones(H)])
    both = guided_velocity(field, x, tau, CONTEXT, Guide(y, weights))
    for row in range(B):
        alone = guided_velocity(field, x, tau, CONTEXT, Guide(y, weights[row]))
        torch.testing.assert_close(both[row], alone[row])


def test_a_policy_that_carries_no_gradient_is_refused_by_the_vjp_only():
    @torch.no_grad()
    def velocity(x, tau):
        return x * 0.5

    x, y, tau = draw(B, H, A), draw(B, H, A), times()
    guided_velocity(Field(velocity), x, tau, CONTEXT, Guide(y, torch.ones(H), "identity"))
    with pytest.raises(OnsetError, match="guide.rule: given vjp; allowed: identity"):
        guided_velocity(Field(velocity), x, tau, CONTEXT, Guide(y, torch.ones(H)))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"target": torch.zeros(H, A)}, "guide.target"),
        ({"weights": torch.ones(H - 1)}, "guide.weights"),
        ({"weights": torch.ones(B + 1, H)}, "guide.weights"),
        ({"rule": "jvp"}, "guide.rule"),
        ({"beta": 0.0}, "guide.beta"),
        ({"beta": math.inf}, "guide.beta"),
    ],
)
def test_a_guide_that_makes_no_sense_is_refused(changes, field):
    with pytest.raises(OnsetError, match=field):
        Guide(**({"target": torch.zeros(B, H, A), "weights": torch.ones(H)} | changes))


# Sampling


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("steps", [5, 10])
@settings(max_examples=20)
@given(seed=st.integers(0, 10_000))
def test_a_guided_chunk_ends_nearer_to_the_target_where_it_is_committed(rule, steps, seed):
    mean, start = draw(1, H, A, seed=seed), draw(B, H, A, seed=seed + 1)
    field, schedule = gaussian(mean, 0.5), constant(H, 0, steps)
    # A previous chunk is one that the policy might have made.
    y = mean + 0.5 * draw(B, H, A, seed=seed + 2)
    guide = Guide(y, rtc_weights(H, 2, 3), rule)
    free, guided = (whole(field, schedule, start, g) for g in (None, guide))
    # Over all of it: an index that was near by chance may move a little away.
    before, after = ((chunk - y)[:, :2].abs() for chunk in (free, guided))
    assert after.mean() < 0.7 * before.mean()
    # The field moves each index on its own: what has no weight is not moved.
    torch.testing.assert_close(guided[:, 3:], free[:, 3:])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("schedule", [constant(H, 1, 5), horizon_aware(H, 1, 5)])
def test_a_guide_without_weight_changes_nothing_at_all(rule, schedule):
    field, start, committed = gaussian(draw(1, H, A), 0.5), draw(B, H, A, seed=1), draw(B, 1, A)
    guide = Guide(draw(B, H, A, seed=2), torch.zeros(H), rule)
    free, guided = (whole(field, schedule, start, g, committed)[:, 1:] for g in (None, guide))
    assert torch.equal(free, guided)


def test_the_vjp_leaves_a_policy_alone_that_is_certain_and_the_identity_rule_does_not():
    # Its clean estimate is the same whatever x is, so its Jacobian is 0.
    sure = Field(lambda x, tau: velocity_from_clean(x, torch.zeros_like(x), tau))
    y = torch.ones(B, H, A, dtype=torch.float64)
    vjp, identity = (
        whole(sure, constant(H, 0, 5), draw(B, H, A), Guide(y, torch.ones(H), rule))
        for rule in RULES
    )
    torch.testing.assert_close(vjp, torch.zeros_like(y))
    assert (identity > 0.5).all()


def test_identity_overshoots_in_one_step_as_the_guide_says():
    sure = Field(lambda x, tau: velocity_from_clean(x, torch.zeros_like(x), tau))
    y = torch.ones(B, H, A, dtype=torch.float64)
    for beta, expected in ((5.0, 5.0), (1.0, 1.0)):
        guide = Guide(y, torch.ones(H), "identity", beta)
        ended = whole(sure, constant(H, 0, 1), draw(B, H, A), guide)
        torch.testing.assert_close(ended, torch.full_like(y, expected))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["constant", "has"])
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_the_built_in_model_is_guided_in_every_mode_and_its_gradients_stay_empty(
    tiny, rule, name, mode
):
    engine, model = Engine(tiny), tiny.model
    shape = (1, model.horizon, model.action_dim)
    with mode():
        context = model.encode(inputs_of(engine, observation(1)))
        start, y = draw(*shape).float(), draw(*shape, seed=1).float()
        guide = Guide(y, rtc_weights(model.horizon, 2, 3), rule)
        # The sampler's table is made in the same mode.
        schedule = make_schedule(name, model.horizon, 0, 5)
        free, guided = (whole(model, schedule, start, g, context=context) for g in (None, guide))
    assert guided.isfinite().all()
    assert not torch.allclose(free, guided, atol=1e-3)
    assert not guided.requires_grad
    assert all(p.grad is None for p in model.parameters())


def test_a_policy_may_multiply_by_a_context_from_inference_mode():
    class Scaled(Field):
        def velocity(self, x, tau, context):
            return x * context.summary

    start, guide = draw(1, H, A), Guide(draw(1, H, A, seed=1), torch.ones(H))
    with torch.inference_mode():
        context = Context((), torch.full((1, 1), 0.5), 0)
    plain = Field(lambda x, tau: x * 0.5)
    torch.testing.assert_close(
        whole(Scaled(None), constant(H, 0, 5), start, guide, context=context),
        whole(plain, constant(H, 0, 5), start, guide),
    )


def test_on_the_built_in_model_the_vjp_is_autograds(tiny):
    engine, model = Engine(tiny), tiny.model
    shape = (1, model.horizon, model.action_dim)
    x, y, tau = draw(*shape).float(), draw(*shape, seed=1).float(), torch.full(shape[:2], 0.6)
    weights = rtc_weights(model.horizon, 2, 3)
    with torch.inference_mode():
        context = for_autograd(model.encode(inputs_of(engine, observation(1))))
        guided = guided_velocity(model, x, tau, context, Guide(y, weights))

    def clean(at):
        return model.clean(at, tau, context)

    # The whole Jacobian, of the model's own clean estimate.
    jacobian = torch.autograd.functional.jacobian(clean, x).flatten(3).flatten(0, 2)
    error = (weights[:, None] * (y - clean(x).detach())).flatten()
    correction = (jacobian.T @ error).reshape(shape)
    expected = (
        model.velocity(x, tau, context).detach() - guidance_weight(tau, 5.0)[..., None] * correction
    )
    torch.testing.assert_close(guided, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", AVERAGE)
def test_a_schedule_of_average_velocities_refuses_a_guide(name):
    sampler = Sampler(Field(lambda x, tau: x), make_schedule(name, H, 1, 4))
    guide = Guide(draw(B, H, A), torch.ones(H))
    with pytest.raises(
        OnsetError, match="guide: given a guide, with .* average .* prefix"
    ) as caught:
        next(sampler.run(CONTEXT, draw(B, H, A), guide=guide))
    assert caught.value.code is ErrorCode.BAD_VALUE


def test_a_target_for_another_chunk_is_refused():
    sampler = Sampler(Field(lambda x, tau: x), constant(H, 0, 4))
    with pytest.raises(OnsetError, match=r"guide.target: given \(2, 5, 2\); allowed: \(2, 6, 2\)"):
        next(sampler.run(CONTEXT, draw(B, H, A), guide=Guide(draw(B, 5, A), torch.ones(5))))
