"""Meta-World as a suite of scripts/evaluate.py and scripts/train.py."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from rich.console import Console

from controller.errors import OnsetError
from controller.loop_types import Counters
from scripts import collect, train
from scripts.evaluate import Args, main, plan
from scripts.evaluate_cases import Case, Variant, conditions, make_cases
from scripts.evaluate_report import Outcome, Report
from scripts.evaluate_suite import suite_figures, suite_rows, suite_table, tasks_of
from scripts.train_metaworld import Recipe, Run, make_meta
from scripts.train_metaworld import train as train_metaworld
from sim.collect import Noise
from sim.rollout import Episode
from vla.checkpoint import load_checkpoint, save_checkpoint
from vla.models.small import SmallVLA
from vla.train.loop import TrainConfig
from vla.transforms import Normaliser

PERIOD = 50_000_000
CONSTANT = Variant("constant", 10, (10,) * 16)


def outcome(won: bool) -> Outcome:
    return Outcome(Episode(0, "reach", won, float(won), False, 20, Counters()))


def report(policy: list[bool], late: list[bool], expert: list[bool]) -> Report:
    found = conditions((0, 4), (), Path("none"), PERIOD)
    cases = make_cases(("policy", "expert"), [CONSTANT], found, 4, 1, len(policy), PERIOD)
    wins = [policy, late, expert, expert]
    results: dict[Case, list[Outcome]] = {
        case: [outcome(won) for won in of_case] for case, of_case in zip(cases, wins, strict=True)
    }
    return Report(results)


@pytest.fixture
def reports() -> dict[str, Report]:
    yes, no = [True] * 4, [False] * 4
    return {"reach-v3": report(yes, [True, False] * 2, yes), "push-v3": report(no, no, yes)}


def test_figures_are_means_over_the_tasks_and_ratios_are_theirs(reports) -> None:
    figures = suite_figures(reports)
    assert figures["success"] == 0.5
    assert figures["success_d4"] == 0.25
    assert figures["kept_at_d4"] == 0.5
    assert figures["success_over_expert"] == 0.5
    assert (figures["success_reach-v3"], figures["success_push-v3"]) == (1, 0)


def test_one_table_and_every_row_says_its_task(reports) -> None:
    rows = suite_rows(reports)
    assert [row["task"] for row in rows] == ["reach-v3"] * 4 + ["push-v3"] * 4
    out = io.StringIO()
    Console(file=out, width=80).print(suite_table("metaworld", reports))
    lines = [line.split() for line in out.getvalue().splitlines()]
    assert ["reach-v3", "policy", "0", "4", "4", "1.000", "0.51-1.00", "1.000", "20"] in lines
    assert ["all", "policy", "0", "4", "8", "0.500", "0.500", "20"] in lines


def test_what_a_suite_does_not_have_is_refused() -> None:
    with pytest.raises(OnsetError, match=r"tasks: given \['whack'\]; allowed: .*reach-v3"):
        tasks_of("metaworld", "", ["whack"], ())
    with pytest.raises(OnsetError, match=r"given \['whack'\]; allowed: --tasks, with metaworld"):
        tasks_of("metaworld", "whack", (), ())
    with pytest.raises(OnsetError, match=r"given \['reach-v3'\]; allowed: --task, with this"):
        tasks_of("onset", "whack", ["reach-v3"], ())
    with pytest.raises(SystemExit, match="swap_instruction"):
        main(Args(suite="metaworld", tasks=("reach-v3",), who=("swap_instruction",)))


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    meta = make_meta(("reach-v3", "drawer-close-v3"))
    torch.manual_seed(0)
    scales = Normaliser(
        torch.zeros(8), torch.ones(8), torch.zeros(16, 4), torch.ones(16, 4), torch.ones(4)
    )
    path = tmp_path / "small.safetensors"
    save_checkpoint(path, meta, SmallVLA(meta.model), scales)
    return path


def test_a_policy_is_asked_only_for_what_it_knows(policy: Path) -> None:
    args = Args(suite="metaworld", tasks=("push-v3",), policy=str(policy), who=("policy",))
    with pytest.raises(OnsetError, match=r"given \['push'\]; allowed: \['reach', 'drawer close'\]"):
        plan(args)


def test_an_evaluation_runs_every_row_of_every_task(policy: Path, tmp_path: Path) -> None:
    path = tmp_path / "metaworld.json"
    main(
        Args(
            suite="metaworld",
            tasks=("reach-v3", "drawer-close-v3"),
            policy=str(policy),
            episodes=1,
            who=("policy", "expert", "swap_frames"),
            delays=(0, 1),
            workers=1,
            json=path,
        )
    )
    document = json.loads(path.read_text())
    assert [(row["task"], row["who"], row["delay"]) for row in document["rows"]] == [
        (task, who, delay)
        for task in ("reach-v3", "drawer-close-v3")
        for who, delay in [
            ("policy", 0),
            ("policy", 1),
            ("expert", 0),
            ("expert", 1),
            ("swap_frames", 0),
        ]
    ]
    assert document["figures"]["expert_success"] == 1


def test_training_collects_trains_and_goes_on_where_it_was(tmp_path: Path) -> None:
    run = Run(
        tasks=("reach-v3", "drawer-close-v3"),
        folder=tmp_path,
        workers=1,
        threads=1,
        device="cpu",
        ship=False,
        train=TrainConfig(batch=4, save_every=1),
    )
    train_metaworld(run, Recipe(episodes=1, rounds=1, round_episodes=1, first=1, steps=2))
    shards = sorted(path.name for path in (tmp_path / "data").iterdir())
    tasks = ("drawer-close-v3", "reach-v3")
    assert shards == [f"round{n}_{task}_000.npz" for n in (0, 1) for task in tasks]
    checkpoint = load_checkpoint(tmp_path / "policy.safetensors")
    assert checkpoint.meta.prompts == ("reach", "drawer close")
    assert np.isfinite(checkpoint.normaliser.chunk_std.numpy()).all()
    before = (tmp_path / "policy.safetensors").read_bytes()
    train_metaworld(run, Recipe(episodes=1, rounds=1, round_episodes=1, first=1, steps=2))
    assert (tmp_path / "policy.safetensors").read_bytes() == before


def test_training_refuses_what_says_nothing_there() -> None:
    with pytest.raises(OnsetError, match=r"metaworld with \['task', 'tune_steps'\]"):
        train.main(train.Args("whack", suite="metaworld", tasks=("reach-v3",), tune_steps=3))
    with pytest.raises(OnsetError, match=r"tasks: given \['fly-v3'\]"):
        train.main(train.Args(suite="metaworld", tasks=("fly-v3",)))
    with pytest.raises(OnsetError, match="none without a suite"):
        train.main(train.Args("whack", tasks=("reach-v3",)))


def test_a_dataset_of_the_experts_stretches(tmp_path: Path) -> None:
    root, tasks = tmp_path / "dataset", ("reach-v3", "drawer-close-v3")
    collect.main(collect.Args(root, suite="metaworld", tasks=tasks, episodes=1, videos=False))
    dataset = LeRobotDataset("onset/metaworld", root=root)
    assert dataset.fps == 20
    assert dataset[0]["expert_chunk"].shape == (16, 4)
    assert {dataset[i]["task"] for i in range(len(dataset))} == {"reach", "drawer close"}
    with pytest.raises(OnsetError, match="noise: given .*; allowed: the default"):
        collect.main(collect.Args(root, suite="metaworld", tasks=tasks, noise=Noise(wander=1.0)))
