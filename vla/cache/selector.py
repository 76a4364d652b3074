"""What is trained to say which image tokens are computed, and how many.

    changes of each patch, age, motion of the arm --+
    place of the token, prompt (bound once) --------+--> score of each token --+--> top M
                                                                  |           |
                                                 pooled, sorted --+--> M of row_counts

Trained in ``vla.cache.heads``, asked in ``vla.cache.compiled``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from controller.errors import ErrorCode, OnsetError
from vla.cache.config import SHARES, CacheConfig, CacheMode
from vla.cache.patches import CHANGES, Float

FEATURES = CHANGES + 3  # of a token: changes, age, motion of arm and grippers
RANKS = 8  # scores that the ratio predictor is told
WEIGHTS = Path(__file__).parent.parent / "weights" / "cache"


@dataclass(frozen=True)
class SelectorMeta:
    """What a selector is for.

    Attributes:
        policy: Name of the policy.
        model: Hash of its weights.
        rows: N.
        budget: Share of the image tokens that it was trained to compute on average.
        moving: Cameras on the arm, whose whole picture changes with it.
    """

    policy: str
    model: str
    rows: int
    budget: float
    moving: tuple[str, ...] = ()


class Selector:
    """The trained selector and ratio predictor.

    Attributes:
        meta: What it is for.
        weights: As ``vla.cache.compiled`` takes them.
    """

    def __init__(self, meta: SelectorMeta, tensors: Mapping[str, Float]) -> None:
        """Args:
        meta: What it is for.
        tensors: As ``vla.cache.heads.CacheHeads`` names them.

        Raises:
            KeyError: A tensor is missing.
            ValueError: One has another shape.
        """
        self.meta, self._tensors = meta, dict(tensors)
        t = self._tensors
        hidden, inner = t["enter.bias"].size, t["ratio_enter.bias"].size
        for name, shape in {
            "enter.weight": (hidden, FEATURES),
            "enter.bias": (hidden,),
            "position": (meta.rows, hidden),
            "prompt.weight": (hidden, *t["prompt.weight"].shape[-1:]),
            "leave.weight": (1, hidden),
            "ratio_enter.weight": (inner, 2 * FEATURES + RANKS),
            "ratio_enter.bias": (inner,),
            "ratio_leave.weight": (len(SHARES), inner),
            "ratio_leave.bias": (len(SHARES),),
        }.items():
            if t[name].shape != shape:  # compiled code reads what it is told is there
                raise ValueError(f"{name} has shape {t[name].shape}, not {shape}")
        self.weights = (
            _turned(t["enter.weight"]),
            _turned(t["leave.weight"][0]),
            ranks(meta.rows),
            _turned(t["ratio_enter.weight"]),
            _turned(t["ratio_enter.bias"]),
            _turned(t["ratio_leave.weight"]),
            _turned(t["ratio_leave.bias"]),
        )

    def bind(self, instruction: Float) -> Float:
        """What place and prompt add to each token. Shape (D,) to (N, hidden)."""
        t = self._tensors
        said = t["prompt.weight"] @ instruction + t["enter.bias"]
        return (t["position"] + said).astype(np.float32)

    def save(self, path: Path) -> None:
        """Writes ``path`` (``.safetensors``) and the JSON beside it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({n: np.ascontiguousarray(t) for n, t in self._tensors.items()}, path)
        path.with_suffix(".json").write_text(json.dumps(asdict(self.meta), indent=1) + "\n")


def _turned(tensor: Float) -> Float:
    return np.ascontiguousarray(tensor.T, np.float32)


def ranks(count: int) -> NDArray[np.int64]:
    """Which of so many sorted scores the ratio predictor is told. Shape (RANKS,)."""
    return (np.arange(1, RANKS + 1) * count) // (RANKS + 1)


def load_selector(path: Path) -> Selector:
    """Reads a selector.

    Args:
        path: The ``.safetensors`` file, or the name of a bundled policy.

    Raises:
        OnsetError: BAD_VALUE when a file is missing or broken.
    """
    if path.suffix != ".safetensors":
        path = WEIGHTS / f"{path.name}.safetensors"
    try:
        raw = json.loads(path.with_suffix(".json").read_text())
        meta = SelectorMeta(**(raw | {"moving": tuple(raw["moving"])}))
        return Selector(meta, load_file(path))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        bundled = sorted(p.stem for p in WEIGHTS.glob("*.safetensors"))
        raise OnsetError(
            ErrorCode.BAD_VALUE,
            "cache",
            f"{path.name}: {type(error).__name__} {error}",
            f"a selector of scripts/train_cache.py, or the policies {bundled}",
        ) from error


def selector_for(digest: str, config: CacheConfig) -> Selector | None:
    """The bundled selector for weights of this hash, if there is one and a cache is wanted.

    The controls do not choose by it, but take from it which cameras are on the arm.
    """
    if config.mode is CacheMode.OFF or not digest:
        return None
    for path in sorted(WEIGHTS.glob("*.safetensors")):
        selector = load_selector(path)
        if selector.meta.model == digest:
            return selector
    return None
