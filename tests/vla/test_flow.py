"""The convention of flow time, and the loss."""

import pytest
import torch

from vla.flow import flow_matching_loss, interpolate, velocity_from_clean

H, A = 6, 2


def noise(seed: int = 0) -> torch.Tensor:
    return torch.randn(1, H, A, generator=torch.Generator().manual_seed(seed))


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
