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
from vla.flow import interpolate, sample_time, velocity_from_clean
from vla.models.small import SmallVLAConfig
from vla.sampler import Sampler
from vla.schedule import SCHEDULES, make_schedule
from vla.train.data import Demonstrations
from vla.train.loop import TrainConfig, Trainer, learning_rate
from vla.train.losses import Draws, branch
from vla.train.offsets import Offsets
from vla.train.times import Mixture
from vla.transforms import Tokeniser

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
    position = np.zeros((steps, 1, 3), np.float32)
    position[:, 0, 0] = 0.1 * (cell - 1.5)
    chunk = plan(position, state)
    return {
        "frames_front": frames,
        "state": state,
        "chunk": chunk,
        "action": chunk[:, 0],
        "uv": uv.reshape(steps, 1, 1, 2).astype(np.float32),
        "inside": np.ones((steps, 1, 1), bool),
        "position": position,
        "velocity": np.zeros((steps, 1, 3), np.float32),
        "visible": np.ones((steps, 1), bool),
    }


def plan(position: np.ndarray, state: np.ndarray) -> np.ndarray:
    """A ramp from where the joints are, as steep as the square's place says."""
    ramp = np.arange(1, HORIZON + 1)[None, :, None] * position[:, :1, :1]
    chunk = (state[:, None, :6] + ramp).astype(np.float32)
    chunk[..., 5] = 0.5
    return chunk


def replan(position, velocity, visible, age_s, state) -> np.ndarray:
    return plan(position, state)


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path / "data" / "round0_000.npz"
    episodes = [(make_episode(rng, 20), PROMPTS[i % 2]) for i in range(6)]
    write_shard(path, episodes)
    return path


TUNE = {"draws": Draws(1, 1), "mixture": Mixture(), "offsets": Offsets(count=2, d_max=4)}
DISTIL = TUNE | {"draws": Draws(1, 1, "distil")}


def make_trainer(shard: Path, folder: Path, steps: int, **changes) -> Trainer:
    data = Demonstrations(("front",), {"front": (0, 2)}, 0.04, replan=replan)
    data.add(shard)
    relative = torch.tensor([1.0] * 5 + [0.0])
    settings = {"batch": 8, "warmup": 2, "save_every": 3, "seed": 3} | changes
    config = TrainConfig(steps=steps, **settings)
    meta = make_meta()
    model = dataclasses.replace(
        meta.model, mean_flow=config.draws.jump > 0, max_start=config.offsets.d_max
    )
    meta = dataclasses.replace(meta, model=model)
    return Trainer(meta, config, data, data.fit(relative), folder, torch.device("cpu"))


@pytest.mark.parametrize("stage", [{}, TUNE, DISTIL], ids=["flow", "meanflow", "distil"])
def test_resumed_run_equals_an_unbroken_one(shard: Path, tmp_path: Path, stage: dict) -> None:
    whole = make_trainer(shard, tmp_path / "whole", 6, **stage)
    whole.run(6, lambda step, figures: None)
    broken = make_trainer(shard, tmp_path / "broken", 6, **stage)
    broken.run(3, lambda step, figures: None)
    again = make_trainer(shard, tmp_path / "broken", 6, **stage)
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


def test_tuning_starts_from_the_averaged_weights_with_jumps_that_are_velocities(
    shard: Path, tmp_path: Path
) -> None:
    flow = make_trainer(shard, tmp_path / "flow", 6)
    flow.run(6, lambda step, figures: None)
    tuned = make_trainer(shard, tmp_path / "flow" / "tune", 6, **TUNE)
    tuned.start_from(tmp_path / "flow")
    for model in (tuned.model, tuned.average):
        state = model.state_dict()
        assert (state.pop("jump.weight") == 0).all()
        assert (state.pop("start.weight") == 0).all()
        for (name, given), kept in zip(
            flow.average.state_dict().items(), state.values(), strict=True
        ):
            torch.testing.assert_close(given, kept, msg=name)


