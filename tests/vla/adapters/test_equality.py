"""The adapters against LeRobot's own policies, number by number."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import pytest
import torch
from torch import Tensor

from vla.policy import FlowPolicy
from vla.sampler import Sampler
from vla.schedule import Schedule, make_schedule

if TYPE_CHECKING:
    from tests.vla.adapters.tiny import Tiny
    from vla.adapters.load import LeRobotPolicy

KINDS = ("smolvla", "pi0", "pi05", "xvla")
PROMPTS = ("pick the red cube", "push")


def observation(seed: int, cameras: tuple[str, ...], states: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    images = {name: torch.rand(1, 3, 48, 64, generator=generator) for name in cameras}
    state = torch.randn(1, states, generator=generator)
    return {**images, "observation.state": state, "task": [PROMPTS[seed % 2]]}


def batch_of(policy: LeRobotPolicy, seed: int) -> dict[str, Any]:
    adapter = policy.adapter
    return policy.pre(observation(seed, adapter.cameras, adapter.state_dim))


def noise_of(policy: LeRobotPolicy, seed: int, rows: int = 1) -> Tensor:
    adapter = policy.adapter
    shape = (rows, adapter.horizon, adapter.action_dim)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sample(policy: LeRobotPolicy, context: Any, noise: Tensor, schedule: Schedule) -> Tensor:
    adapter = policy.adapter
    schedule = replace(schedule, average=adapter.average)
    sampler = Sampler(cast(FlowPolicy, adapter), schedule)
    values = torch.zeros_like(noise)
    for ripe in sampler.run(adapter.begin(context, noise), noise):
        values[:, ripe.indices] = ripe.values
    return adapter.finish(values)


def lerobots_chunk(
    policy: Any, batch: dict[str, Any], noise: Tensor, monkeypatch: pytest.MonkeyPatch
) -> Tensor:
    if policy.config.type != "xvla":
        return policy.predict_action_chunk(batch, noise=noise)
    # It takes no noise, so it is given this one where it draws its own.
    with monkeypatch.context() as patch:
        patch.setattr(torch, "randn", lambda *shape, **options: noise.clone())
        return policy.predict_action_chunk(batch)


@pytest.mark.parametrize("kind", KINDS)
def test_ten_constant_steps_are_lerobots_own_chunk(
    kind: str,
    tinies: dict[str, Tiny],
    loaded: dict[str, LeRobotPolicy],
    monkeypatch: pytest.MonkeyPatch,
    record_property: Any,
):
    policy, original = loaded[kind], tinies[kind].policy
    worst = 0.0
    for seed in range(4):
        batch, noise = batch_of(policy, seed), noise_of(policy, seed)
        expected = lerobots_chunk(original, dict(batch), noise, monkeypatch)
        with torch.inference_mode():
            context = policy.adapter.encode(batch)
            ours = sample(
                policy, context, noise, make_schedule("constant", policy.adapter.horizon, 0, 10)
            )
        assert ours.shape == expected.shape
        worst = max(worst, float((ours - expected).abs().max()))
    record_property(f"max_abs_difference_{kind}", worst)
    print(f"max_abs_difference_{kind} {worst:.1e}")
    assert worst <= 1e-5


def without_hook(policy: LeRobotPolicy, x: Tensor, time: Tensor, context: Any) -> Tensor:
    """LeRobot's own step at one time for all indices."""
    from vla.adapters.kv import FrozenCache

    adapter = policy.adapter
    model, kind = adapter.model, adapter.config.type
    if kind == "xvla":
        state, noisy = model.action_space.preprocess(context.state, x)
        return model.transformer(
            domain_id=context.domain,
            vlm_features=context.features,
            aux_visual_inputs=context.others,
            action_with_noise=noisy,
            proprio=state,
            t=time,
        )
    state = {"state": context.state} if kind == "pi0" else {}
    return model.denoise_step(
        prefix_pad_masks=context.pad,
        past_key_values=FrozenCache(context),
        x_t=x,
        timestep=time,
        **state,
    )


