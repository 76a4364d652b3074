"""Low-rank adapters (LoRA, arXiv 2106.09685) on a LeRobot policy: made, kept and found by peft.

    DIR/config.json                 the policy's own, ``use_peft`` set
    DIR/adapter_config.json         says which layers have some, and names the policy under them
    DIR/adapter_model.safetensors   their matrices; the policy's weights stay where they were

This is how LeRobot itself keeps them, so its commands load what is trained here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict

from controller.bounds import check_range
from controller.errors import ErrorCode, OnsetError
from vla.adapters.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, find_policy, read_json
from vla.adapters.weights import check_tensors, read_tensors

# Where LeRobot names none: the attention of X-VLA's transformer, as in its other policies.
_TARGETS = {"xvla": r"model\.transformer\.blocks\..*\.attn\.(qkv|proj)"}


@dataclass(frozen=True)
class LoraConfig:
    """Which layers are given low-rank adapters.

    Attributes:
        rank: Rank of their product; 0 for no adapters.
        alpha: The product is scaled by alpha / rank; twice the rank by default.
        targets: Regular expression of the layers' full names; by default LeRobot's choice for the
            policy: the expert's queries and values and the projections of state, action and time;
            of X-VLA the attention of its transformer.
    """

    rank: int = 0
    alpha: int | None = None
    targets: str | None = None

    def __post_init__(self) -> None:
        check_range("finetune.lora.rank", self.rank, 0, 4096)
        if self.alpha is not None:
            check_range("finetune.lora.alpha", self.alpha, 1, 10**6)


def attach(policy: Any, config: LoraConfig, source: str) -> PeftModel:
    """Gives a policy fresh adapters, which change nothing yet, and freezes all else.

    Args:
        policy: A LeRobot policy. Its layers are exchanged in place.
        config: Which layers.
        source: Directory or hub id of the policy, by which the adapters will name it.

    Raises:
        OnsetError: BAD_VALUE: no layer has such a name.
    """
    policy.config.pretrained_path = _lasting(source)
    wanted = {
        "r": config.rank,
        "lora_alpha": config.alpha or 2 * config.rank,
        "target_modules": config.targets or _TARGETS.get(policy.config.type),
    }
    try:
        return policy.wrap_with_peft(peft_cli_overrides=wanted)
    except ValueError as error:  # peft's, where nothing matches
        raise OnsetError(
            ErrorCode.BAD_VALUE,
            "finetune.lora.targets",
            f"{config.targets}: {error}",
            "a regular expression of linear layers",
        ) from error


def attach_saved(policy: Any, path: Path, config: LoraConfig | None = None) -> PeftModel:
    """Gives a policy the adapters of a checkpoint, to be trained on.

    Args:
        policy: With the weights that they stand on.
        path: The checkpoint's directory.
        config: What is to be trained; its rank has to be theirs.

    Raises:
        OnsetError: BAD_NAMES, BAD_SHAPE or BAD_VALUE: a tensor is missing, left over or does not
            fit, or the rank is another.
    """
    rank = read_json(path / ADAPTER_CONFIG).get("r")
    if config is not None and config.rank != rank:
        raise OnsetError(
            ErrorCode.BAD_VALUE, "finetune.lora.rank", config.rank, f"{rank}, as in {path}"
        )
    tensors = read_tensors(path / ADAPTER_WEIGHTS)
    try:
        model = PeftModel.from_pretrained(policy, str(path), is_trainable=True)
    except (RuntimeError, ValueError) as error:  # shapes; targets that are not there
        raise OnsetError(
            ErrorCode.BAD_SHAPE,
            f"policy[{ADAPTER_WEIGHTS}]",
            str(error).splitlines()[0],
            "the adapters of its configuration",
        ) from error
    own = get_peft_model_state_dict(model, save_embedding_layers=False)
    check_tensors(ADAPTER_WEIGHTS, tensors, own)
    return model


def merge_saved(policy: Any, path: Path) -> None:
    """Adds the adapters of a checkpoint to the weights that they stand on: a policy without any.

    Arguments and errors as ``attach_saved``.
    """
    trained = {name for name, p in policy.named_parameters() if p.requires_grad}
    attach_saved(policy, path).merge_and_unload()
    for name, parameter in policy.named_parameters():  # peft has frozen them all
        parameter.requires_grad_(name in trained)
    policy.config.use_peft = False


def save(model: PeftModel, path: Path) -> None:
    """Writes adapters and the policy's configuration."""
    # Else peft looks for the policy's configuration on the hub, to see whether words were added.
    model.save_pretrained(str(path), save_embedding_layers=False)
    policy: Any = model.get_base_model()
    policy.config.save_pretrained(path)


def base_of(path: Path) -> Path:
    """The directory of the weights: of the policy itself, or of the one under its adapters.

    Args:
        path: A checkpoint's directory.

    Raises:
        OnsetError: The policy that the adapters name is not found, or has adapters of its own.
    """
    if not (path / ADAPTER_CONFIG).is_file():
        return path
    field = f"policy[{ADAPTER_CONFIG}].base_model_name_or_path"
    name = read_json(path / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not name:
        raise OnsetError(ErrorCode.BAD_VALUE, field, name, "a directory or a hub id")
    try:
        base = find_policy(str(name))
    except OnsetError as error:
        raise OnsetError(error.code, field, error.given, error.allowed) from error
    if (base / ADAPTER_CONFIG).is_file():
        raise OnsetError(ErrorCode.BAD_VALUE, field, name, "a policy without adapters")
    return base


def _lasting(source: str) -> str:
    """A directory's whole path, so that adapters find it from elsewhere; a hub id as it is."""
    path = Path(source)
    return str(path.resolve()) if path.is_dir() else source
