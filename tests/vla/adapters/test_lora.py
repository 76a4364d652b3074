"""Low-rank adapters: they alone are trained, LeRobot loads them, and the server serves them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from controller.errors import ErrorCode, OnsetError
from tests.vla.adapters.test_equality import KINDS, batch_of, lerobots_chunk, noise_of, sample
from tests.vla.adapters.test_finetune import finetuner, weights
from vla.schedule import make_schedule

if TYPE_CHECKING:
    from tests.vla.adapters.tiny import Tiny
    from vla.adapters.load import LeRobotPolicy


def load(path: Path, tiny: Tiny, **options: Any) -> LeRobotPolicy:
    from tests.vla.adapters.tiny import small_gemmas
    from vla.adapters.load import load_lerobot_policy

    with small_gemmas():
        return load_lerobot_policy(str(path), language=tiny.language, **options)


def tuned(tiny: Tiny, folder: Path, steps: int = 3, **lora: Any) -> Any:
    from vla.adapters.lora import LoraConfig

    run = finetuner(tiny, folder, rate=0.02, lora=LoraConfig(**({"rank": 2} | lora)))
    run.run(steps)
    return run


@torch.inference_mode()
def chunk(policy: LeRobotPolicy, seed: int = 0) -> torch.Tensor:
    context = policy.adapter.encode(batch_of(policy, seed))
    schedule = make_schedule("constant", policy.adapter.horizon, 0, 10)
    return sample(policy, context, noise_of(policy, seed), schedule)


def from_lerobot(path: Path) -> Any:
    """By the function through which `lerobot-eval` and `lerobot-train` load."""
    from lerobot.configs import PreTrainedConfig
    from lerobot.policies.factory import make_policy

    from tests.vla.adapters.tiny import ACTIONS, CAMERAS, STATE, small_gemmas

    config: Any = PreTrainedConfig.from_pretrained(path)
    config.pretrained_path = path
    picture = {"dtype": "image", "shape": (48, 64, 3), "names": ["height", "width", "channels"]}
    numbers = {"observation.state": STATE, "action": ACTIONS}
    features: dict[str, Any] = dict.fromkeys(CAMERAS, picture)
    features |= {n: {"dtype": "float32", "shape": (c,), "names": None} for n, c in numbers.items()}
    with small_gemmas():
        return make_policy(config, ds_meta=SimpleNamespace(features=features, stats=None))


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_alone_change_and_lerobot_and_the_server_load_them(
    kind: str, tinies: dict[str, Tiny], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    tiny = tinies[kind]
    run = tuned(tiny, tmp_path / "run")
    before = tiny.policy.state_dict()
    kept = {n.replace(".base_layer", ""): t for n, t in weights(run).items() if "lora_" not in n}
    assert kept.keys() == before.keys()
    for name, tensor in kept.items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
    trained, every = run.trained
    assert 0 < trained < 0.1 * every
    moved = [t for n, t in weights(run).items() if "lora_B" in n]  # zero at the start
    assert moved
    assert all(t.abs().max() > 0 for t in moved)

    path = tmp_path / "run" / "pretrained_model"
    assert not (path / "model.safetensors").exists()
    served = load(path, tiny)
    assert served.lora is None
    assert not any("lora_" in name for name in served.adapter.policy.state_dict())
    assert served.digest != load(tiny.path, tiny).digest
    ours, plain = chunk(served), chunk(load(tiny.path, tiny))
    assert (ours - plain).abs().max() > 1e-3
    torch.testing.assert_close(chunk(run.policy), ours, rtol=0, atol=1e-5)

    theirs = from_lerobot(path)
    theirs.eval()
    batch, noise = batch_of(served, 0), noise_of(served, 0)
    with torch.no_grad():
        expected = lerobots_chunk(theirs, dict(batch), noise, monkeypatch)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


def test_they_are_merged_where_all_weights_are_trained_next(
    tinies: dict[str, Tiny], tmp_path: Path
):
    tiny = tinies["smolvla"]
    tuned(tiny, tmp_path / "run")
    path = tmp_path / "run" / "pretrained_model"
    merged, plain = load(path, tiny), load(tiny.path, tiny)
    names = [
        {n for n, p in policy.adapter.policy.named_parameters() if p.requires_grad}
        for policy in (merged, plain)
    ]
    assert names[0] == names[1]
    merged.adapter.policy.save_pretrained(tmp_path / "whole")
    assert json.loads((tmp_path / "whole" / "config.json").read_text())["use_peft"] is False
    assert (tmp_path / "whole" / "model.safetensors").is_file()


def test_layers_are_picked_by_name(tinies: dict[str, Tiny], tmp_path: Path):
    tiny = tinies["smolvla"]
    run = tuned(tiny, tmp_path / "run", 1, targets=r"model\.action_out_proj")
    layers = {n.split(".lora_")[0] for n in weights(run) if "lora_" in n}
    assert layers == {"model.action_out_proj"}
    with pytest.raises(OnsetError, match="lora.targets") as caught:
        tuned(tiny, tmp_path / "other", 1, targets="no_such_layer")
    assert "no_such_layer" in caught.value.given


def test_another_rank_than_the_checkpoints_is_refused(tinies: dict[str, Tiny], tmp_path: Path):
    from vla.adapters.lora import LoraConfig

    tiny = tinies["smolvla"]
    tuned(tiny, tmp_path / "run", 1)
    path = tmp_path / "run" / "pretrained_model"
    assert load(path, tiny, lora=LoraConfig(2)).lora is not None
    with pytest.raises(OnsetError, match="given 4; allowed: 2"):
        load(path, tiny, lora=LoraConfig(4))


def test_what_is_not_whole_is_refused_by_name(tinies: dict[str, Tiny], tmp_path: Path):
    tiny = tinies["smolvla"]
    tuned(tiny, tmp_path / "run", 1)
    whole = tmp_path / "run" / "pretrained_model"

    def copy(name: str) -> Path:
        return Path(shutil.copytree(whole, tmp_path / name))

    without = copy("without")
    (without / "adapter_model.safetensors").unlink()
    with pytest.raises(OnsetError, match="without .*adapter_model.safetensors"):
        load(without, tiny)

    partly = copy("partly")
    tensors = load_file(partly / "adapter_model.safetensors")
    lost = sorted(tensors)[0]
    del tensors[lost]
    save_file(tensors, partly / "adapter_model.safetensors")
    with pytest.raises(OnsetError) as caught:
        load(partly, tiny)
    assert caught.value.code == ErrorCode.BAD_NAMES
    assert lost in caught.value.given

    alone = copy("alone")
    config = json.loads((alone / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny.path.resolve())
    changed = config | {"base_model_name_or_path": str(tmp_path / "nowhere")}
    (alone / "adapter_config.json").write_text(json.dumps(changed))
    with pytest.raises(OnsetError, match="base_model_name_or_path.*nowhere"):
        load(alone, tiny)
    changed = config | {"base_model_name_or_path": str(whole)}
    (alone / "adapter_config.json").write_text(json.dumps(changed))
    with pytest.raises(OnsetError, match="a policy without adapters"):
        load(alone, tiny)
