"""The training script where it goes on from a policy that is trained."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from controller.errors import OnsetError
from scripts.train import Args, demonstrations, go_on, make_recipe, train_metaworld
from scripts.train_collect import FIRST_SEED, episode_delay, make_replan
from sim.collect import Noise, collect_episode
from sim.env import SimRobot
from sim.tasks import make_task
from vla.checkpoint import load_checkpoint

FIRST_SEEDS = (FIRST_SEED, FIRST_SEED + 100_000)


def test_tuning_goes_on_from_a_policys_weights_and_scales_and_resumes(tmp_path: Path):
    args = Args(
        task="intercept",
        start=Path("intercept"),
        episodes=1,
        rounds=1,
        round_episodes=1,
        round_delay=6,
        tune_steps=0,
        workers=1,
        out=tmp_path,
    )
    start = load_checkpoint(Path("intercept"))
    task = make_task("intercept")

    def driven(number: int) -> np.ndarray:
        with np.load(tmp_path / "intercept" / "data" / f"round{number}_000.npz") as shard:
            return shard["delay"]

    def begin():
        data = demonstrations(task, start.meta)
        return go_on(args, make_recipe(args), Path("intercept"), data, tmp_path / "intercept")

    tuned = begin()
    assert len(tuned.data) > 0
    assert sorted(p.name for p in (tmp_path / "intercept" / "data").iterdir()) == [
        "round0_000.npz",
        "round1_000.npz",
    ]
    # The expert drives late as well.
    assert [set(driven(number)) for number in (0, 1)] == [
        {episode_delay(s, 6)} for s in FIRST_SEEDS
    ]
    for name, weight in start.model.state_dict().items():
        assert torch.equal(tuned.average.state_dict()[name], weight), name
        assert torch.equal(tuned.model.state_dict()[name], weight), name
    for name, scale in start.normaliser.tensors().items():
        assert np.array_equal(tuned.normaliser.tensors()[name], scale), name

    tuned.step = 1
    tuned.save()
    assert begin().step == 1


@pytest.mark.parametrize(
    ("policy", "delay", "field"), [("whack", 0, "start"), ("intercept", 13, "round_delay")]
)
def test_another_tasks_policy_and_a_delay_past_tuning_are_refused(tmp_path, policy, delay, field):
    args = Args(task="intercept", start=Path(policy), round_delay=delay, out=tmp_path)
    task = make_task("intercept")
    data = demonstrations(task, load_checkpoint(Path("intercept")).meta)
    with pytest.raises(OnsetError, match=field):
        go_on(args, make_recipe(args), Path(policy), data, tmp_path)


def test_every_other_episode_has_all_of_the_delay():
    drawn = [episode_delay(seed, 6) for seed in range(400)]
    assert set(drawn[1::2]) == {6}
    assert set(drawn[::2]) == set(range(7))
    assert {episode_delay(seed, 0) for seed in range(20)} == {0}


@pytest.mark.parametrize("task", ["conveyor", "intercept"])
def test_a_later_chunk_knows_nothing_that_has_happened_since(task: str):
    """Up to an event it is what the expert planned then; past it, as if there had been none."""
    robot, late = SimRobot(make_task(task)), 4
    calm = Noise(wander=0.0, burst_size=0.0)
    for seed in itertools.count():
        rows, _ = collect_episode(robot, seed, noise=calm)
        event = (robot.task.event_ns() or 0) / robot.spec.period_ns
        if 10 < event < 20:  # before anything is grasped
            break
    robot.close()
    period_s = robot.spec.period_ns * 1e-9
    frames = np.arange(len(rows["state"]) - late)
    position, velocity, visible = (rows[n][frames] for n in ("position", "velocity", "visible"))
    paths = [rows["state"][k : k + late + 1] for k in frames]
    again = make_replan(robot.task, period_s)(position, velocity, visible, paths)
    off = np.abs(again - rows["chunk"][frames + late]).max(axis=(1, 2))
    before, across = off[frames + late < event], off[(frames < event) & (event < frames + late)]
    assert len(before) > 5
    assert np.quantile(before, 0.9) < 0.02
    assert across.max() > 0.1


def test_metaworld_takes_none_of_its_options():
    with pytest.raises(OnsetError, match="start"):
        train_metaworld(Args(suite="metaworld", tasks=("reach-v3",), start=Path("metaworld")))
