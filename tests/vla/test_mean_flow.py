"""MeanFlow: the derivative against finite differences, the identity and what is learnt from it
against fields whose average velocity is known."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.vla.helpers import inputs_of, observation
from vla.engine import Engine
from vla.flow import interpolate
from vla.policy import Context
from vla.schedule import horizon_aware
from vla.train.mean_flow import distilled_target, jump_loss, mean_flow_target
from vla.train.times import Mixture, Times, draw_jumps, draw_points, hit_times


def jump(start: float, end: float, batch: int, horizon: int, rate: float = 1.0) -> Times:
    shape = (batch, horizon)
    return Times(
        torch.full(shape, start),
        torch.full(shape, end),
        torch.full(shape, rate),
        torch.ones(shape, dtype=torch.bool),
    )


# The derivative


@pytest.mark.parametrize("aware", [False, True])
def test_the_derivative_along_the_flow_agrees_with_finite_differences(mean_flow, aware):
    with torch.no_grad():
        context = mean_flow.model.encode(inputs_of(Engine(mean_flow), observation(1)))
    # In double precision, or the differences would be rounding.
    context = Context(
        tuple(kv.double() for kv in context.keys_values),
        context.summary.double(),
        context.image_rows,
    )
    model = mean_flow.model.double()
    try:
        generator = torch.Generator().manual_seed(0)
        action, noise = torch.randn(2, 1, 8, 2, generator=generator, dtype=torch.float64).unbind(0)
        times = draw_jumps(torch.tensor([2]), 8, Mixture(p=float(aware)), generator)
        times = Times(times.start.double(), times.end.double(), times.rate.double(), times.free)

        def field(x, start, end):
            return model.average_velocity(x, start, end, context)

        aim = mean_flow_target(field, action, noise, times)
        h = 1e-6
        rate = times.rate * times.free

        def moved(by):
            start = times.start + by * rate
            return field(interpolate(action, noise, start), start, times.end)

        along = (moved(h) - moved(-h)) / (2 * h)
        length = torch.where(rate > 0, (times.start - times.end) / rate.clamp(min=1e-9), 0.0)
        expected = (noise - action) - length[..., None] * along
        torch.testing.assert_close(aim, expected, atol=1e-5, rtol=1e-5)
    finally:
        model.float()


def test_the_gradient_runs_through_the_answer_and_not_through_the_target(mean_flow):
    model = mean_flow.model
    with torch.no_grad():
        context = model.encode(inputs_of(Engine(mean_flow), observation(1)))
    generator = torch.Generator().manual_seed(0)
    action, noise = torch.randn(2, 1, 8, 2, generator=generator).unbind(0)
    times = jump(0.9, 0.2, 1, 8)

    def field(x, start, end):
        return model.average_velocity(x, start, end, context)

    aim = mean_flow_target(field, action, noise, times)
    assert not aim.requires_grad
    walked = distilled_target(lambda x, t: field(x, t, t), action, noise, times)
    assert not walked.requires_grad
    jump_loss(field, aim, action, noise, times, torch.ones(1, dtype=torch.bool)).backward()
    assert model.jump.weight.grad.abs().max() > 0
    model.zero_grad(set_to_none=True)


# The identity, on one Gaussian: everything is known in closed form


class Gaussian:
    """The flow from N(0, 1) to N(m, s^2): the way of x is ``mean_t + sigma_t z`` with z fixed."""

    def __init__(self, mean: float, spread: float) -> None:
        self.mean, self.spread = mean, spread

    def sigma(self, t):
        return (t**2 + ((1 - t) * self.spread) ** 2).sqrt()

    def average(self, x, start, end):
        z = (x - ((1 - start) * self.mean)[..., None]) / self.sigma(start)[..., None]
        there = ((1 - end) * self.mean)[..., None] + self.sigma(end)[..., None] * z
        return (x - there) / (start - end)[..., None]

    def velocity(self, x, t):
        sigma = self.sigma(t)
        slope = (t - (1 - t) * self.spread**2) / sigma
        return (
            -self.mean
            + slope[..., None] * (x - ((1 - t) * self.mean)[..., None]) / (sigma[..., None])
        )


def test_the_target_is_in_the_mean_the_exact_average_velocity():
    gaussian, generator = Gaussian(0.7, 0.4), torch.Generator().manual_seed(0)
    count, start, end = 400_000, 0.8, 0.3
    action = 0.7 + 0.4 * torch.randn(count, 1, 1, generator=generator)
    noise = torch.randn(count, 1, 1, generator=generator)
    times = jump(start, end, count, 1)
    aim = mean_flow_target(gaussian.average, action, noise, times)
    x = interpolate(action, noise, times.start)
    # Given x the target is right in the mean: compare in narrow bins of x.
    for low in (-0.6, 0.0, 0.5, 0.9):
        inside = ((x > low) & (x < low + 0.1)).flatten()
        exact = gaussian.average(x[inside], times.start[inside], times.end[inside]).mean()
        assert aim[inside].mean() == pytest.approx(exact.item(), abs=0.03)


def test_each_index_has_the_average_velocity_of_its_own_rate():
    # Index 0 runs ten times as fast as rho, index 1 once, index 2 has ended.
    gaussian, generator = Gaussian(-0.3, 0.5), torch.Generator().manual_seed(1)
    count = 400_000
    action = -0.3 + 0.5 * torch.randn(count, 3, 1, generator=generator)
    noise = torch.randn(count, 3, 1, generator=generator)
    start, end = torch.tensor([0.9, 0.9, 0.0]), torch.tensor([0.1, 0.82, 0.0])
    times = Times(
        start.repeat(count, 1),
        end.repeat(count, 1),
        torch.tensor([10.0, 1.0, 0.0]).repeat(count, 1),
        torch.ones(count, 3, dtype=torch.bool),
    )

    def field(x, s, e):
        running = gaussian.average(x[:, :2], s[:, :2], e[:, :2])
        return torch.cat([running, torch.zeros_like(x[:, 2:])], dim=1)

    aim, x = mean_flow_target(field, action, noise, times), interpolate(action, noise, times.start)
    assert torch.isfinite(aim).all()
    for index in (0, 1):
        inside = (x[:, index, 0] > 0.2) & (x[:, index, 0] < 0.3)
        exact = field(x[inside], times.start[inside], times.end[inside])[:, index].mean()
        assert aim[inside, index].mean() == pytest.approx(exact.item(), abs=0.03)


@pytest.mark.parametrize(("start", "end"), [(1.0, 0.0), (0.7, 0.2)])
def test_a_walk_of_many_steps_has_the_exact_average_velocity(start, end):
    gaussian, generator = Gaussian(0.7, 0.4), torch.Generator().manual_seed(0)
    action = 0.7 + 0.4 * torch.randn(64, 2, 1, generator=generator)
    noise = torch.randn(64, 2, 1, generator=generator)
    times = jump(start, end, 64, 2)
    x = interpolate(action, noise, times.start)
    walked = distilled_target(gaussian.velocity, action, noise, times, steps=2000)
    torch.testing.assert_close(
        walked, gaussian.average(x, times.start, times.end), atol=2e-3, rtol=0
    )


def test_a_walk_along_the_table_stops_each_index_where_it_ends():
    # rho from 1 to .8: index 0 (rate 10) is there after half of the way, index 1 goes all of it.
    times = Times(
        torch.ones(1, 2), torch.tensor([[0.0, 0.8]]), torch.tensor([[10.0, 1.0]]),
        torch.ones(1, 2, dtype=torch.bool),
    )  # fmt: skip
    asked: list[torch.Tensor] = []

    def teacher(x, at):
        asked.append(at[0])
        return torch.ones_like(x)

    walked = distilled_target(teacher, torch.zeros(1, 2, 1), torch.zeros(1, 2, 1), times, steps=4)
    torch.testing.assert_close(walked, torch.ones(1, 2, 1))
    expected = torch.tensor([[1.0, 1.0], [0.5, 0.95], [0.0, 0.9], [0.0, 0.85]])
    torch.testing.assert_close(torch.stack(asked), expected, atol=1e-5, rtol=0)


# What is learnt, on a mixture of Gaussians in the plane

CENTRES = torch.tensor([[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]])
SPREAD = 0.3


def mixture_velocity(x: torch.Tensor, t: float) -> torch.Tensor:
    """The exact marginal velocity, E[noise - action | x_t]. Shape (N, 2)."""
    variance = t**2 + ((1 - t) * SPREAD) ** 2
    gap = x[:, None] - (1 - t) * CENTRES  # (N, 3, 2)
    weight = (-gap.pow(2).sum(-1) / (2 * variance)).softmax(-1)
    noise = t / variance * gap
    action = CENTRES + (1 - t) * SPREAD**2 / variance * gap
    return (weight[..., None] * (noise - action)).sum(1)


def mixture_average(x: torch.Tensor, start: float, end: float, steps: int = 400) -> torch.Tensor:
    """The exact average velocity, by integrating the exact flow (midpoint rule)."""
    at, there = start, x.double()
    change = (end - start) / steps
    for _ in range(steps):
        middle = there + 0.5 * change * mixture_velocity(there, at)
        there = there + change * mixture_velocity(middle, at + 0.5 * change)
        at += change
    return ((x - there) / (start - end)).float()


class Net(nn.Module):
    """A field in the plane as an MLP of (x, t, t - r)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(4, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(),
            nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 2),
        )  # fmt: skip

    def forward(self, x, start, end):
        return self.net(torch.cat([x, start[..., None], (start - end)[..., None]], dim=-1))


