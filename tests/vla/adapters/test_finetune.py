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


def finetuner(tiny: Tiny, folder: Path, origin: dict[str, Any] | None = None, **changes: Any):
    from tests.vla.adapters.tiny import small_gemmas
    from vla.adapters.finetune import FinetuneConfig, Finetuner, delta_steps
    from vla.adapters.load import digest_of, load_lerobot_policy
    from vla.adapters.run_state import Origin

    settings = {"batch": 4, "rate": 2e-3, "max_delay": 3, "max_start": 2, "save_every": 100}
    config = FinetuneConfig(**(settings | changes))
    own = folder / "pretrained_model"
    source = own if own.is_dir() else tiny.path
    lora = config.lora if config.lora.rank else None
    torch.manual_seed(0)
    with small_gemmas():
        policy = load_lerobot_policy(str(source), language=tiny.language, lora=lora)
    begun = {
        "policy": digest_of(str(tiny.path)),
        "dataset": "onset/test",
        "episodes": 2,
        "frames": 6,
        "statistics": "0",
        "normalise": "dataset",
    }
    rows = Rows(delta_steps(policy.adapter.horizon, config))
    return Finetuner(policy, rows, config, folder, Origin(**(begun | (origin or {}))))


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


@pytest.mark.parametrize("kind", KINDS)
def test_its_loss_is_lerobots(
    kind: str, tinies: dict[str, Tiny], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """One time for all indices, no prefix, no offset: what LeRobot trains by."""
    from vla.train.times import CONSTANT

    run = finetuner(tinies[kind], tmp_path, mixture=CONSTANT, max_delay=0, max_start=0)
    adapter = run.policy.adapter
    seen: list[Any] = []
    plain = adapter.training_loss
    monkeypatch.setattr(
        adapter, "training_loss", lambda *given: seen.extend(given) or plain(*given)
    )
    rows = torch.utils.data.default_collate([run.data[i] for i in range(3)])
    ours = run.loss(rows, torch.Generator().manual_seed(0))
    batch, _, tau, _, noise, counts = seen
    assert counts.all()
    assert len(set(tau[:, 0].tolist())) == 3
    torch.testing.assert_close(tau, tau[:, :1].expand_as(tau))
    theirs = tinies[kind].policy
    if kind == "xvla":  # it draws inside: one offset, from which its samples' times are spread
        offset = tau[:1, 0]
        monkeypatch.setattr(torch, "rand", lambda *shape, **options: offset)
        monkeypatch.setattr(torch, "randn_like", lambda like: noise)
        spread = (offset + torch.arange(3) / 3) % (1 - 1e-5)
        times = spread[:, None].expand_as(tau)
        x = times[..., None] * noise + (1 - times[..., None]) * seen[3]
        ours = plain(batch, x, times, seen[3], noise, counts)
    else:
        monkeypatch.setattr(theirs.model, "sample_noise", lambda *given: noise)
        monkeypatch.setattr(theirs.model, "sample_time", lambda *given: tau[:, 0])
    expected, _ = theirs.forward(dict(batch))
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


def weights(run: Any) -> dict[str, torch.Tensor]:
    return run.policy.adapter.policy.state_dict()


@pytest.mark.parametrize(("kind", "rank"), [("smolvla", 0), ("xvla", 0), ("pi0", 2)])
def test_a_run_that_was_broken_off_is_the_unbroken_one(
    kind: str, rank: int, tinies: dict[str, Tiny], tmp_path: Path
):
    from vla.adapters.lora import LoraConfig

    tiny, lora = tinies[kind], LoraConfig(rank)
    whole = finetuner(tiny, tmp_path / "whole", lora=lora)
    whole.run(4)
    finetuner(tiny, tmp_path / "parts", lora=lora).run(2)
    again = finetuner(tiny, tmp_path / "parts", lora=lora, steps=9)
    assert again.step == 2
    again.run(4)
    expected = weights(whole)
    for name, tensor in weights(again).items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("finetune.rate", {"rate": 1.0}),
        ("finetune.mixture.p", {"mixture": "constant"}),
        ("origin.policy", {"origin": {"policy": "f" * 64}}),
        ("origin.dataset", {"origin": {"dataset": "onset/other"}}),
        ("origin.statistics", {"origin": {"statistics": "1"}}),
        ("origin.normalise", {"origin": {"normalise": "checkpoint"}}),
        ("finetune.lora.rank", {"lora": 2}),
    ],
)
def test_a_run_goes_on_only_as_it_was_begun(
    field: str, changes: dict[str, Any], tinies: dict[str, Tiny], tmp_path: Path
):
    from vla.adapters.lora import LoraConfig
    from vla.train.times import CONSTANT

    tiny = tinies["smolvla"]
    finetuner(tiny, tmp_path / "run").run(1)
    if "mixture" in changes:
        changes = {"mixture": CONSTANT}
    if "lora" in changes:
        changes = {"lora": LoraConfig(changes["lora"])}
    with pytest.raises(OnsetError, match="with which the run in .* was begun") as caught:
        finetuner(tiny, tmp_path / "run", **changes)
    assert caught.value.field == field


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