@pytest.mark.parametrize("stage", [TUNE, DISTIL], ids=["meanflow", "distil"])
def test_tuning_learns_to_jump_and_keeps_what_the_flow_knows(
    shard: Path, tmp_path: Path, stage: dict
) -> None:
    flow = make_trainer(shard, tmp_path / "flow", 150)
    flow.run(150, lambda step, figures: None)
    # States of one episode have nothing to do with each other here: nothing can be continued.
    late = stage | {"offsets": Offsets(count=2, d_max=4, late=1.0, early=0.0)}
    tuned = make_trainer(shard, tmp_path / "tune", 150, **late)
    tuned.start_from(tmp_path / "flow")
    tuned.run(150, lambda step, figures: None)
    none = np.zeros((80, 1), np.int64)
    for start in (none, none + 4):
        batch = tuned.data.rows(np.arange(80), start, none, tuned.normaliser, tuned.tokeniser)
        branches = batch.branches
        noise = torch.randn(branches.chunk.shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            encoded = tuned.average.encode_with_readout(batch.inputs)
            context = branch(tuned.average, *encoded, branches)
        for name in SCHEDULES:
            chunk = torch.empty_like(noise)
            sampler = Sampler(tuned.average, make_schedule(name, HORIZON, 0, 10))
            for ripe in sampler.run(context, noise):
                chunk[:, torch.from_numpy(ripe.indices)] = ripe.values
            assert (chunk - branches.chunk)[branches.valid].abs().median() < 0.25, name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": 0.0}, "schedule.alpha"),
        ({"p": 1.5}, "mixture.p: given 1.5; allowed: 0..1"),
        ({"steps": 0}, "mixture.steps"),
    ],
)
def test_a_mixture_that_makes_no_sense_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(OnsetError, match=message):
        Mixture(**changes)


def test_lagged_frames_do_not_cross_episodes(shard: Path) -> None:
    data = Demonstrations(("front",), {"front": (0, 2)}, 0.04)
    data.add(shard)
    normaliser = data.fit(torch.tensor([1.0] * 5 + [0.0]))
    none = np.zeros((3, 1), np.int64)
    batch = data.rows(np.array([20, 21, 22]), none, none, normaliser, Tokeniser.of(PROMPTS))
    frames = batch.inputs.images["front"]
    assert frames.shape == (3, 2, SIZE, SIZE, 3)
    for row in range(3):  # steps 0, 1, 2 of the second episode all look back to its step 0
        torch.testing.assert_close(frames[row, 1], frames[0, 0])


def test_the_same_shard_is_read_once(shard: Path) -> None:
    data = Demonstrations(("front",), {"front": (0,)}, 0.04)
    data.add(shard)
    data.add(shard)
    assert len(data) == 120


def test_a_shard_without_an_array_is_refused(tmp_path: Path) -> None:
    episode = make_episode(np.random.default_rng(0), 5)
    del episode["uv"]
    write_shard(tmp_path / "bad.npz", [(episode, PROMPTS[0])])
    data = Demonstrations(("front",), {"front": (0,)}, 0.04)
    with pytest.raises(OnsetError, match="uv"):
        data.add(tmp_path / "bad.npz")


def test_velocity_of_the_true_clean_action_is_noise_minus_action() -> None:
    generator = torch.Generator().manual_seed(1)
    action, noise = torch.randn(2, 3, 5, 2, generator=generator).unbind(0)
    tau = sample_time(3, generator).expand(3, 5)
    x = interpolate(action, noise, tau)
    torch.testing.assert_close(velocity_from_clean(x, action, tau), noise - action)


def test_times_lean_towards_noise() -> None:
    tau = sample_time(200_000, torch.Generator().manual_seed(0))
    # P(t < x) = x^(3/2)
    for x in (0.25, 0.5, 0.75):
        assert abs((tau < x).float().mean().item() - x**1.5) < 5e-3


def test_learning_rate_warms_up_and_ends_at_zero() -> None:
    config = dataclasses.replace(TrainConfig(), steps=1000, warmup=100)
    assert learning_rate(0, config) == pytest.approx(0.01)
    assert learning_rate(100, config) == 1.0
    assert learning_rate(550, config) == pytest.approx(0.5)
    assert learning_rate(1000, config) == pytest.approx(0.0)