@pytest.mark.timeout(300)
def test_a_mixture_of_gaussians_in_one_step():
    torch.manual_seed(0)
    net, generator = Net(), torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(net.parameters(), lr=2e-3)
    steps, batch = 1500, 256
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    plain, none = Mixture(p=0.0), torch.zeros(batch, dtype=torch.int64)
    valid = torch.ones(batch, dtype=torch.bool)
    for _ in range(steps):
        pick = torch.randint(3, (batch, 1), generator=generator)
        action = CENTRES[pick] + SPREAD * torch.randn(batch, 1, 2, generator=generator)
        noise = torch.randn(batch, 1, 2, generator=generator)
        loss = torch.zeros(())
        # Half of the batch with r = t, which is flow matching.
        for draw in (draw_jumps, draw_points):
            times = draw(none, 1, plain, generator)
            aim = mean_flow_target(net, action, noise, times)
            loss = loss + jump_loss(net, aim, action, noise, times, valid)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    x = torch.randn(2000, 2, generator=generator)
    exact = mixture_average(x, 1.0, 0.0)
    with torch.no_grad():
        ones, zeros = torch.ones(2000, 1), torch.zeros(2000, 1)
        learnt = net(x[:, None], ones, zeros)[:, 0]
        euler = net(x[:, None], ones, ones)[:, 0]

    def off(u):
        return (u - exact).norm(dim=-1).median().item()

    # One Euler step lands on the mean of the mixture; one average velocity on a mode.
    assert off(euler) > 1.0
    assert off(learnt) < 0.25
    nearest = (x[:, None] - learnt[:, None] - CENTRES).norm(dim=-1).min(1).values
    assert nearest.median() < 2 * SPREAD


