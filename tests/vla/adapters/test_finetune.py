"""Fine-tuning for schedules and strategies: it learns, it resumes, and LeRobot loads the result."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from controller.errors import OnsetError

if TYPE_CHECKING:
    from tests.vla.adapters.tiny import Tiny

KINDS = ("smolvla", "pi0", "pi05", "xvla")


class Rows:
    """Samples as LeRobotDataset gives them: actions that follow from the state."""

    def __init__(self, steps: dict[str, list[int]], count: int = 6) -> None:
        self.steps, self.count = steps, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        from tests.vla.adapters.tiny import ACTIONS, CAMERAS, STATE

        generator = torch.Generator().manual_seed(index)
        images = {name: torch.rand(3, 48, 64, generator=generator) for name in CAMERAS}
        base = torch.randn(STATE, generator=generator)
        states = torch.stack([base + 0.1 * i for i in self.steps["observation.state"]])
        actions = torch.stack([base[:ACTIONS] + 0.1 * i for i in self.steps["action"]])
        pad = torch.tensor([i > 7 for i in self.steps["action"]])
        own = {"action": actions, "action_is_pad": pad, "observation.state": states}
        return {**images, **own, "task": "pick", "index": torch.tensor(index)}


def finetuner(tiny: Tiny, folder: Path, **changes: Any) -> Any:
    from tests.vla.adapters.tiny import small_gemmas
    from vla.adapters.finetune import FinetuneConfig, Finetuner, delta_steps
    from vla.adapters.load import load_lerobot_policy

    own = folder / "pretrained_model"
    with small_gemmas():
        source = own if own.is_dir() else tiny.path
        policy = load_lerobot_policy(str(source), language=tiny.language)
    settings = {"batch": 4, "rate": 2e-3, "max_delay": 3, "max_start": 2, "save_every": 100}
    config = FinetuneConfig(**(settings | changes))
    return Finetuner(policy, Rows(delta_steps(policy.adapter.horizon, config)), config, folder)


def test_a_sample_begins_where_it_is_told():
    from vla.adapters.finetune import shift

    rows = {
        "action": torch.arange(10.0).view(1, 10, 1).repeat(2, 1, 1),
        "action_is_pad": torch.arange(10).repeat(2, 1) > 7,
        "observation.state": torch.arange(3.0).view(1, 3, 1).repeat(2, 1, 1),
        "task": ["a", "b"],
        "observation.images.front": torch.zeros(2, 3, 4, 4),
        "index": torch.zeros(2),
    }
    shifted = shift(rows, torch.tensor([0, 2]), 7)
    assert shifted["action"][..., 0].tolist() == [[0, 1, 2, 3, 4, 5, 6], [2, 3, 4, 5, 6, 7, 8]]
    assert shifted["action_is_pad"].sum(1).tolist() == [0, 1]
    assert shifted["observation.state"].tolist() == [[0.0], [2.0]]
    assert set(shifted) == set(rows) - {"index"}


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns(kind: str, tinies: dict[str, Tiny], tmp_path: Path):
    run = finetuner(tinies[kind], tmp_path)
    losses: list[float] = []
    run.run(30, lambda step, loss: losses.append(loss))
    assert sum(losses[-6:]) < 0.9 * sum(losses[:6])


@pytest.mark.parametrize("kind", ["smolvla", "xvla"])
def test_a_prefix_is_not_in_the_loss(kind: str, tinies: dict[str, Tiny], tmp_path: Path):
    run = finetuner(tinies[kind], tmp_path)
    adapter = run.policy.adapter
    rows = torch.utils.data.default_collate([run.data[i] for i in range(2)])
    from vla.adapters.finetune import shift

    batch = run.policy.pre(shift(rows, torch.zeros(2, dtype=torch.int64), adapter.horizon))
    actions = adapter.fill(batch["action"])
    noise, tau = torch.randn_like(actions), torch.full(actions.shape[:2], 0.5)
    counts = torch.ones(actions.shape[:2], dtype=torch.bool)
    counts[:, :2] = False
    x = 0.5 * noise + 0.5 * actions
    plain = adapter.training_loss(batch, x, tau, actions, noise, counts)
    other, also = actions.clone(), noise.clone()
    other[:, :2], also[:, :2] = 9.0, -9.0
    moved = adapter.training_loss(batch, x, tau, other, also, counts)
    torch.testing.assert_close(moved, plain)


def test_a_run_that_was_broken_off_is_the_unbroken_one(tinies: dict[str, Tiny], tmp_path: Path):
    tiny = tinies["smolvla"]
    whole = finetuner(tiny, tmp_path / "whole")
    whole.run(4)
    finetuner(tiny, tmp_path / "parts").run(2)
    again = finetuner(tiny, tmp_path / "parts", steps=9)
    assert again.step == 2
    again.run(4)
    expected = whole.policy.adapter.policy.state_dict()
    for name, tensor in again.policy.adapter.policy.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-6)
    with pytest.raises(OnsetError, match="as the run begun"):
        finetuner(tiny, tmp_path / "parts", rate=1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_lerobot_and_the_server_load_the_result(kind: str, tinies: dict[str, Tiny], tmp_path: Path):
    from lerobot.policies.factory import get_policy_class

    from tests.vla.adapters.tiny import small_gemmas
    from vla.adapters.load import load_lerobot_policy

    run = finetuner(tinies[kind], tmp_path)
    run.run(1)
    path = tmp_path / "pretrained_model"
    with small_gemmas():
        theirs = get_policy_class(kind).from_pretrained(str(path))
        ours = load_lerobot_policy(str(path), language=tinies[kind].language)
    expected = run.policy.adapter.policy.state_dict()
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0)
    assert (ours.tuning.max_delay, ours.tuning.max_start) == (3, 2)


def test_a_prefix_as_long_as_the_chunk_is_refused(tinies: dict[str, Tiny], tmp_path: Path):
    with pytest.raises(OnsetError, match="max_delay"):
        finetuner(tinies["smolvla"], tmp_path, max_delay=6)
