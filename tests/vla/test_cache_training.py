"""The heads: what they learn from, and how they are kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from controller.errors import OnsetError
from tests.vla.cache_helpers import ROWS, learned, scene
from tests.vla.helpers import PROMPTS
from vla.cache.blend import blended_encode, measured_effect
from vla.cache.config import SHARES, CacheConfig, CacheMode, row_counts
from vla.cache.encoder import CachedEncoder
from vla.cache.heads import CacheHeads, blended_mask
from vla.cache.patches import patchify
from vla.cache.selector import Selector, SelectorMeta, load_selector, selector_for
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


def test_patches_are_in_the_models_order() -> None:
    frames = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    patches = patchify(frames, 2)
    assert patches.shape == (4, 2 * 2 * 2 * 3)
    np.testing.assert_array_equal(patches[1].reshape(2, 2, 2, 3), frames[:, :2, 2:])


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
    words = np.ones(32, np.float32)
    for mine, theirs in zip(
        (selector.bind(words), *selector.weights), (again.bind(words), *again.weights), strict=True
    ):
        np.testing.assert_array_equal(mine, theirs)
    path.write_bytes(b"nothing")
    with pytest.raises(OnsetError, match="a selector of"):
        load_selector(path)
    with pytest.raises(OnsetError, match="whack"):
        load_selector(tmp_path / "nowhere")


@pytest.mark.parametrize("name", sorted(CacheHeads(ROWS, 32).state_dict()))
def test_a_selector_with_a_tensor_of_another_shape_is_told(tiny, tmp_path, name) -> None:
    path = tmp_path / "one.safetensors"
    learned(tiny).save(path)
    tensors = load_file(path)
    save_file(tensors | {name: np.concatenate((tensors[name], tensors[name][:1]))}, path)
    with pytest.raises(OnsetError, match="has shape"):
        load_selector(path)
    del tensors[name]
    save_file(tensors, path)
    with pytest.raises(OnsetError, match=name):
        load_selector(path)


def test_bundled_selectors_fit_their_policies() -> None:
    config = CacheConfig(CacheMode.LEARNED)
    for task in ("whack", "intercept", "pick_place", "conveyor"):
        checkpoint = load_checkpoint(Path(task))
        CachedEncoder(checkpoint, config, selector_for(checkpoint.digest, config))
    assert selector_for("", config) is None
