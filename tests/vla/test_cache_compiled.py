"""Compiled code against torch, numpy and what it says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vla.cache_helpers import ROWS
from vla.cache import compiled
from vla.cache.compiled import frame_changes, judge, pick_rows, token_features
from vla.cache.config import RECOVERY_AGE
from vla.cache.heads import CacheHeads
from vla.cache.patches import CHANGES, Patcher
from vla.cache.selector import SelectorMeta


def drawn_changes(rng: np.random.Generator, rows: int) -> np.ndarray:
    return rng.normal(0, 0.1, (rows, CHANGES)).astype(np.float32)


@pytest.mark.parametrize("rows", [ROWS, 64, 576])
def test_it_chooses_as_the_heads_that_were_trained(rows) -> None:
    torch.manual_seed(3)
    heads = CacheHeads(rows, 32)
    torch.nn.init.normal_(heads.position)
    selector = heads.selector(SelectorMeta("tiny", "", rows, 0.3))
    chosen = set()
    for seed in range(20):
        rng = np.random.default_rng(seed)
        changes, ages = drawn_changes(rng, rows), rng.integers(0, 17, rows)
        words = rng.normal(size=32).astype(np.float32)
        arm, grippers = rng.random(2).tolist()
        scores, choice = judge(selector, changes, ages, arm, grippers, selector.bind(words))
        tokens = torch.from_numpy(token_features(changes, ages, arm, grippers))[None]
        with torch.no_grad():
            same = heads.scores(tokens, torch.from_numpy(words)[None])
            logits = heads.logits(tokens, same)
        np.testing.assert_allclose(scores, same[0].numpy(), rtol=1e-4, atol=1e-5)
        assert choice == logits.argmax(-1).item()
        chosen.add(choice)
    assert len(chosen) > 1


def test_what_is_of_another_shape_is_refused() -> None:
    selector = CacheHeads(ROWS, 32).selector(SelectorMeta("tiny", "", ROWS, 0.3))
    bias = selector.bind(np.zeros(32, np.float32))
    changes, ages = np.zeros((ROWS, CHANGES), np.float32), np.zeros(ROWS, np.int64)
    for wrong in ((changes[1:], ages, bias), (changes, ages[1:], bias), (changes, ages, bias[1:])):
        with pytest.raises(ValueError, match="rows"):
            judge(selector, wrong[0], wrong[1], 0.0, 0.0, wrong[2])
    with pytest.raises(ValueError, match="what the selector knows"):
        judge(selector, changes[:, 1:].copy(), ages, 0.0, 0.0, bias)
    scores = np.zeros(ROWS, np.float32)
    for scored, count, oldest in (
        (scores[1:], 1, 1),
        (scores, 0, 1),
        (scores, ROWS + 1, 1),
        (scores, 1, ROWS + 1),
    ):
        with pytest.raises(ValueError, match="rows"):
            pick_rows(scored, ages, count, oldest)
    patches = np.zeros((4, 24), np.uint8)
    for reference, newest in ((patches[1:], 12), (patches[:, :12].copy(), 12), (patches, 27)):
        with pytest.raises(ValueError, match="shape"):
            frame_changes([patches], [reference], newest)


def test_changes_are_what_they_say() -> None:
    patcher = Patcher(("front", "wrist"), 12, 2)
    rng = np.random.default_rng(0)
    frames = {
        "front": rng.integers(0, 256, (2, 24, 24, 3), dtype=np.uint8),
        "wrist": rng.integers(0, 256, (1, 24, 24, 3), dtype=np.uint8),
    }
    before, other = patcher.cut(frames), {n: f.copy() for n, f in frames.items()}
    other["front"][0, 12:, :12] = 255 - other["front"][0, 12:, :12]  # newest frame, patch 2
    other["wrist"][0, 5, 17, 1] ^= 255  # one green pixel, patch 1
    found = frame_changes(patcher.cut(other), before, patcher.newest)
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


@settings(deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 20),
    st.integers(1, 3),
    st.integers(1, 13),
    st.sampled_from([0, 1, 40, 255]),
)
def test_changes_are_those_of_numpy(seed, count, lags, side, most) -> None:
    """Also where all bytes are far apart, and where few are apart at all."""
    rng = np.random.default_rng(seed)
    newest = side * side * 3
    old = rng.integers(0, 2, (count, lags * newest), dtype=np.uint8) * 255
    moved = rng.integers(0, most + 1, old.shape) * rng.integers(0, 2, (count, 1))
    new = np.where(old > 127, old - moved, old + moved).astype(np.uint8)
    apart = (new.astype(np.float64) - old) / 255
    expected = np.column_stack(
        (
            apart[:, :newest].reshape(count, -1, 3).mean(1),
            np.abs(apart[:, :newest]).mean(1),
            np.abs(apart).mean(1),
            np.abs(apart).max(1),
        )
    )
    np.testing.assert_allclose(frame_changes([new], [old], newest), expected, atol=1e-6)


@settings(deadline=None)
@given(st.data(), st.integers(1, 40))
def test_the_oldest_come_first_and_then_the_best(data, rows) -> None:
    few = st.sampled_from([-1.5, 0.0, 0.25, 3.0, np.inf, np.nan])
    scores = np.array(data.draw(st.lists(few, min_size=rows, max_size=rows)), np.float32)
    ages = np.array(data.draw(st.lists(st.integers(1, 4), min_size=rows, max_size=rows)))
    count, recovered = data.draw(st.integers(1, rows)), data.draw(st.integers(1, rows))
    found, oldest = pick_rows(scores, ages, count, recovered)
    worth = np.where(np.isnan(scores), np.inf, scores)
    if ages.max() >= RECOVERY_AGE:
        worth[np.argsort(-ages, kind="stable")[:recovered]] = np.inf
    expected = np.sort(np.argsort(-worth, kind="stable")[:count])
    np.testing.assert_array_equal(found, expected)
    assert oldest == np.delete(ages, expected).max(initial=0)


def test_features_are_bounded_and_grow_with_what_they_say() -> None:
    changes = np.linspace(-1, 1, 8 * CHANGES, dtype=np.float32).reshape(8, CHANGES)
    tokens = token_features(changes, np.arange(8), 0.5, 0.0)
    assert np.abs(tokens).max() <= 1
    assert (np.diff(tokens[:, :CHANGES], axis=0) > 0).all()
    assert (np.diff(tokens[:, CHANGES]) > 0).all()
    assert (tokens[:, CHANGES + 1] > 0.8).all()
    assert (tokens[:, CHANGES + 2] == 0).all()


def test_it_compiles_where_nothing_can_be_kept() -> None:
    """A function that is in no file has no folder to be kept in, as on a read-only disk."""
    made: dict = {}
    exec("def twice(x): return 2 * x", made)
    assert compiled._compiled("int64(int64)")(made["twice"])(21) == 42
