"""`lerobot-train` trains a LeRobot policy on what `sim.collect` collects; we tune and serve it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim.collect import HORIZON, Noise, collect_episode
from sim.dataset import write_dataset
from sim.env import SimRobot
from sim.tasks import make_task

pytest.importorskip("lerobot.datasets.lerobot_dataset", reason="needs the train extra")


@pytest.mark.timeout(300)
def test_lerobot_train_takes_what_was_collected(
    tmp_path: Path, language: Path, monkeypatch, capsys: pytest.CaptureFixture[str]
):
    from lerobot.scripts.lerobot_train import main

    from scripts import finetune_lerobot
    from scripts.finetune_lerobot import Args
    from vla.adapters.finetune import FinetuneConfig
    from vla.adapters.load import load_lerobot_policy
    from vla.adapters.lora import LoraConfig
    from vla.adapters.served import ServedLeRobot
    from vla.serve.config import ServeConfig
    from vla.serve.runner import blank_observation

    robot = SimRobot(make_task("intercept"))
    rows, _ = collect_episode(robot, 1, noise=Noise())
    episode = {name: value[:12] for name, value in rows.items()}, robot.prompt
    root = tmp_path / "dataset"
    write_dataset(root, "onset/test", robot.spec, HORIZON, [episode], videos=False)
    out = tmp_path / "run"
    options = {
        "policy.type": "smolvla",
        "policy.vlm_model_name": language,
        "policy.num_vlm_layers": 2,
        "policy.chunk_size": 8,
        "policy.n_action_steps": 8,
        "policy.resize_imgs_with_padding": "[32, 32]",
        "policy.device": "cpu",
        "policy.push_to_hub": "false",
        "dataset.repo_id": "onset/test",
        "dataset.root": root,
        "output_dir": out,
        "steps": 2,
        "batch_size": 2,
        "num_workers": 0,
        "save_freq": 2,
        "wandb.enable": "false",
    }

    def lerobot_train(options: dict[str, Any]) -> None:
        command = ["lerobot-train", *(f"--{name}={value}" for name, value in options.items())]
        monkeypatch.setattr(sys, "argv", command)
        main()

    lerobot_train(options)
    trained = out / "checkpoints" / "last" / "pretrained_model"
    settings = FinetuneConfig(steps=2, batch=2, max_delay=3, max_start=2)
    args = Args(str(trained), "onset/test", tmp_path / "tuned", root, train=settings)
    assert finetune_lerobot.main(args) == 0
    assert finetune_lerobot.main(replace(args, train=replace(settings, steps=3))) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "goes on at step 2" in said
    assert "3, of which 1 now" in said
    lora = replace(settings, lora=LoraConfig(rank=2))
    assert finetune_lerobot.main(replace(args, out=tmp_path / "lora", train=lora)) == 0
    assert "adapters of rank 2" in capsys.readouterr().out
    assert (tmp_path / "lora" / "pretrained_model" / "adapter_model.safetensors").is_file()
    # What the run was begun with is another policy.
    other = str(tmp_path / "lora" / "pretrained_model")
    assert finetune_lerobot.main(replace(args, policy=other)) == 2
    assert "origin.policy" in capsys.readouterr().err

    policy = load_lerobot_policy(str(tmp_path / "tuned" / "pretrained_model"))
    served = ServedLeRobot(policy)
    assert {"prefix", "forecast", "onset"} <= set(served.describe(ServeConfig()).strategies)
    served.check_robot(robot.spec)
    parts = list(served.engine(ServeConfig()).stream(blank_observation(robot.spec), robot.prompt))
    assert np.concatenate([p.actions for p in parts]).shape == (8, 6)

    # Adapters that LeRobot trained are served as well.
    common = {n: v for n, v in options.items() if not n.startswith("policy.")}
    low = {"output_dir": tmp_path / "peft", "peft.method_type": "LORA", "peft.r": 2}
    path = {"policy.path": trained, "policy.push_to_hub": "false"}
    lerobot_train(common | path | low)
    theirs = tmp_path / "peft" / "checkpoints" / "last" / "pretrained_model"
    assert not (theirs / "model.safetensors").exists()
    served = ServedLeRobot(load_lerobot_policy(str(theirs)))
    assert served.policy.digest != load_lerobot_policy(str(trained)).digest
