"""The training script where it goes on from a policy that is trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from controller.errors import OnsetError
from scripts.train import Args, go_on, make_recipe, train_metaworld
from vla.checkpoint import load_checkpoint


@pytest.mark.parametrize("strategy", ["", "onset"])
def test_tuning_goes_on_from_a_policys_weights_and_scales_and_resumes(tmp_path: Path, strategy):
    args = Args(
        task="intercept",
        start=Path("intercept"),
        episodes=1,
        rounds=1,
        round_episodes=1,
        round_delay=6,
        round_strategy=strategy,
        tune_steps=0,
        workers=1,
        out=tmp_path,
    )
    start = load_checkpoint(Path("intercept"))

    def begin():
        return go_on(args, make_recipe(args), Path("intercept"), tmp_path / "intercept")

    tuned = begin()
    assert len(tuned.data) > 0
    assert sorted(p.name for p in (tmp_path / "intercept" / "data").iterdir()) == [
        "round0_000.npz",
        "round1_000.npz",
    ]
    for name, weight in start.model.state_dict().items():
        assert torch.equal(tuned.average.state_dict()[name], weight), name
        assert torch.equal(tuned.model.state_dict()[name], weight), name
    for name, scale in start.normaliser.tensors().items():
        assert np.array_equal(tuned.normaliser.tensors()[name], scale), name

    tuned.step = 1
    tuned.save()
    assert begin().step == 1


def test_tuning_may_go_on_with_finer_patches_and_more_frames(tmp_path: Path):
    """The policy that drives the round still sees the frames that it knows."""
    given = {"episodes": 1, "rounds": 1, "round_episodes": 1, "tune_steps": 1, "workers": 1}
    seen = {"patch": 8, "lags": (0, 1, 3, 8)}
    args = Args(task="intercept", start=Path("intercept"), out=tmp_path, **given, **seen)
    args = replace(args, tune=replace(args.tune, batch=2))
    start = load_checkpoint(Path("intercept"))
    tuned = go_on(args, make_recipe(args), Path("intercept"), tmp_path / "intercept")
    assert tuned.average.patches[0].position.shape == (144, start.meta.model.width)
    tuned.run(1, lambda step, figures: None)
    made = load_checkpoint(tmp_path / "intercept" / "tune" / "policy.safetensors")
    assert made.meta.model == replace(start.meta.model, patch=8, lags=(4,))
    assert made.meta.robot.cameras[0].lags == (0, 1, 3, 8)


def test_another_order_of_frames_is_refused(tmp_path: Path):
    """The first ones are those that the weights are for."""
    args = Args(task="intercept", start=Path("intercept"), lags=(0, 3, 8), out=tmp_path)
    with pytest.raises(OnsetError, match="lags"):
        go_on(args, make_recipe(args), Path("intercept"), tmp_path)


@pytest.mark.parametrize(
    ("policy", "delay", "field"), [("whack", 0, "start"), ("intercept", 13, "round_delay")]
)
def test_another_tasks_policy_and_a_delay_past_tuning_are_refused(tmp_path, policy, delay, field):
    args = Args(task="intercept", start=Path(policy), round_delay=delay, out=tmp_path)
    with pytest.raises(OnsetError, match=field):
        go_on(args, make_recipe(args), Path(policy), tmp_path)


def test_a_strategy_that_does_not_exist_is_refused(tmp_path):
    args = Args(task="intercept", start=Path("intercept"), round_strategy="ours", out=tmp_path)
    with pytest.raises(OnsetError, match="round_strategy.*onset"):
        go_on(args, make_recipe(args), Path("intercept"), tmp_path)


def test_metaworld_takes_none_of_its_options():
    with pytest.raises(OnsetError, match="start"):
        train_metaworld(Args(suite="metaworld", tasks=("reach-v3",), start=Path("metaworld")))
