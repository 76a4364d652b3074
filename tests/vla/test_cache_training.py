"""The heads: what they are told, what they learn from, and that numpy and torch agree."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from controller.errors import OnsetError
from tests.vla.cache_helpers import ROWS, learned, scene
from tests.vla.helpers import PROMPTS
from vla.cache.blend import blended_encode, measured_effect
from vla.cache.config import SHARES, CacheConfig, CacheMode, row_counts
from vla.cache.encoder import CachedEncoder
from vla.cache.heads import CacheHeads, blended_mask
from vla.cache.patches import CHANGES, Patcher, patchify
from vla.cache.selector import (
    FEATURES,
    Selector,
    SelectorMeta,
    load_selector,
    selector_for,
    token_features,
)
from vla.checkpoint import load_checkpoint
from vla.train.blended import BlendedBuiltIn, Rollout
from vla.train.cache import CacheTrainer, CacheTraining

BRIEF = CacheTraining(align=2, steps=5, batch=3, frames=2)


def rollouts(count: int = 3, frames: int = 5) -> list[Rollout]:
    found = []
    for seed in range(count):
        seen = [scene(number, 2, seed) for number in range(frames)]
        names = seen[0].frames
        found.append(
            Rollout(
                PROMPTS[seed % 2],
                np.stack([o.state for o in seen]),
                {n: np.stack([o.frames[n] for o in seen]) for n in names},
            )
        )
    return found


def logits(generator: torch.Generator, batch: int = 4) -> torch.Tensor:
    return torch.randn(batch, len(SHARES), generator=generator).requires_grad_()


def hard(logits: torch.Tensor) -> torch.Tensor:
    soft = logits.softmax(-1)
    one = torch.nn.functional.one_hot(soft.argmax(-1), len(SHARES)).float()
    return one + (soft - soft.detach())


def test_the_mask_is_hard_and_takes_the_best_with_forced_rows_first() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(4, ROWS, generator=generator)
    forced = torch.zeros(4, ROWS, dtype=torch.bool)
    forced[:, 3] = True
    for number, count in enumerate(row_counts(ROWS)):
        choice = torch.zeros(4, len(SHARES))
        choice[:, number] = 1
        mask = blended_mask(scores, choice, 0.5, forced)
        assert set(mask.unique().tolist()) <= {0.0, 1.0}
        assert (mask.sum(-1) == count).all()
        assert (mask[:, 3] == 1).all()
        lifted = scores.masked_fill(forced, 99.0)
        for row, taken in zip(lifted, mask, strict=True):
            assert row[taken == 1].min() >= row[taken == 0].max() if count < ROWS else True


def test_the_predictor_learns_from_the_task_alone(tiny) -> None:
    """With the budget's weight at zero its gradient is not: a count moves rows in and out."""
    generator = torch.Generator().manual_seed(0)
    trainer = CacheTrainer(
        BlendedBuiltIn(tiny), replace(BRIEF, align=0, budget_weight=0.0), rollouts()
    )
    trainer.train_step()
    for parameter in (trainer.heads.ratio_leave.weight, trainer.heads.enter.weight):
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0
    # The same without the rest: from a mask to the logits.
    given = logits(generator)
    mask = blended_mask(
        torch.randn(4, ROWS, generator=generator),
        hard(given),
        0.5,
        torch.zeros(4, ROWS, dtype=torch.bool),
    )
    (mask * torch.randn(4, ROWS, generator=generator)).sum().backward()
    assert given.grad is not None
    assert (given.grad.abs().sum(-1) > 0).all()


def test_the_policy_stays_as_it_was(tiny) -> None:
    before = {n: t.clone() for n, t in tiny.model.state_dict().items()}
    trainer = CacheTrainer(BlendedBuiltIn(tiny), BRIEF, rollouts())
    for _ in range(4):
        trainer.train_step()
    assert all(torch.equal(t, before[n]) for n, t in tiny.model.state_dict().items())


def test_the_effect_of_a_row_is_how_the_chunk_moves_without_it(tiny) -> None:
    """To first order: rows are reverted a little, one by one."""
    policy, drawn = BlendedBuiltIn(tiny), rollouts()[:1]
    before, after = policy.inputs(drawn, [0]), policy.inputs(drawn, [1])
    with torch.no_grad():
        _, past = blended_encode(tiny.model, before)
    effect = measured_effect(tiny.model, after, past, torch.Generator().manual_seed(0), draws=400)
    shape = (1, tiny.model.horizon, tiny.model.action_dim)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    step, ones = 1e-2, torch.ones(shape[:2])
    expected = []
    with torch.no_grad():
        for row in range(ROWS):
            moved = []
            for sign in (-1, 1):
                mask = torch.ones(1, ROWS)
                mask[0, row] += sign * step
                context, _ = blended_encode(tiny.model, after, past, mask)
                moved.append(tiny.model.clean(noise, ones, context))
            slope = (moved[1] - moved[0]) / (2 * step)
            expected.append(slope.square().mean().sqrt().item())
    np.testing.assert_allclose(effect[0].numpy(), expected, rtol=0.25, atol=1e-4)


