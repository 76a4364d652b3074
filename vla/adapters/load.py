"""Loads a LeRobot checkpoint directory as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from peft import PeftModel

from controller.errors import ErrorCode, OnsetError
from vla.adapters.capabilities import Tuning
from vla.adapters.files import ADAPTER_WEIGHTS, CONFIG, WEIGHTS, find_policy, read_json
from vla.adapters.flow import FlowAdapter
from vla.adapters.lora import LoraConfig, attach, attach_saved, base_of, merge_saved
from vla.adapters.pi import PI0Adapter, PI05Adapter
from vla.adapters.smolvla import SmolVLAAdapter
from vla.adapters.weights import digest, load_weights
from vla.adapters.xvla import XVLAAdapter
from vla.cache.selector import Selector, load_selector

ADAPTERS: dict[str, type[FlowAdapter]] = {
    "smolvla": SmolVLAAdapter,
    "pi0": PI0Adapter,
    "pi05": PI05Adapter,
    "xvla": XVLAAdapter,
}
TUNING = "onset.json"  # beside the checkpoint: what it was tuned for here
SELECTOR = "onset_cache.safetensors"  # beside the checkpoint: which image tokens are computed


@dataclass(frozen=True)
class LeRobotPolicy:
    """A LeRobot checkpoint ready to run.

    Attributes:
        name: Its directory's name.
        adapter: The policy as a flow policy.
        pre: LeRobot's preprocessor; sessions take copies of the pair.
        post: LeRobot's postprocessor.
        tuning: What it was fine-tuned for besides.
        digest: SHA-256 of the weights, and of low-rank adapters behind them, hexadecimal.
        lora: Low-rank adapters that are to be trained; None where there are none, or where they
            are part of the weights.
        selector: Chooses image tokens for the cache; None where none was trained.
    """

    name: str
    adapter: FlowAdapter[Any]
    pre: Any
    post: Any
    tuning: Tuning
    digest: str
    lora: PeftModel | None = None
    selector: Selector | None = None


def load_lerobot_policy(
    source: str,
    *,
    language: Path | None = None,
    device: str = "cpu",
    stats: Mapping[str, Any] | None = None,
    lora: LoraConfig | None = None,
) -> LeRobotPolicy:
    """Loads a policy of LeRobot 0.6.1: its configuration, weights and processors.

    Args:
        source: A directory as LeRobot's ``save_pretrained`` leaves it, or a hub id.
        language: Directory with the tokeniser, and for SmolVLA the configuration of its
            vision-language model, where the ones that the checkpoint names are out of reach.
        device: Where the policy runs.
        stats: A dataset's statistics, to normalise by in place of the checkpoint's.
        lora: Low-rank adapters to train: the checkpoint's where it has some, else fresh ones.
            Without, a checkpoint's are added to the weights that they stand on.

    Raises:
        OnsetError: A file is missing or does not fit, or the policy is of another type.
    """
    path = find_policy(source)
    kind = read_json(path / CONFIG).get("type")
    if kind not in ADAPTERS:
        raise OnsetError(ErrorCode.BAD_VALUE, "policy.type", kind, sorted(ADAPTERS))
    config: Any = PreTrainedConfig.from_pretrained(path)
    config.device = device
    overrides: dict[str, Any] = {"device_processor": {"device": device}}
    if language is not None:
        overrides["tokenizer_processor"] = {"tokenizer_name": str(language)}
    after: dict[str, Any] = {}
    if stats is not None:
        overrides["normalizer_processor"] = {"stats": stats}
        after["unnormalizer_processor"] = {"stats": stats}
    if kind == "smolvla":
        config.load_vlm_weights = False  # they are in the checkpoint
        config.vlm_model_name = str(language or config.vlm_model_name)
    # Each step would be compiled as LeRobot's sampler calls it, which is not called here.
    if hasattr(config, "compile_model"):
        config.compile_model = False
    try:
        policy: Any = get_policy_class(kind)(config)
        pre, post = make_pre_post_processors(
            config, str(path), preprocessor_overrides=overrides, postprocessor_overrides=after
        )
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise OnsetError(
            ErrorCode.UNAVAILABLE,
            "policy",
            f"{source}: {reason}",
            "the tokeniser and the configurations that it names, from the hub or its cache, or a "
            "directory that holds them (--language DIR)",
        ) from error
    base = base_of(path)
    load_weights(policy, base / WEIGHTS)
    model = None
    if base != path and lora is None:
        merge_saved(policy, path)
    elif lora is not None:
        model = attach(policy, lora, source) if base == path else attach_saved(policy, path, lora)
    # Behind the low-rank adapters, which stand in the places of layers that this one hooks into.
    adapter = ADAPTERS[kind](policy.to(device).eval())
    found, name = path / SELECTOR, path.resolve().name
    selector = load_selector(found) if found.is_file() else None
    about = _tuning(path), _digest(path, base)
    return LeRobotPolicy(name, adapter, pre, post, *about, model, selector)


def digest_of(source: str) -> str:
    """What ``LeRobotPolicy.digest`` of a policy would be, without loading it.

    Raises:
        OnsetError: A file is missing.
    """
    path = find_policy(source)
    return _digest(path, base_of(path))


def _digest(path: Path, base: Path) -> str:
    return digest(base / WEIGHTS, *([path / ADAPTER_WEIGHTS] if base != path else []))


def _tuning(path: Path) -> Tuning:
    if not (path / TUNING).is_file():
        return Tuning()
    raw = read_json(path / TUNING)
    try:
        return Tuning(**{name: int(value) for name, value in raw.items()})
    except (TypeError, ValueError) as error:
        raise OnsetError(
            ErrorCode.BAD_VALUE, f"policy[{TUNING}]", error, list(Tuning.__dataclass_fields__)
        ) from error
