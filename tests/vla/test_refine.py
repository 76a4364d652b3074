"""Weights for finer patches and more frames, against enlarging the pictures themselves."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from controller.errors import OnsetError
from vla.models.refine import refined
from vla.models.small import SmallVLA, SmallVLAConfig
from vla.policy import PolicyInput

OLD = SmallVLAConfig(("front",), (2,), image_size=24, patch=12, width=16, heads=2, max_words=3)


@pytest.fixture(scope="module")
def model() -> SmallVLA:
    torch.manual_seed(0)
    return SmallVLA(OLD).eval()


def made(model: SmallVLA, new: SmallVLAConfig) -> SmallVLA:
    finer = SmallVLA(new).eval()
    finer.load_state_dict(refined(model.state_dict(), model.config, new))
    return finer


def inputs(frames: torch.Tensor) -> PolicyInput:
    count = len(frames)
    none = torch.zeros(count, dtype=torch.int64)
    tokens = torch.tensor([[3, 5, 0]]).expand(count, -1)
    return PolicyInput({"front": frames}, torch.zeros(count, 12), tokens, none)


@torch.no_grad()
def test_more_frames_change_nothing_at_first(model) -> None:
    frames = torch.randint(0, 256, (2, 4, 24, 24, 3), dtype=torch.uint8)
    finer = made(model, replace(OLD, lags=(4,)))
    expected, now = model.encode(inputs(frames[:, :2])), finer.encode(inputs(frames))
    assert torch.equal(now.summary, expected.summary)
    for mine, theirs in zip(now.keys_values, expected.keys_values, strict=True):
        assert torch.equal(mine, theirs)


@torch.no_grad()
@pytest.mark.parametrize("patch", [8, 6, 4])
def test_a_fine_patch_is_seen_as_the_enlarged_one(model, patch) -> None:
    finer = made(model, replace(OLD, patch=patch))
    frames = torch.randint(0, 256, (1, 2, 24, 24, 3), dtype=torch.uint8)
    instruction = torch.randn(1, 16)
    grid = 24 // patch
    tokens = finer.patches[0](frames, instruction) - finer.patches[0].position
    for number in range(grid * grid):
        row, column = divmod(number, grid)
        rows, columns = (slice(n * patch, (n + 1) * patch) for n in (row, column))
        cut = frames[0, :, rows, columns].permute(0, 3, 1, 2).float()
        whole = F.interpolate(cut, (12, 12), mode="bilinear").permute(0, 2, 3, 1)
        # Four of it side by side are a picture of the old size.
        picture = whole.repeat(1, 2, 2, 1)[None]
        expected = model.patches[0](picture, instruction) - model.patches[0].position
        assert torch.allclose(tokens[0, number], expected[0, 0], atol=1e-5)


@torch.no_grad()
def test_places_lie_between_those_of_the_coarse_grid(model) -> None:
    old = made(model, OLD)
    old.patches[0].position[:] = torch.tensor([[0.0], [1.0], [2.0], [3.0]])  # x + 2 y
    fine = made(old, replace(OLD, patch=6)).patches[0].position[:, 0].view(4, 4)
    along = torch.tensor([0.0, 0.25, 0.75, 1.0])
    assert torch.allclose(fine, along + 2 * along[:, None])


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"patch": 7}, "patch"),
        ({"patch": 24}, "patch"),
        ({"lags": (1,)}, "model"),
        ({"width": 32}, "model"),
    ],
)
def test_a_model_that_sees_less_or_is_another_one_is_refused(model, change, field) -> None:
    with pytest.raises(OnsetError, match=field):
        refined(model.state_dict(), OLD, replace(OLD, **change))
