"""Training: what is learnt is what is measured, and a resumed run is the unbroken one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from controller.errors import OnsetError
from sim.collect import write_shard
from sim.robots import so101
from vla.checkpoint import PolicyMeta, load_checkpoint
from vla.flow import flow_matching_loss, interpolate, sample_time, velocity_from_clean
from vla.models.small import SmallVLAConfig
from vla.train.data import Demonstrations
from vla.train.loop import TrainConfig, Trainer, learning_rate

PROMPTS = ("hit the red mole", "hit the blue mole")
SIZE, HORIZON = 24, 8


def make_meta() -> PolicyMeta:
    spec = so101.spec(("front",), (0, 2), size=SIZE)
    model = SmallVLAConfig(
        ("front",), (2,), image_size=SIZE, patch=12, width=32, depth=2, heads=2, horizon=HORIZON,
        words=6, max_words=4,
    )  # fmt: skip
    return PolicyMeta("tiny", model, PROMPTS, spec)


def make_episode(rng: np.random.Generator, steps: int) -> dict[str, np.ndarray]:
    """A bright square whose place decides the chunk."""
    cell = rng.integers(4, size=steps)
    frames = np.zeros((steps, SIZE, SIZE, 3), np.uint8)
    for i, c in enumerate(cell):
        y, x = 12 * (c // 2), 12 * (c % 2)
        frames[i, y + 4 : y + 8, x + 4 : x + 8] = 255
    uv = (np.stack([cell % 2, cell // 2], -1) * 12 + 6) / SIZE
    state = rng.normal(size=(steps, 12)).astype(np.float32)
    ramp = np.arange(1, HORIZON + 1)[None, :, None] * (cell[:, None, None] - 1.5) * 0.1
    chunk = (state[:, None, :6] + ramp).astype(np.float32)
    chunk[..., 5] = 0.5
    return {
        "frames_front": frames,
        "state": state,
        "chunk": chunk,
        "uv": uv.reshape(steps, 1, 1, 2).astype(np.float32),
        "inside": np.ones((steps, 1, 1), bool),
        "position": np.zeros((steps, 1, 3), np.float32),
        "velocity": np.zeros((steps, 1, 3), np.float32),
        "visible": np.ones((steps, 1), bool),
    }


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path / "data" / "round0_000.npz"
    episodes = [(make_episode(rng, 20), PROMPTS[i % 2]) for i in range(6)]
    write_shard(path, episodes)
    return path


def make_trainer(shard: Path, folder: Path, steps: int) -> Trainer:
    data = Demonstrations(("front",), {"front": (0, 2)})
    data.add(shard)
    relative = torch.tensor([1.0] * 5 + [0.0])
    config = TrainConfig(steps=steps, batch=8, draws=2, warmup=2, save_every=3, seed=3)
    return Trainer(make_meta(), config, data, data.fit(relative), folder, torch.device("cpu"))


def test_resumed_run_equals_an_unbroken_one(shard: Path, tmp_path: Path) -> None:
    whole = make_trainer(shard, tmp_path / "whole", 6)
    whole.run(6, lambda step, figures: None)
    broken = make_trainer(shard, tmp_path / "broken", 6)
    broken.run(3, lambda step, figures: None)
    again = make_trainer(shard, tmp_path / "broken", 6)
    assert again.resume()
    assert again.step == 3
    again.run(6, lambda step, figures: None)
    for (name, a), b in zip(
        whole.average.state_dict().items(), again.average.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7, msg=name)


def test_learns_what_the_picture_says(shard: Path, tmp_path: Path) -> None:
    trainer = make_trainer(shard, tmp_path / "run", 150)
    seen: list[dict[str, float]] = []
    trainer.run(150, lambda step, figures: seen.append(dict(figures)))
    assert seen[-1]["flow"] < 0.3 * seen[0]["flow"]
    assert seen[-1]["cell"] > 0.9
    loaded = load_checkpoint(tmp_path / "run" / "policy.safetensors")
    assert loaded.meta == make_meta()


def test_lagged_frames_do_not_cross_episodes(shard: Path) -> None:
    data = Demonstrations(("front",), {"front": (0, 2)})
    data.add(shard)
    normaliser = data.fit(torch.tensor([1.0] * 5 + [0.0]))
    from vla.transforms import Tokeniser

    batch = data.rows(np.array([20, 21, 22]), normaliser, Tokeniser.of(PROMPTS))
    frames = batch.inputs.images["front"]
    assert frames.shape == (3, 2, SIZE, SIZE, 3)
    for row in range(3):  # steps 0, 1, 2 of the second episode all look back to its step 0
        torch.testing.assert_close(frames[row, 1], frames[0, 0])


def test_the_same_shard_is_read_once(shard: Path) -> None:
    data = Demonstrations(("front",), {"front": (0,)})
    data.add(shard)
    data.add(shard)
    assert len(data) == 120


def test_a_shard_without_an_array_is_refused(tmp_path: Path) -> None:
    episode = make_episode(np.random.default_rng(0), 5)
    del episode["uv"]
    write_shard(tmp_path / "bad.npz", [(episode, PROMPTS[0])])
    data = Demonstrations(("front",), {"front": (0,)})
    with pytest.raises(OnsetError, match="uv"):
        data.add(tmp_path / "bad.npz")


def test_loss_of_the_true_velocity_is_zero_and_the_mask_counts() -> None:
    generator = torch.Generator().manual_seed(0)
    action, noise = torch.randn(2, 4, 5, 3, generator=generator).unbind(0)
    tau = sample_time(4, 5, generator)
    mask = torch.ones(4, 5, dtype=torch.bool)
    assert flow_matching_loss(noise - action, action, noise, tau, mask) == 0
    wrong = (noise - action).clone()
    wrong[:, 0] += 1.0
    mask[:, 0] = False
    assert flow_matching_loss(wrong, action, noise, tau, mask) == 0
    mask[:, 0] = True
    expected = tau[:, 0].sum() / mask.sum()
    torch.testing.assert_close(flow_matching_loss(wrong, action, noise, tau, mask), expected)


def test_velocity_of_the_true_clean_action_is_noise_minus_action() -> None:
    generator = torch.Generator().manual_seed(1)
    action, noise = torch.randn(2, 3, 5, 2, generator=generator).unbind(0)
    tau = sample_time(3, 5, generator)
    x = interpolate(action, noise, tau)
    torch.testing.assert_close(velocity_from_clean(x, action, tau), noise - action)


def test_times_lean_towards_noise() -> None:
    tau = sample_time(200_000, 1, torch.Generator().manual_seed(0))
    # P(t < x) = x^(3/2)
    for x in (0.25, 0.5, 0.75):
        assert abs((tau < x).float().mean().item() - x**1.5) < 5e-3


def test_learning_rate_warms_up_and_ends_at_zero() -> None:
    config = dataclasses.replace(TrainConfig(), steps=1000, warmup=100)
    assert learning_rate(0, config) == pytest.approx(0.01)
    assert learning_rate(100, config) == 1.0
    assert learning_rate(550, config) == pytest.approx(0.5)
    assert learning_rate(1000, config) == pytest.approx(0.0)
