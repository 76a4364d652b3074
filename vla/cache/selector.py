"""Which image tokens are computed, and how many. In numpy, for one frame at a time.

    changes of each patch, age, motion of the arm --+
    place of the token, prompt (bound once) --------+--> score of each token --+--> top M
                                                                  |           |
                                                 pooled, sorted --+--> M of row_counts

Trained in ``vla.cache.heads``; a few thousand numbers, so that a call into torch for each product
would take longer than all of it.
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
from vla.cache.config import CacheConfig, CacheMode
from vla.cache.patches import CHANGES

Float = NDArray[np.float32]

FEATURES = CHANGES + 3  # of a token: changes, age, motion of arm and grippers
BEND = 0.05  # a change of this size is half of what the selector can be told
MOTION = 0.1  # the same for the arm [rad] and grippers
RANKS = 8  # scores that the ratio predictor is told
AGE = 8  # an age that counts as 1 [observations]
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
    """The trained selector and ratio predictor. Not for several threads at a time.

    Attributes:
        meta: What it is for.
    """

    def __init__(self, meta: SelectorMeta, tensors: Mapping[str, Float]) -> None:
        """Args:
        meta: What it is for.
        tensors: As ``vla.cache.heads.CacheHeads`` names them.
        """
        self.meta, self._tensors = meta, dict(tensors)
        t = self._tensors
        self._enter, self._leave = t["enter.weight"].T.copy(), t["leave.weight"][0]
        # What needs no call of its own is in the matrices: means, biases, and which of the sorted
        # scores are told. In cold code a call takes longer than the arithmetic.
        told = np.zeros((meta.rows, RANKS), np.float32)
        told[ranks(meta.rows), np.arange(RANKS)] = 1
        mean, most, scores = np.split(t["ratio_enter.weight"].T, (FEATURES, 2 * FEATURES))
        parts = mean / meta.rows, most, told @ scores, t["ratio_enter.bias"][None]
        self._ratio_enter = _carrying_one(np.concatenate(parts).astype(np.float32))
        self._ratio_leave = np.concatenate((t["ratio_leave.weight"].T, t["ratio_leave.bias"][None]))
        # Sums, greatest values, sorted scores, and a 1 for the bias; made once, as it is cold too.
        self._pooled = np.ones(len(self._ratio_enter), np.float32)

    def bind(self, instruction: Float) -> Float:
        """What place and prompt add to each token. Shape (D,) to (N, hidden)."""
        t = self._tensors
        said = t["prompt.weight"] @ instruction + t["enter.bias"]
        return (t["position"] + said).astype(np.float32)

    def scores(self, tokens: Float, bias: Float) -> Float:
        """Scores, high where a token is to be computed. (N, FEATURES) and (N, hidden) to (N,)."""
        hidden = tokens @ self._enter
        hidden += bias
        np.maximum(hidden, 0, out=hidden)
        return hidden @ self._leave

    def choice(self, tokens: Float, scores: Float) -> int:
        """Which of ``row_counts`` to compute."""
        pooled = self._pooled
        np.add.reduce(tokens, 0, out=pooled[:FEATURES])
        np.maximum.reduce(tokens, 0, out=pooled[FEATURES : 2 * FEATURES])
        ordered = pooled[2 * FEATURES : -1]
        ordered[:] = scores
        ordered.sort()
        hidden = pooled @ self._ratio_enter
        np.maximum(hidden, 0, out=hidden)
        return int((hidden @ self._ratio_leave).argmax())

    def save(self, path: Path) -> None:
        """Writes ``path`` (``.safetensors``) and the JSON beside it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({n: np.ascontiguousarray(t) for n, t in self._tensors.items()}, path)
        path.with_suffix(".json").write_text(json.dumps(asdict(self.meta), indent=1) + "\n")


def token_features(changes: Float, ages: NDArray[np.int64], arm: float, grippers: float) -> Float:
    """What the selector is told of each token. Shape (N, FEATURES), each value about -1..1.

    Args:
        changes: As ``Patcher.changes``. Shape (N, 6).
        ages: Ages of the rows [observations]. Shape (N,).
        arm: How far the arm's joints have moved since the last observation, at most [rad].
        grippers: The same for grippers.
    """
    found = np.empty((len(changes), FEATURES), np.float32)
    size = np.abs(changes)
    size += BEND
    np.divide(changes, size, out=found[:, :CHANGES])
    np.multiply(ages, 1 / AGE, out=found[:, CHANGES], casting="unsafe")
    found[:, CHANGES + 1 :] = arm / (arm + MOTION), grippers / (grippers + MOTION)
    return found


def _carrying_one(matrix: Float) -> Float:
    """A matrix whose product's last number is 1 where the last one of the given vector is."""
    one = np.zeros((len(matrix), 1), np.float32)
    one[-1] = 1
    return np.concatenate((matrix, one), axis=1)


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
