"""Scales and their inverses, words and their ids."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.errors import ErrorCode, OnsetError
from tests.vla.helpers import PROMPTS
from vla.transforms import Normaliser, Tokeniser, frames_to_tensor

sizes = st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 5), st.integers(0, 3))


def drawn(size, seed: int, spread: float) -> tuple[Normaliser, torch.Tensor, torch.Tensor]:
    """A fitted normaliser, with new states and chunks. S is at least A."""
    batch, horizon, actions, extra = size
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(32 + batch, actions + extra, generator=generator) * spread
    chunks = torch.randn(32 + batch, horizon, actions, generator=generator) * spread
    relative = (torch.rand(actions, generator=generator) > 0.5).float()
    fitted = Normaliser.fit(states[:32], chunks[:32], relative)
    return fitted, states[32:], chunks[32:]


def undone(scales: Normaliser, normal: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
    """``Normaliser.actions`` of every index, chunk by chunk."""
    every = np.arange(normal.shape[1])
    pairs = zip(normal.numpy(), state.numpy(), strict=True)
    return torch.from_numpy(np.stack([scales.actions(n, s, every) for n, s in pairs]))


@settings(max_examples=60)
@given(size=sizes, seed=st.integers(0, 10**6), spread=st.sampled_from([0.001, 0.1, 1.0, 30.0]))
def test_actions_undo_chunk(size, seed, spread):
    scales, state, chunk = drawn(size, seed, spread)
    back = undone(scales, scales.chunk(chunk, state), state)
    torch.testing.assert_close(back, chunk, atol=1e-5 * max(1.0, spread), rtol=1e-4)


@settings(max_examples=30)
@given(size=sizes, seed=st.integers(0, 10**6), data=st.data())
def test_some_indices_come_back_as_they_would_in_the_whole(size, seed, data):
    scales, state, chunk = drawn(size, seed, 1.0)
    horizon = chunk.shape[1]
    chosen = data.draw(st.lists(st.integers(0, horizon - 1), min_size=1, unique=True))
    indices = np.array(sorted(chosen))
    normal = scales.chunk(chunk, state)
    part = scales.actions(normal[0].numpy()[indices], state[0].numpy(), indices)
    np.testing.assert_allclose(part, undone(scales, normal, state)[0].numpy()[indices], rtol=1e-6)


@settings(max_examples=30)
@given(size=sizes, seed=st.integers(0, 10**6), share=st.floats(0, 1))
def test_the_beginning_of_a_chunk_is_normalised_as_in_the_whole(size, seed, share):
    scales, state, chunk = drawn(size, seed, 1.0)
    count = max(1, round(share * chunk.shape[1]))
    torch.testing.assert_close(
        scales.chunk(chunk[:, :count], state), scales.chunk(chunk, state)[:, :count]
    )


def test_fitted_data_has_no_mean_and_unit_spread():
    generator = torch.Generator().manual_seed(0)
    state = torch.randn(4000, 4, generator=generator) * torch.tensor([0.1, 1.0, 5.0, 2.0]) + 3
    chunk = torch.randn(4000, 6, 2, generator=generator) * 0.4 - 1
    scales = Normaliser.fit(state, chunk, torch.tensor([1.0, 0.0]))
    for normal in (scales.state(state), scales.chunk(chunk, state)):
        torch.testing.assert_close(normal.mean(0), torch.zeros(normal.shape[1:]), atol=1e-4, rtol=0)
        torch.testing.assert_close(normal.std(0), torch.ones(normal.shape[1:]), atol=1e-4, rtol=0)


def test_what_hardly_varies_is_not_magnified():
    still = torch.zeros(10, 3), torch.zeros(10, 4, 2)
    scales = Normaliser.fit(*still, torch.zeros(2), floor=0.02)
    assert (scales.state_std == 0.02).all()
    assert (scales.chunk_std == 0.02).all()


def test_a_relative_dimension_moves_with_the_state_and_an_absolute_one_does_not():
    scales, state, chunk = drawn((1, 4, 2, 1), 3, 1.0)
    scales = Normaliser(
        scales.state_mean,
        scales.state_std,
        scales.chunk_mean,
        scales.chunk_std,
        torch.tensor([1.0, 0.0]),
    )
    normal = scales.chunk(chunk, state)
    moved = undone(scales, normal, state + 0.5) - undone(scales, normal, state)
    torch.testing.assert_close(moved[..., 0], torch.full((1, 4), 0.5))
    torch.testing.assert_close(moved[..., 1], torch.zeros(1, 4))


def test_every_prompt_has_ids_of_its_own_padded_with_nought():
    tokens = Tokeniser.of(("hit it", "hit the red mole"))
    short, long = tokens.encode("hit it"), tokens.encode("hit the red mole")
    assert short.dtype == torch.int64
    assert short.shape == long.shape == (4,)
    assert short[2:].tolist() == [0, 0]
    assert 0 not in long.tolist()
    assert max(long.tolist()) <= len(tokens.vocabulary)
    assert short[0] == long[0]  # the same word


def test_case_and_spaces_do_not_matter():
    tokens = Tokeniser.of(PROMPTS)
    assert tokens.encode("  Hit  THE red mole ").tolist() == tokens.encode(PROMPTS[0]).tolist()


@pytest.mark.parametrize("prompt", ["", "hit the", "hit the green mole", "hit the red mole now"])
def test_an_unknown_instruction_is_refused_with_the_known_ones(prompt):
    with pytest.raises(OnsetError) as caught:
        Tokeniser.of(PROMPTS).encode(prompt)
    error = caught.value
    assert error.code is ErrorCode.UNKNOWN_PROMPT
    assert (error.given, error.allowed) == (repr(prompt), str(list(PROMPTS)))


def test_frames_become_a_batch_of_one_whatever_their_layout():
    frames = np.arange(2 * 4 * 3 * 3, dtype=np.uint8).reshape(2, 4, 3, 3)
    for layout in (frames, frames[:, ::-1], frames[..., ::-1]):
        tensor = frames_to_tensor(layout)
        assert (tensor.dtype, tuple(tensor.shape)) == (torch.uint8, (1, 2, 4, 3, 3))
        np.testing.assert_array_equal(tensor[0].numpy(), layout)
