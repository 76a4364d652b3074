"""A fine-tuning run on disk: its state, and what it was begun with."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from controller.errors import ErrorCode, OnsetError

_OPTIMISER, _PROGRESS = "optimiser.safetensors", "progress.json"
_MAY_DIFFER = ("finetune.steps", "finetune.save_every")  # a run may go on for longer


@dataclass(frozen=True)
class Origin:
    """What a run is begun with, besides its settings.

    Attributes:
        policy: SHA-256 of the first policy's weights, hexadecimal.
        dataset: The dataset's id.
        episodes: In it.
        frames: In it.
        statistics: SHA-256 of the dataset's statistics, hexadecimal: another recording of as many
            frames has others.
        normalise: By whose statistics: the dataset's or the checkpoint's.
    """

    policy: str
    dataset: str
    episodes: int
    frames: int
    statistics: str
    normalise: str

    @staticmethod
    def of(policy: str, meta: Any, normalise: str) -> Origin:
        """What a run on a LeRobotDataset is begun with.

        Args:
            policy: As the attribute.
            meta: The dataset's LeRobotDatasetMetadata.
            normalise: As the attribute.
        """
        stats = json.dumps(meta.stats, sort_keys=True, default=_plain)
        statistics = hashlib.sha256(stats.encode()).hexdigest()
        counts = int(meta.total_episodes), int(meta.total_frames)
        return Origin(policy, meta.repo_id, *counts, statistics, normalise)


def save_run(
    folder: Path,
    write_policy: Callable[[Path], None],
    optimiser: torch.optim.Optimizer,
    progress: Mapping[str, Any],
) -> None:
    """Writes a checkpoint, which takes the place of the last one when it is whole.

    A run that is killed meanwhile goes on from the last one.

    Args:
        folder: Of the run.
        write_policy: Writes the policy into a directory.
        optimiser: Its state is kept.
        progress: JSON's own types.
    """
    new = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    (new / "pretrained_model").mkdir(parents=True)
    write_policy(new / "pretrained_model")
    state = optimiser.state_dict()["state"]
    tensors = {f"{i}.{n}": t.contiguous() for i, s in state.items() for n, t in s.items()}
    save_file(tensors, new / _OPTIMISER)
    (new / _PROGRESS).write_text(json.dumps(progress, indent=1) + "\n")
    old = folder.with_name(f"{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def load_run(
    folder: Path, optimiser: torch.optim.Optimizer, begun: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Restores the optimiser's state, and gives what ``save_run`` was given of progress.

    Args:
        folder: Of the run.
        optimiser: Of the same parameters.
        begun: What the run would be begun with now, as it stands in progress.

    Returns:
        None where there is no run to go on with.

    Raises:
        OnsetError: BAD_VALUE: the run was begun with something else; the first such field.
    """
    if not (folder / _PROGRESS).is_file():
        return None
    progress = json.loads((folder / _PROGRESS).read_text())
    _check_begun(folder, progress, json.loads(json.dumps(begun)))
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in load_file(folder / _OPTIMISER).items():
        index, _, what = name.partition(".")
        state.setdefault(int(index), {})[what] = tensor
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
    return progress


def begun_with(config: Any, origin: Origin) -> dict[str, Any]:
    """What decides what a run is, for ``progress``."""
    return {"finetune": asdict(config), "origin": asdict(origin)}


def _check_begun(folder: Path, kept: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    before = _flat({name: kept.get(name, {}) for name in given})
    for name, value in _flat(given).items():
        if name not in _MAY_DIFFER and before.get(name) != value:
            raise OnsetError(
                ErrorCode.BAD_VALUE,
                name,
                value,
                f"{before.get(name)}, with which the run in {folder} was begun; or another folder",
            )


def _flat(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        path = f"{above}{name}"
        found |= _flat(value, f"{path}.") if isinstance(value, Mapping) else {path: value}
    return found


def _plain(value: Any) -> Any:
    return np.asarray(value).tolist()
