"""What is loaded is what was saved, and what does not fit is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file, save_file

from controller.errors import ErrorCode, OnsetError

if TYPE_CHECKING:
    from tests.vla.adapters.tiny import Tiny
    from vla.adapters.load import LeRobotPolicy

KINDS = ("smolvla", "pi0", "pi05", "xvla")


def load(path: Path, language: Path) -> LeRobotPolicy:
    from tests.vla.adapters.tiny import small_gemmas
    from vla.adapters.load import load_lerobot_policy

    with small_gemmas():
        return load_lerobot_policy(str(path), language=language)


@pytest.fixture
def copied(tinies: dict[str, Tiny], tmp_path: Path):
    """A checkpoint that a test may damage."""

    def copy(kind: str) -> Path:
        return Path(shutil.copytree(tinies[kind].path, tmp_path / kind))

    return copy


@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_comes_back(
    kind: str, tinies: dict[str, Tiny], loaded: dict[str, LeRobotPolicy]
):
    saved, back = tinies[kind].policy.state_dict(), loaded[kind].adapter.policy.state_dict()
    assert saved.keys() == back.keys()
    for name, tensor in saved.items():
        torch.testing.assert_close(back[name], tensor, rtol=0, atol=0)
    assert not any(module.training for module in loaded[kind].adapter.policy.modules())
    assert len(loaded[kind].digest) == 64


@pytest.mark.parametrize("kind", KINDS)
def test_its_processors_come_back(
    kind: str, tinies: dict[str, Tiny], loaded: dict[str, LeRobotPolicy]
):
    from tests.vla.adapters.tiny import ACTIONS, CAMERAS, STATE

    images = {name: torch.rand(1, 3, 48, 64) for name in CAMERAS}
    given = {**images, "observation.state": torch.randn(1, STATE), "task": ["pick"]}
    expected, ours = tinies[kind].pre(dict(given)), loaded[kind].pre(dict(given))
    tensors = [name for name, value in expected.items() if isinstance(value, torch.Tensor)]
    for name in tensors:
        torch.testing.assert_close(ours[name], expected[name], rtol=0, atol=0)
    assert "observation.language.tokens" in tensors
    actions = torch.randn(3, ACTIONS)
    torch.testing.assert_close(loaded[kind].post(actions), tinies[kind].post(actions))


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_tensor_is_refused_by_name(kind: str, copied, language: Path):
    path = copied(kind)
    tensors = load_file(path / "model.safetensors")
    lost = next(n for n in sorted(tensors) if "action" in n and "weight" in n)
    del tensors[lost]
    save_file(tensors | {"model.stranger": torch.zeros(1)}, path / "model.safetensors")
    with pytest.raises(OnsetError) as caught:
        load(path, language)
    assert caught.value.code == ErrorCode.BAD_NAMES
    assert lost in caught.value.given
    assert "model.stranger" in caught.value.given


def test_a_tensor_of_another_shape_is_refused_with_both(copied, language: Path):
    path = copied("pi0")
    tensors = load_file(path / "model.safetensors")
    name = "model.action_out_proj.weight"
    tensors[name] = torch.zeros(3, 3)
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(OnsetError, match=r"action_out_proj.weight \(3, 3\)") as caught:
        load(path, language)
    assert caught.value.code == ErrorCode.BAD_SHAPE
    assert "(8, 32)" in caught.value.allowed


@pytest.mark.parametrize(
    "name", ["model.safetensors", "policy_preprocessor.json", "policy_postprocessor.json"]
)
def test_a_missing_file_is_refused_by_name(name: str, copied, language: Path):
    path = copied("smolvla")
    (path / name).unlink()
    with pytest.raises(OnsetError, match=name) as caught:
        load(path, language)
    assert caught.value.code == ErrorCode.BAD_VALUE


def test_a_pickled_checkpoint_is_not_taken(copied, language: Path):
    path = copied("smolvla")
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    with pytest.raises(OnsetError, match=r"pytorch_model.bin.*safetensors"):
        load(path, language)


def test_a_pipeline_without_its_numbers_is_refused(copied, language: Path):
    path = copied("smolvla")
    (state,) = path.glob("policy_preprocessor_*.safetensors")
    state.unlink()
    with pytest.raises(OnsetError, match=state.name):
        load(path, language)


def test_broken_files_are_refused(copied, language: Path):
    path = copied("smolvla")
    (path / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(OnsetError, match="whole safetensors file"):
        load(path, language)
    (path / "config.json").write_text("[]")
    with pytest.raises(OnsetError, match="a JSON object"):
        load(path, language)


def test_another_type_is_refused_with_the_ones_there_are(copied, language: Path):
    path = copied("smolvla")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"type": "act"}))
    with pytest.raises(OnsetError, match="act") as caught:
        load(path, language)
    assert all(kind in caught.value.allowed for kind in KINDS)


def test_a_hub_id_offline_says_which_files_are_missing(language: Path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OnsetError) as caught:
        load(Path("somebody/some_policy"), language)
    assert caught.value.code == ErrorCode.UNAVAILABLE
    for name in ("config.json", "model.safetensors", "policy_preprocessor.json"):
        assert name in caught.value.given


def test_neither_a_directory_nor_a_hub_id(tmp_path: Path, language: Path):
    with pytest.raises(OnsetError, match="owner/name"):
        load(tmp_path / "nowhere", language)


def test_a_language_model_out_of_reach_is_named(copied, monkeypatch):
    from huggingface_hub import constants

    from vla.adapters.load import load_lerobot_policy

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    path = copied("smolvla")
    config = json.loads((path / "config.json").read_text())
    changed = json.dumps(config | {"vlm_model_name": "somebody/some_vlm"})
    (path / "config.json").write_text(changed)
    with pytest.raises(OnsetError, match=r"--language DIR") as caught:
        load_lerobot_policy(str(path))
    assert caught.value.code == ErrorCode.UNAVAILABLE


def test_what_it_was_tuned_for_stands_beside_it(copied, language: Path):
    path = copied("smolvla")
    (path / "onset.json").write_text('{"max_delay": 3, "max_start": 2}')
    tuning = load(path, language).tuning
    assert (tuning.max_delay, tuning.max_start) == (3, 2)
    (path / "onset.json").write_text('{"max_daley": 3}')
    with pytest.raises(OnsetError, match="max_daley"):
        load(path, language)


@pytest.mark.parametrize("kind", KINDS)
def test_more_than_it_supports_is_refused_with_what_it_does(
    kind: str, loaded: dict[str, LeRobotPolicy]
):
    from vla.adapters.capabilities import Tuning

    capabilities = loaded[kind].adapter.capabilities
    for schedule in ("constant", "has"):
        capabilities.check_schedule(kind, schedule)
    for schedule in ("one_step", "has_meanflow"):
        with pytest.raises(OnsetError, match="one-step head: no") as caught:
            capabilities.check_schedule(kind, schedule)
        assert "'constant', 'has'" in caught.value.allowed
    plain, tuned = capabilities.strategies(Tuning()), capabilities.strategies(Tuning(4, 4))
    assert {"sync", "naive", "blend"} <= set(plain)
    assert ("rtc" in plain) == (kind != "xvla")
    assert {"prefix", "forecast", "onset"} & set(plain) == set()
    assert {"prefix", "forecast", "onset"} <= set(tuned)
