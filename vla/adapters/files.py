"""Finds the files of a LeRobot policy: in a directory, or of a hub id."""

from __future__ import annotations

import json
import re
from pathlib import Path

from huggingface_hub import snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from controller.errors import ErrorCode, OnsetError

CONFIG, WEIGHTS = "config.json", "model.safetensors"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor.json", "policy_postprocessor.json"
REQUIRED = (CONFIG, WEIGHTS, PREPROCESSOR, POSTPROCESSOR)
# Of low-rank adapters: the weights are those of the policy that they name (``lora``).
REQUIRED_LORA = (CONFIG, ADAPTER_CONFIG, ADAPTER_WEIGHTS, PREPROCESSOR, POSTPROCESSOR)

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# What a policy is read from; no pickled weights are fetched, so none can be loaded.
_PATTERNS = ["*.json", "*.safetensors"]


def find_policy(source: str) -> Path:
    """The directory of a policy, with every file that it needs.

    Args:
        source: A directory, or a hub id such as ``owner/name``.

    Raises:
        OnsetError: BAD_VALUE: neither of the two, or files are missing. UNAVAILABLE: the hub
            cannot be reached and its cache does not hold the files.
    """
    path = Path(source)
    if path.is_dir():
        _check(path, source)
        return path
    if path.exists() or not _HUB_ID.fullmatch(source):
        raise OnsetError(
            ErrorCode.BAD_VALUE,
            "policy",
            source,
            f"a directory with {list(REQUIRED)}, or a hub id owner/name",
        )
    return _from_hub(source)


def _from_hub(source: str) -> Path:
    try:
        path = Path(snapshot_download(source, allow_patterns=_PATTERNS))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        missing = [n for n in REQUIRED if not isinstance(try_to_load_from_cache(source, n), str)]
        raise OnsetError(
            ErrorCode.UNAVAILABLE,
            "policy",
            f"{source}: the hub gives {type(error).__name__}, and its cache lacks {missing}",
            "a hub id while the hub is within reach, or a directory with these files",
        ) from error
    _check(path, source)
    return path


def _check(path: Path, source: str) -> None:
    required = _required(path)
    missing = [name for name in required if not (path / name).is_file()]
    for name in (PREPROCESSOR, POSTPROCESSOR):
        if name not in missing:
            missing += [n for n in _state_files(path / name) if not (path / n).is_file()]
    if missing:
        raise OnsetError(
            ErrorCode.BAD_VALUE,
            "policy",
            f"{source} without {missing}; it holds {sorted(p.name for p in path.iterdir())}",
            f"a directory with {list(required)}, weights as safetensors",
        )


def _required(path: Path) -> tuple[str, ...]:
    config = path / CONFIG
    return REQUIRED_LORA if config.is_file() and read_json(config).get("use_peft") else REQUIRED


def read_json(path: Path) -> dict:
    """A JSON object from a file.

    Raises:
        OnsetError: BAD_VALUE: it holds something else.
    """
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise OnsetError(
            ErrorCode.BAD_VALUE, f"policy[{path.name}]", error, "a JSON object"
        ) from error
    if not isinstance(content, dict):
        raise OnsetError(
            ErrorCode.BAD_VALUE, f"policy[{path.name}]", type(content).__name__, "a JSON object"
        )
    return content


def _state_files(path: Path) -> list[str]:
    """Files that the steps of a pipeline keep their numbers in."""
    steps = read_json(path).get("steps", [])
    return [step["state_file"] for step in steps if "state_file" in step]
