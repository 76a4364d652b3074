"""Rows that are reused, and every rule against it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.errors import OnsetError
from tests.vla.cache_helpers import (
    HERE,
    ROWS,
    apart,
    dense,
    encode,
    encoder,
    learned,
    model_inputs,
    scene,
    tensors,
)
from tests.vla.helpers import PROMPTS
from vla.cache.asked import Asked, Beginning, Whose
from vla.cache.blend import Past, blended_encode
from vla.cache.config import CacheConfig, CacheMode, DenseReason
from vla.cache.encoder import CachedEncoder

EXACT = 2e-5
CACHED = ("pixel", "random", "learned", "oracle")


def test_with_nothing_reused_it_is_what_the_model_says(tiny) -> None:
    for mode in CacheMode:
        cached = encoder(tiny, mode, 1.0)
        for number in range(3):
            context, figures = encode(cached, scene(number))
            assert apart(context, dense(cached, scene(number))) < EXACT
            assert figures.rows_computed == figures.rows == ROWS
            assert figures.max_age == 0
            assert figures.dense_reason


@pytest.mark.parametrize("mode", ["off", "learned"])
def test_a_chunk_may_begin_elsewhere_without_encoding_anew(tiny, mode) -> None:
    begins = Beginning(torch.tensor([[0.3, -0.7, 1.1]]), torch.tensor([0]))
    cached, again = encoder(tiny, mode, 0.5), encoder(tiny, mode, 0.5)
    for one in (cached, again):
        encode(one, scene(0))
    encode(cached, scene(1, moved=2))
    with torch.inference_mode():
        found = tensors(cached.begin_elsewhere(begins))
        expected, _ = again.encode(HERE, Asked(scene(1, moved=2), PROMPTS[0], begins))
        assert apart(found, tensors(expected)) < EXACT


@pytest.mark.parametrize("mode", CACHED)
@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_a_repeated_frame_is_exact(tiny, mode, share) -> None:
    cached = encoder(tiny, mode, share)
    encode(cached, scene(0))
    for number in range(1, 6):
        again = replace(scene(0), id=number, step=2 * number)
        context, figures = encode(cached, again)
        assert apart(context, dense(cached, again)) < EXACT
        assert figures.rows_computed == share * ROWS
        assert not figures.dense_reason
        assert figures.base_id == 0


@pytest.mark.parametrize("mode", CACHED)
def test_reused_rows_stay_and_active_ones_read_all_of_them(tiny, mode) -> None:
    """The same as the blended encoding of a batch, which is written independently."""
    cached = encoder(tiny, mode, 0.5)
    before, _ = encode(cached, scene(0))
    model, layers = tiny.model, tiny.meta.model.depth
    images = cached.prefix.seen(cached.store.get("a").slot)[None]
    context, figures = encode(cached, scene(1, moved=2))
    assert figures.rows_computed == ROWS // 2
    mask = torch.zeros(1, ROWS)
    mask[0, cached.chosen] = 1
    past = Past(tuple(before[:layers]), images)
    with torch.inference_mode():
        expected, _ = blended_encode(model, model_inputs(cached, scene(1, moved=2)), past, mask)
    assert apart(context, tensors(expected)) < EXACT
    reused = np.setdiff1d(np.arange(ROWS), cached.chosen)
    for now, then in zip(context[:layers], before, strict=False):
        assert torch.equal(now[..., reused, :], then[..., reused, :])


def test_pixel_computes_what_differs_from_its_reference_not_from_the_last_frame(tiny) -> None:
    cached = encoder(tiny, "pixel", 0.25)
    still = {n: np.full_like(f, 100) for n, f in scene(0).frames.items()}
    encode(cached, replace(scene(0), frames=still))
    computed = set()
    for number in range(1, 4):  # one patch drifts, by less than the others jump
        frames = {n: f.copy() for n, f in still.items()}
        frames["front"][:, :12, :12] += np.uint8(2 * number)
        for patch in (1, 2):
            y, x = divmod(patch, 2)
            frames["front"][:, 12 * y : 12 * y + 12, 12 * x : 12 * x + 12] += np.uint8(3)
        encode(cached, replace(scene(number), frames=frames))
        computed |= set(cached.chosen.tolist())
    assert 0 in computed


def test_each_rule_has_its_reason(tiny) -> None:
    cached = encoder(tiny, "pixel", 0.5, gap=10)

    def reason(observation, whose=HERE, prompt=PROMPTS[0]) -> str:
        context, figures = encode(cached, observation, whose, prompt)
        if figures.dense_reason:
            assert figures.rows_computed == ROWS
            assert figures.base_id == observation.id
            assert apart(context, dense(cached, observation, prompt)) < EXACT
        return figures.dense_reason

    assert reason(scene(0)) == DenseReason.FIRST
    assert reason(scene(1)) == ""
    assert reason(scene(2), Whose("a", "e1")) == DenseReason.EPISODE
    assert reason(scene(3), Whose("a", "e1"), PROMPTS[1]) == DenseReason.PROMPT
    whose, prompt = Whose("a", "e1"), PROMPTS[1]
    assert reason(scene(4, step=6), whose, prompt) == DenseReason.ORDER
    assert reason(scene(4), whose, prompt) == DenseReason.ORDER
    assert reason(scene(5, step=8 + 11), whose, prompt) == DenseReason.GAP
    closed = scene(6, step=20).state.copy()
    closed[1] = 1 - closed[1]
    assert reason(scene(6, step=20, state=closed), whose, prompt) == DenseReason.GRIPPER
    assert reason(scene(7, step=21, state=closed), whose, prompt) == ""
    cached.distrust(whose)
    assert reason(scene(8, step=22, state=closed), whose, prompt) == DenseReason.NON_FINITE


def test_weights_and_cameras_are_part_of_the_identity(tiny) -> None:
    cached = encoder(tiny, "pixel", 0.5)
    encode(cached, scene(0))
    cache = cached.store.get("a")
    cache.identity = replace(cache.identity, model="other")
    assert encode(cached, scene(1))[1].dense_reason == DenseReason.WEIGHTS
    cache = cached.store.get("a")
    cache.identity = replace(cache.identity, cameras=())
    assert encode(cached, scene(2))[1].dense_reason == DenseReason.CAMERAS


def test_a_cut_of_a_fixed_camera_is_told(tiny) -> None:
    cached = encoder(tiny, "pixel", 0.5, cut_share=0.6)
    encode(cached, scene(0))
    assert encode(cached, scene(1, seed=7))[1].dense_reason == DenseReason.CUT
    # A camera on the arm moves with it.
    selector = learned(tiny)
    selector.meta = replace(selector.meta, moving=("front", "wrist"))
    config = CacheConfig(CacheMode.PIXEL, 0.5)
    moving = CachedEncoder(tiny, config, selector)
    encode(moving, scene(0))
    assert encode(moving, scene(1, seed=7))[1].dense_reason == ""


def test_periodic_computes_nothing_in_between(tiny) -> None:
    cached = encoder(tiny, "periodic", 0.25)
    figures = [encode(cached, scene(number))[1] for number in range(9)]
    assert [f.rows_computed for f in figures] == [8, 0, 0, 0, 8, 0, 0, 0, 8]
    assert [f.dense_reason for f in figures[4:6]] == [DenseReason.PERIOD, ""]
    assert [f.max_age for f in figures[:5]] == [0, 1, 2, 3, 0]


@settings(max_examples=25, deadline=None)
@given(
    mode=st.sampled_from(CACHED[:3]),
    share=st.sampled_from([0.25, 0.5, 0.75, None]),
    max_age=st.integers(3, 9),
    moved=st.integers(0, 4),
    seed=st.integers(0, 99),
)
def test_no_row_is_older_than_the_bound(tiny, mode, share, max_age, moved, seed) -> None:
    if share is None:
        mode = "learned"
    cached = encoder(tiny, mode, share, max_age=max_age)
    for number in range(25):
        _, figures = encode(cached, scene(number, moved, seed))
        assert figures.max_age == cached.store.get("a").ages.max() <= max_age


def test_a_crash_in_the_middle_of_an_update_leaves_the_old_cache(tiny, monkeypatch) -> None:
    cached = encoder(tiny, "pixel", 0.5)
    encode(cached, scene(0))
    cache = cached.store.get("a")
    before = [t.clone() for t in (cache.slot.keys_values, cache.slot.images, cache.slot.found)]
    ages, reference = cache.ages.copy(), [p.copy() for p in cache.reference]
    whole, calls = cached.prefix.encode, []

    def broken(slot, *arguments, **named) -> None:
        calls.append(1)
        if len(calls) == 1:
            slot.keys_values.fill_(float("nan"))
            slot.images[::2].fill_(float("nan"))
            raise RuntimeError("out of memory")
        now = [cache.slot.keys_values, cache.slot.images, cache.slot.found]
        assert all(torch.equal(a, b) for a, b in zip(now, before, strict=True))
        assert np.array_equal(cache.ages, ages)
        assert all(np.array_equal(a, b) for a, b in zip(cache.reference, reference, strict=True))
        whole(slot, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(cached.prefix, "encode", broken)
        context, figures = encode(cached, scene(1))
    assert figures.dense_reason == DenseReason.ERROR
    assert len(calls) == 2
    assert apart(context, dense(cached, scene(1))) < EXACT
    assert encode(cached, scene(2))[1].dense_reason == ""


def test_an_encoding_that_never_works_leaves_the_old_cache_too(tiny, monkeypatch) -> None:
    cached = encoder(tiny, "pixel", 0.5)
    encode(cached, scene(0))

    def broken(slot, *_, **__) -> None:
        slot.keys_values.fill_(float("nan"))
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(cached.prefix, "encode", broken)
        with pytest.raises(RuntimeError, match="memory"):
            encode(cached, scene(1))
    again = replace(scene(0), id=2, step=4)
    context, figures = encode(cached, again)
    assert figures.dense_reason == ""
    assert apart(context, dense(cached, again)) < EXACT


def test_slack_time_makes_the_last_frame_whole(tiny) -> None:
    cached = encoder(tiny, "random", 0.25, slack=True)
    encode(cached, scene(0))
    for number in range(1, 5):
        encode(cached, scene(number, moved=3))
        with torch.inference_mode():
            assert cached.settle(HERE)
        other = encoder(tiny, "random", 0.25)
        encode(other, scene(number, moved=3))
        slot = cached.store.get("a").slot
        assert torch.allclose(slot.keys_values, other.store.get("a").slot.keys_values, atol=EXACT)
        assert cached.store.get("a").base == number


def test_slack_time_can_be_cancelled_at_every_layer(tiny) -> None:
    cached = encoder(tiny, "random", 0.25, slack=True)
    encode(cached, scene(0))
    encode(cached, scene(1, moved=3))
    cache = cached.store.get("a")
    before = cache.slot.keys_values.clone()
    for allowed in range(tiny.meta.model.depth):
        asked = iter([False] * allowed + [True] * 9)
        with torch.inference_mode():
            assert not cached.settle(HERE, lambda asked=asked: next(asked))
        assert torch.equal(cache.slot.keys_values, before)
        assert cache.valid
        assert cache.base == 0
    again = replace(scene(1, moved=3), id=2, step=4)
    assert encode(cached, again)[1].max_age == 2


@settings(max_examples=25, deadline=None)
@given(
    order=st.lists(st.integers(0, 3), min_size=4, max_size=24),
    budget=st.sampled_from([1, 2, 8]),
    settled=st.booleans(),
    mode=st.sampled_from(["pixel", "learned"]),
)
def test_sessions_never_see_each_others_rows(tiny, order, budget, settled, mode) -> None:
    """Each session gets what it would get alone, or, where it was evicted, the whole prefix."""
    size = _size(tiny, mode)
    shared = encoder(tiny, mode, 0.25, slack=settled, budget=budget * size + 100)
    alone = {s: encoder(tiny, mode, 0.25, slack=settled) for s in range(4)}
    count = dict.fromkeys(range(4), 0)
    for session in order:
        whose, number = Whose(session, "e0"), count[session]
        frame = scene(number, 2, seed=session)
        count[session] += 1
        context, figures = encode(shared, frame, whose)
        if figures.dense_reason == DenseReason.EVICTED:
            alone[session] = encoder(tiny, mode, 0.25, slack=settled)
        expected, _ = encode(alone[session], frame, whose)
        assert apart(context, expected) < EXACT
        if settled:
            with torch.inference_mode():
                shared.settle(whose)
                alone[session].settle(whose)
        assert len(shared.store) <= budget
        assert shared.store.nbytes <= shared.config.budget


def _size(tiny, mode: str) -> int:
    cached = encoder(tiny, mode, 0.25)
    encode(cached, scene(0))
    return cached.store.nbytes


def test_sixty_four_sessions_under_a_budget(tiny) -> None:
    size = _size(tiny, "pixel")
    cached = encoder(tiny, "pixel", 0.5, budget=16 * size)
    for number in range(2):
        for session in range(64):
            frame = scene(number, seed=session)
            context, figures = encode(cached, frame, Whose(session, "e0"))
            first = DenseReason.FIRST if number == 0 else DenseReason.EVICTED
            assert figures.dense_reason == first
            assert apart(context, dense(cached, frame)) < EXACT
    assert len(cached.store) == 16
    # The last sixteen are kept.
    assert encode(cached, scene(2, seed=63), Whose(63, "e0"))[1].dense_reason == ""
    cached.forget(63)
    assert encode(cached, scene(3, seed=63), Whose(63, "e0"))[1].dense_reason == DenseReason.FIRST


def test_what_cannot_be_met_is_refused(tiny) -> None:
    with pytest.raises(OnsetError, match="cache_rows"):
        CacheConfig(CacheMode.PIXEL)
    with pytest.raises(OnsetError, match="cache_rows"):
        CacheConfig(CacheMode.PIXEL, 0.3)
    with pytest.raises(OnsetError, match="selector"):
        CachedEncoder(tiny, CacheConfig(CacheMode.LEARNED))
    selector = learned(tiny)
    selector.meta = replace(selector.meta, model="other")
    with pytest.raises(OnsetError, match="a selector for tiny"):
        CachedEncoder(tiny, CacheConfig(CacheMode.LEARNED), selector)
    cached = encoder(tiny, "pixel", 0.5, budget=1000)
    with pytest.raises(OnsetError, match="cache_budget"):
        encode(cached, scene(0))
