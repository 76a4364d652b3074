"""Checkpoints: weights in safetensors, everything else in a JSON beside them. No pickle."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from controller.bounds import check_range
from controller.errors import ErrorCode, OnsetError
from controller.strategy import STRATEGIES
from controller.types import ActionKind, CameraSpec, Dimension, FrameEncoding, RobotSpec
from vla.models.small import SmallVLA, SmallVLAConfig
from vla.schedule import AVERAGE, SCHEDULES, Schedule
from vla.transforms import Normaliser, Tokeniser

WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class PolicyMeta:
    """What a policy expects from a robot, and what it is.

    Attributes:
        name: Its name, e.g. ``"small-whack"``.
        model: Sizes of the model.
        prompts: Instructions it knows.
        robot: The robot it was trained on: names, units, cameras and period.
        expert_steps: Expert steps it was tuned for.
        max_delay: Greatest delay that it was trained for, as a prefix to continue or as a later
            beginning [steps]; 0 for none.
        pace: Greatest speed of a joint in a chunk that catches up with a delay [rad/s]; None for
            as fast as the robot's limits allow. See ``vla.catch_up``.
        noise_scale: Standard deviation of the noise that chunks are generated from, 0..1. Below 1
            they vary less from one to the next; at 0 a chunk follows from what is seen alone.
    """

    name: str
    model: SmallVLAConfig
    prompts: tuple[str, ...]
    robot: RobotSpec
    expert_steps: int = 10
    max_delay: int = 0
    pace: float | None = None
    noise_scale: float = 1.0

    def __post_init__(self) -> None:
        check_range("noise_scale", self.noise_scale, 0, 1)
        if self.pace is None:
            return
        if not (self.pace > 0 and math.isfinite(self.pace)):
            raise OnsetError(ErrorCode.BAD_VALUE, "pace", self.pace, "a positive speed [rad/s]")
        if not any(d.unit == "rad" for d in self.robot.action):
            raise OnsetError(
                ErrorCode.BAD_VALUE, "pace", self.pace, "none without a joint in rad to hold to it"
            )

    @property
    def schedules(self) -> tuple[str, ...]:
        """The schedules it can run: some need a MeanFlow head."""
        return tuple(n for n in SCHEDULES if self.model.mean_flow or n not in AVERAGE)

    def strategies(self, schedule: Schedule) -> tuple[str, ...]:
        """The strategies it can serve with a schedule.

        Average velocities jump too far to be guided; a prefix and a later beginning are trained.
        """
        return tuple(
            name
            for name, strategy in STRATEGIES.items()
            if not (strategy.guided and schedule.average)
            and (self.max_delay or not strategy.committed)
            and (self.model.max_start or not strategy.late)
        )


@dataclass(frozen=True)
class Checkpoint:
    """A policy ready to run.

    Attributes:
        meta: What it is.
        model: In evaluation mode.
        normaliser: State and action scales.
        tokeniser: Instruction to ids.
        digest: SHA-256 of the weight file, hexadecimal; empty when it was never a file.
    """

    meta: PolicyMeta
    model: SmallVLA
    normaliser: Normaliser
    tokeniser: Tokeniser
    digest: str = ""


def save_checkpoint(path: Path, meta: PolicyMeta, model: SmallVLA, normaliser: Normaliser) -> None:
    """Writes ``path`` (``.safetensors``) and the JSON beside it."""
    tensors = {f"model.{name}": t.contiguous() for name, t in model.state_dict().items()}
    tensors |= {f"normaliser.{name}": t for name, t in normaliser.tensors().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    path.with_suffix(".json").write_text(json.dumps(asdict(meta), indent=1) + "\n")


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint.

    Args:
        path: The ``.safetensors`` file, or the name of a bundled policy.

    Raises:
        OnsetError: A file is missing or broken, or its tensors do not fit the model.
    """
    if path.suffix != ".safetensors":
        path = WEIGHTS / f"{path.name}.safetensors"
    config = path.with_suffix(".json")
    if not path.is_file() or not config.is_file():
        bundled = sorted(p.stem for p in WEIGHTS.glob("*.safetensors"))
        raise OnsetError(
            ErrorCode.BAD_VALUE,
            "policy",
            path.name,
            f"a .safetensors file with a .json beside it, or one of {bundled}",
        )
    meta = _read_meta(config)
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise OnsetError(
            ErrorCode.BAD_VALUE, f"policy[{path.name}]", error, "a whole safetensors file"
        ) from error
    model = SmallVLA(meta.model)
    expected = {f"model.{n}": tuple(t.shape) for n, t in model.state_dict().items()}
    expected |= _scale_shapes(meta.model)
    given = {name: tuple(t.shape) for name, t in tensors.items()}
    missing, unexpected = sorted(expected.keys() - given), sorted(given.keys() - expected)
    if missing or unexpected:
        raise OnsetError(
            ErrorCode.BAD_NAMES,
            f"policy[{path.name}]",
            f"missing {missing}, unexpected {unexpected}",
            "the tensors of its configuration",
        )
    for name, shape in given.items():
        if shape != expected[name]:
            raise OnsetError(
                ErrorCode.BAD_SHAPE, f"policy[{path.name}].{name}", shape, expected[name]
            )
    model.load_state_dict({n[6:]: t for n, t in tensors.items() if n.startswith("model.")})
    scales = {n[11:]: t for n, t in tensors.items() if n.startswith("normaliser.")}
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    tokeniser = Tokeniser.of(meta.prompts)
    return Checkpoint(meta, model.eval(), Normaliser(**scales), tokeniser, digest)


def _scale_shapes(model: SmallVLAConfig) -> dict[str, tuple[int, ...]]:
    state, chunk = (model.state_dim,), (model.horizon, model.action_dim)
    shapes = {
        "state_mean": state,
        "state_std": state,
        "chunk_mean": chunk,
        "chunk_std": chunk,
        "relative": (model.action_dim,),
    }
    return {f"normaliser.{name}": shape for name, shape in shapes.items()}


def random_checkpoint(meta: PolicyMeta, normaliser: Normaliser, seed: int) -> Checkpoint:
    """A policy of the same shape with untrained weights: the reference that must fail."""
    torch.manual_seed(seed)
    model = SmallVLA(meta.model).eval()
    return Checkpoint(meta, model, normaliser, Tokeniser.of(meta.prompts))


def _read_meta(config: Path) -> PolicyMeta:
    try:
        return _meta(json.loads(config.read_text()))
    except (KeyError, TypeError, ValueError) as error:
        raise OnsetError(
            ErrorCode.BAD_VALUE,
            f"policy[{config.name}]",
            repr(error),
            "what save_checkpoint writes",
        ) from error


def _meta(raw: dict) -> PolicyMeta:
    robot = dict(raw["robot"])
    for part, kind in (("state", Dimension), ("action", Dimension), ("cameras", CameraSpec)):
        robot[part] = tuple(kind(**_tuples(row)) for row in robot[part])
    model = SmallVLAConfig(**_tuples(raw["model"]))
    rest = {**raw, "model": model, "robot": RobotSpec(**robot), "prompts": tuple(raw["prompts"])}
    return PolicyMeta(**rest)


def _tuples(raw: dict) -> dict:
    """JSON has lists where the dataclasses have tuples, and text where they have enumerations."""
    enums = {"kind": ActionKind, "encoding": FrameEncoding}
    plain = {n: tuple(v) if isinstance(v, list) else v for n, v in raw.items()}
    return {n: enums[n](v) if n in enums else v for n, v in plain.items()}
