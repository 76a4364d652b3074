"""A selector is trained for a LeRobot policy, and serves it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from controller.errors import OnsetError
from tests.vla.adapters.test_rows import COUNT, KINDS, difference, moved
from tests.vla.adapters.test_served import PROMPT, chunk, observation, served, whose
from vla.cache.config import CacheConfig, CacheMode
from vla.serve.config import ServeConfig
from vla.train.blended import Rollout
from vla.train.cache import CacheTrainer, CacheTraining

if TYPE_CHECKING:
    from tests.vla.adapters.tiny import Tiny

BRIEF = CacheTraining(align=2, steps=4, batch=2, frames=2)


def rollouts() -> list[Rollout]:
    """Two cameras; in the front one a patch wanders."""
    found = []
    for seed in range(2):
        asked = observation(seed + 1)
        frames = {name: np.repeat(frame[None], 6, 0) for name, frame in asked.frames.items()}
        for step in range(6):
            frames["front"][step, :, 8 * step : 8 * step + 8, :16] = 255
        state = np.repeat(asked.state[None], 6, 0) + 0.1 * np.arange(6, dtype=np.float32)[:, None]
        found.append(Rollout(PROMPT, state, frames))
    return found


def blended(tiny: Tiny) -> Any:
    from tests.vla.adapters.tiny import small_gemmas
    from vla.adapters.blended import BlendedLeRobot
    from vla.adapters.load import load_lerobot_policy

    with small_gemmas():  # of its own: it is frozen
        policy = load_lerobot_policy(str(tiny.path), language=tiny.language)
    return BlendedLeRobot(policy, served(policy).cameras)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_mask_of_zero_and_one_is_what_is_served(kind: str, tinies: dict[str, Tiny]):
    from tests.vla.adapters.test_rows import context_of, engine

    policy = blended(tinies[kind])
    rollout = rollouts()[0]
    shared = engine(policy._policy)
    asked = [
        replace(
            observation(1),
            id=at + 1,
            step=at + 1,
            state=rollout.state[at],
            frames={name: frames[at] for name, frames in rollout.frames.items()},
        )
        for at in range(2)
    ]
    context_of(shared, asked[0])
    expected, _ = context_of(shared, asked[1])
    mask = torch.zeros(1, COUNT[kind])
    mask[0, shared.rows.chosen] = 1
    _, past = policy.encode(policy.inputs([rollout], [0]))
    context, kept = policy.encode(policy.inputs([rollout], [1]), past, mask)
    assert difference(context, expected) <= 1e-5
    pairs = zip(kept.keys_values, (*expected.keys, *expected.values), strict=True)
    assert all(torch.allclose(mine, theirs, rtol=0, atol=1e-5) for mine, theirs in pairs)


@pytest.mark.parametrize("kind", KINDS)
def test_the_choice_learns_through_the_policy(kind: str, tinies: dict[str, Tiny]):
    policy = blended(tinies[kind])
    before = {n: t.clone() for n, t in policy._adapter.policy.state_dict().items()}
    trainer = CacheTrainer(policy, replace(BRIEF, align=0, budget_weight=0.0), rollouts())
    trainer.train_step()
    for parameter in (trainer.heads.ratio_leave.weight, trainer.heads.enter.weight):
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0
    assert all(torch.equal(t, before[n]) for n, t in policy._adapter.policy.state_dict().items())


def test_its_scores_come_to_follow_what_matters(tinies: dict[str, Tiny]):
    config = replace(BRIEF, align=60, steps=60, batch=4, rate=0.02)
    trainer = CacheTrainer(blended(tinies["pi0"]), config, rollouts())
    losses = [trainer.train_step()["loss"] for _ in range(60)]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


@pytest.mark.timeout(300)
def test_a_selector_is_trained_on_a_dataset_and_served(
    tinies: dict[str, Tiny], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    pytest.importorskip("lerobot.datasets.lerobot_dataset", reason="needs the train extra")
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    from scripts.train_cache_lerobot import Args, main
    from tests.vla.adapters.tiny import STATE
    from vla.adapters.load import load_lerobot_policy

    tiny = tinies["smolvla"]
    path = Path(shutil.copytree(tiny.path, tmp_path / "policy"))
    picture = {"dtype": "image", "shape": (48, 64, 3), "names": ["height", "width", "channels"]}
    features: dict[str, Any] = {
        f"observation.images.{name}": picture for name in ("front", "wrist")
    }
    features["observation.state"] = {"dtype": "float32", "shape": (STATE,), "names": None}
    root = tmp_path / "dataset"
    data = LeRobotDataset.create("onset/test", 25, features, root=root, use_videos=False)
    for rollout in rollouts():
        for at, state in enumerate(rollout.state):
            frames = {f"observation.images.{n}": f[at][0] for n, f in rollout.frames.items()}
            data.add_frame({**frames, "observation.state": state, "task": PROMPT})
        data.save_episode()
    data.finalize()
    settings = {"root": root, "language": tiny.language, "execute_steps": 1, "train": BRIEF}
    args = Args(path, "onset/test", tmp_path / "run", **settings)
    assert main(args) == 0
    policy = load_lerobot_policy(str(path), language=tiny.language)
    assert policy.selector is not None
    assert (policy.selector.meta.rows, policy.selector.meta.model) == (8, policy.digest)
    config = ServeConfig(cache=CacheConfig(CacheMode.LEARNED))
    session = served(policy).engine(config).using(whose(0))
    chunk(session.stream(observation(1), PROMPT))
    (part,) = session.stream(moved(1, 1), PROMPT)
    assert part.cache.rows == 8

    assert main(replace(args, policy=tmp_path / "nowhere")) == 2
    assert "where the selector is put" in capsys.readouterr().err
    other = load_lerobot_policy(str(tiny.path), language=tiny.language)
    wrong = replace(other, selector=policy.selector, digest="0" * 64)
    with pytest.raises(OnsetError, match="a selector for"):
        served(wrong).engine(config)