def test_numpy_and_torch_choose_alike(tiny) -> None:
    torch.manual_seed(3)
    heads = CacheHeads(ROWS, 32)
    torch.nn.init.normal_(heads.position)
    selector = heads.selector(SelectorMeta("tiny", "", ROWS, 0.3))
    for seed in range(20):
        rng = np.random.default_rng(seed)
        tokens = rng.normal(size=(ROWS, FEATURES)).astype(np.float32)
        instruction = rng.normal(size=32).astype(np.float32)
        scores = selector.scores(tokens, selector.bind(instruction))
        with torch.no_grad():
            same = heads.scores(torch.from_numpy(tokens)[None], torch.from_numpy(instruction)[None])
            choice = heads.logits(torch.from_numpy(tokens)[None], same).argmax(-1)
        np.testing.assert_allclose(scores, same[0].numpy(), rtol=1e-4, atol=1e-5)
        assert selector.choice(tokens, scores) == choice.item()


def test_changes_are_what_they_say() -> None:
    patcher = Patcher(("front", "wrist"), (2, 1), 12, 2)
    rng = np.random.default_rng(0)
    frames = {
        "front": rng.integers(0, 256, (2, 24, 24, 3), dtype=np.uint8),
        "wrist": rng.integers(0, 256, (1, 24, 24, 3), dtype=np.uint8),
    }
    before, other = patcher.cut(frames), {n: f.copy() for n, f in frames.items()}
    other["front"][0, 12:, :12] = 255 - other["front"][0, 12:, :12]  # newest frame, patch 2
    other["wrist"][0, 5, 17, 1] ^= 255  # one green pixel, patch 1
    found = patcher.changes(patcher.cut(other), before)
    assert found.shape == (8, CHANGES)
    assert (np.delete(found, (2, 5), axis=0) == 0).all()
    new, old = other["front"] / 255, frames["front"] / 255
    part = (slice(None), slice(12, 24), slice(0, 12))
    apart = np.abs(new - old)[part]
    signed = (new - old)[part][0].mean((0, 1))
    expected = [*signed, apart[0].mean(), apart.mean(), apart.max()]
    np.testing.assert_allclose(found[2], expected, atol=1e-5)
    green = (int(other["wrist"][0, 5, 17, 1]) - int(frames["wrist"][0, 5, 17, 1])) / 255
    np.testing.assert_allclose(found[5, [0, 1, 2, 5]], [0, green / 144, 0, abs(green)], atol=1e-5)


def test_patches_are_in_the_models_order() -> None:
    frames = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    patches = patchify(frames, 2)
    assert patches.shape == (4, 2 * 2 * 2 * 3)
    np.testing.assert_array_equal(patches[1].reshape(2, 2, 2, 3), frames[:, :2, 2:])


def test_features_are_bounded_and_grow_with_what_they_say() -> None:
    changes = np.linspace(-1, 1, 8 * CHANGES, dtype=np.float32).reshape(8, CHANGES)
    tokens = token_features(changes, np.arange(8), 0.5, 0.0)
    assert np.abs(tokens).max() <= 1
    assert (np.diff(tokens[:, :CHANGES], axis=0) > 0).all()
    assert (np.diff(tokens[:, CHANGES]) > 0).all()


def test_a_resumed_run_is_the_unbroken_one(tiny, tmp_path) -> None:
    meta = SelectorMeta("tiny", tiny.digest, ROWS, 0.3)
    whole = CacheTrainer(BlendedBuiltIn(tiny), BRIEF, rollouts())
    for _ in range(5):
        whole.train_step()
    first = CacheTrainer(BlendedBuiltIn(tiny), BRIEF, rollouts())
    for _ in range(3):
        first.train_step()
    first.save(tmp_path, meta)
    second = CacheTrainer(BlendedBuiltIn(tiny), BRIEF, rollouts())
    assert second.resume(tmp_path)
    assert second.step == 3
    for _ in range(2):
        second.train_step()
    for name, tensor in whole.heads.state_dict().items():
        assert torch.equal(tensor, second.heads.state_dict()[name]), name


def test_a_selector_is_read_back_and_a_broken_one_told(tiny, tmp_path) -> None:
    selector = learned(tiny)
    path = tmp_path / "one.safetensors"
    selector.save(path)
    again = load_selector(path)
    assert isinstance(again, Selector)
    assert again.meta == selector.meta
    tokens = np.ones((ROWS, FEATURES), np.float32)
    bias = selector.bind(np.ones(32, np.float32))
    np.testing.assert_array_equal(again.scores(tokens, bias), selector.scores(tokens, bias))
    path.write_bytes(b"nothing")
    with pytest.raises(OnsetError, match="a selector of"):
        load_selector(path)
    with pytest.raises(OnsetError, match="whack"):
        load_selector(tmp_path / "nowhere")


def test_bundled_selectors_fit_their_policies() -> None:
    config = CacheConfig(CacheMode.LEARNED)
    for task in ("whack", "intercept", "pick_place", "conveyor"):
        checkpoint = load_checkpoint(Path(task))
        CachedEncoder(checkpoint, config, selector_for(checkpoint.digest, config))
    assert selector_for("", config) is None