# The times


@pytest.mark.parametrize("delay", [0, 1, 5, 10])
def test_the_times_of_training_are_those_of_the_table(delay):
    mixture, horizon = Mixture(alpha=0.7), 30
    hit = hit_times(horizon, torch.tensor([[delay]]), mixture)[0]
    schedule = horizon_aware(horizon, delay, 10, 0.7)
    for j in range(10):
        tau = ((1 - j / 10 - hit) / (1 - hit)).clamp(min=0)
        np.testing.assert_allclose(tau[delay:], schedule.tau[j, delay:], atol=1e-5)


def test_the_mixture_has_the_shares_that_it_names():
    generator = torch.Generator().manual_seed(0)
    delay = torch.randint(5, (20_000,), generator=generator)
    times = draw_points(delay, 12, Mixture(p=0.3), generator)
    assert torch.equal((~times.free).sum(1), delay)
    assert (times.start[~times.free] == 0).all()
    # The last index has rho itself, the first free one differs from it only under the table.
    first = times.start.gather(1, delay[:, None])[:, 0]
    assert (first != times.start[:, -1]).float().mean().item() == pytest.approx(0.3, abs=0.02)


def test_jumps_end_before_they_start_and_within_a_step_of_the_table():
    generator = torch.Generator().manual_seed(0)
    none = torch.zeros(5000, dtype=torch.int64)
    times = draw_jumps(none, 32, Mixture(p=1.0), generator)
    assert (times.end <= times.start).all()
    # rho of the last index: one step at the most.
    assert (times.start[:, -1] - times.end[:, -1]).max() <= 0.1 + 1e-6
    flat = draw_jumps(none, 32, Mixture(p=0.0), generator)
    assert (flat.end == 0).all(1).float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert (flat.rate == 1).all()