def with_hook(policy: LeRobotPolicy, x: Tensor, tau: Tensor, context: Any) -> Tensor:
    adapter: Any = policy.adapter
    step = adapter.clean if adapter.config.type == "xvla" else adapter.velocity
    return step(x, tau, context)


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_equal_times_per_index_are_one_time(kind: str, loaded: dict[str, LeRobotPolicy]):
    policy = loaded[kind]
    context = policy.adapter.encode(batch_of(policy, 0))
    x = noise_of(policy, 1)
    for time in (1.0, 0.55, 0.1):
        scalar = without_hook(policy, x, torch.tensor([time]), context)
        tau = torch.full((1, policy.adapter.horizon), time)
        assert (with_hook(policy, x, tau, context) - scalar).abs().max() <= 1e-5


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_an_index_answers_to_its_own_time(kind: str, loaded: dict[str, LeRobotPolicy]):
    policy = loaded[kind]
    context = policy.adapter.encode(batch_of(policy, 0))
    x, tau = noise_of(policy, 1), torch.full((1, policy.adapter.horizon), 0.8)
    other = tau.clone()
    other[:, -1] = 0.1
    change = with_hook(policy, x, other, context) - with_hook(policy, x, tau, context)
    assert change[:, -1].abs().max() > 1e-4
    assert change[:, -1].abs().max() > 2 * change[:, 0].abs().max()


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_rows_of_different_requests_in_one_batch(kind: str, loaded: dict[str, LeRobotPolicy]):
    policy = loaded[kind]
    adapter = policy.adapter
    contexts = [adapter.encode(batch_of(policy, seed)) for seed in range(3)]
    x = noise_of(policy, 5, rows=3)
    tau = torch.linspace(1.0, 0.05, 3 * adapter.horizon).view(3, -1)
    together = with_hook(policy, x, tau, adapter.stack(contexts))
    for row, context in enumerate(contexts):
        one = slice(row, row + 1)
        alone = with_hook(policy, x[one], tau[one], context)
        assert (together[one] - alone).abs().max() <= 1e-4
    if kind in ("smolvla",):  # the instruction is as long as its words
        assert len({context.pad.shape[1] for context in contexts}) > 1


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_a_step_leaves_its_context_as_it_was(kind: str, loaded: dict[str, LeRobotPolicy]):
    policy = loaded[kind]
    context = policy.adapter.encode(batch_of(policy, 0))
    x, tau = noise_of(policy, 1), torch.full((1, policy.adapter.horizon), 0.5)
    first = with_hook(policy, x, tau, context)
    torch.testing.assert_close(with_hook(policy, x, tau, context), first, rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_a_committed_prefix_stays_and_is_seen(kind: str, loaded: dict[str, LeRobotPolicy]):
    policy = loaded[kind]
    adapter = policy.adapter
    noise = noise_of(policy, 1)
    context = adapter.begin(adapter.encode(batch_of(policy, 0)), noise)
    schedule = replace(make_schedule("has", adapter.horizon, 2, 5), average=adapter.average)
    sampler = Sampler(cast(FlowPolicy, adapter), schedule)
    chunks = []
    for shift in (0.0, 1.0):
        prefix = adapter.fill(torch.full((1, 2, 4), 0.3 + shift))
        ripe = list(sampler.run(context, noise, prefix))
        assert sorted(i for r in ripe for i in r.indices.tolist()) == [2, 3, 4, 5]
        chunks.append(torch.cat([r.values for r in ripe], dim=1))
    assert (chunks[0] - chunks[1]).abs().max() > 1e-4


def test_the_model_s_own_sampler_still_works(
    tinies: dict[str, Tiny],
    loaded: dict[str, LeRobotPolicy],
    monkeypatch: pytest.MonkeyPatch,
):
    """Wrapping patches modules: LeRobot's way through the wrapped ones is as before."""
    for kind in KINDS:
        policy = loaded[kind]
        batch, noise = batch_of(policy, 3), noise_of(policy, 3)
        expected = lerobots_chunk(tinies[kind].policy, dict(batch), noise, monkeypatch)
        ours = lerobots_chunk(policy.adapter.policy, dict(batch), noise, monkeypatch)
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_prefix_by_onednn_is_the_prefix(kind: str, tinies: dict[str, Tiny]):
    from tests.vla.adapters.tiny import small_gemmas
    from vla.adapters.dense import speed_up
    from vla.adapters.load import load_lerobot_policy

    with small_gemmas():
        tiny = tinies[kind]
        policy = load_lerobot_policy(str(tiny.path), language=tiny.language)
    adapter = policy.adapter
    noise, tau = noise_of(policy, 1), torch.full((1, adapter.horizon), 0.7)
    with torch.inference_mode():
        before = with_hook(policy, noise, tau, adapter.encode(batch_of(policy, 2)))
    assert speed_up(adapter.prefix_modules) > 0
    assert speed_up(adapter.prefix_modules) == 0
    with torch.inference_mode():
        after = with_hook(policy, noise, tau, adapter.encode(batch_of(policy, 2)))
    assert (after - before).abs().max() <= 1e-5
    with torch.no_grad():  # as ever where it is not served
        plain = with_hook(policy, noise, tau, adapter.encode(batch_of(policy, 2)))
    assert (plain - before).abs().max() <= 1e-6
    assert adapter.policy.state_dict().keys() == tiny.policy.state_dict().keys()
