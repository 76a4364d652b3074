"""Weights of a LeRobot policy: safetensors only, and every tensor accounted for.

LeRobot's pi0 serves random weights, with a printed line, where a file is missing or does not fit.
Here that is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lerobot.policies.xvla import modeling_xvla
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from controller.errors import ErrorCode, OnsetError

_SHOWN = 8
_CHUNK_BYTES = 1 << 24


def load_weights(policy: Any, path: Path) -> None:
    """Fills a policy from a file.

    Args:
        policy: A LeRobot policy, just made.
        path: Its ``model.safetensors``.

    Raises:
        OnsetError: BAD_VALUE: no whole safetensors file. BAD_NAMES: tensors are missing or left
            over. BAD_SHAPE: a tensor has another shape than the configuration asks for.
    """
    own = policy.state_dict()
    given = _with_aliases(_renamed(policy, read_tensors(path)), own)
    check_tensors(path.name, given, own)
    policy.load_state_dict(given)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file.

    Raises:
        OnsetError: BAD_VALUE: no whole safetensors file.
    """
    try:
        return load_file(path)
    except SafetensorError as error:
        raise OnsetError(
            ErrorCode.BAD_VALUE, f"policy[{path.name}]", error, "a whole safetensors file"
        ) from error


def check_tensors(name: str, given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Checks that names and shapes are those of a module.

    Args:
        name: Of the file.
        given: The file's tensors.
        own: The module's.

    Raises:
        OnsetError: BAD_NAMES or BAD_SHAPE, with both sides.
    """
    missing, unexpected = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
    if missing or unexpected:
        raise OnsetError(
            ErrorCode.BAD_NAMES,
            f"policy[{name}]",
            f"missing {_some(missing)}, unexpected {_some(unexpected)}",
            "the tensors of its configuration",
        )
    wrong = [n for n, tensor in given.items() if tensor.shape != own[n].shape]
    if wrong:
        raise OnsetError(
            ErrorCode.BAD_SHAPE,
            f"policy[{name}]",
            _some([f"{n} {tuple(given[n].shape)}" for n in wrong]),
            _some([f"{n} {tuple(own[n].shape)}" for n in wrong]),
        )


def _renamed(policy: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of older checkpoints in today's, by LeRobot's own rules."""
    if policy.config.type in ("pi0", "pi05"):
        tensors = policy._fix_pytorch_state_dict_keys(tensors, policy.config)
        return {n if n.startswith("model.") else f"model.{n}": t for n, t in tensors.items()}
    if policy.config.type == "xvla" and modeling_xvla._is_vendored_florence_state_dict(tensors):
        return modeling_xvla._remap_vendored_florence_state_dict(tensors)
    return tensors


def _with_aliases(given: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tied tensors stand in a file under one of their names: here under all of them."""
    groups: dict[tuple[int, int], list[str]] = {}
    for name, tensor in own.items():
        groups.setdefault((tensor.data_ptr(), tensor.numel()), []).append(name)
    filled = dict(given)
    for (_, count), names in groups.items():
        known = next((n for n in names if n in given), None)
        if known is not None and count:
            filled |= {name: given[known] for name in names if name not in given}
    return filled


def _some(names: list[str]) -> str:
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{names[:_SHOWN]}{rest}"


def digest(*paths: Path) -> str:
    """SHA-256 of files, one behind the other, hexadecimal."""
    found = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                found.update(chunk)
    return found.hexdigest()
