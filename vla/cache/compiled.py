"""What is done with each patch and each token of a frame, as machine code.

Between two frames of a robot other code runs, and a small one's are few numbers: of each call into
numpy most is the time until its code is back in the processor's caches, whatever it computes. Here
it is three calls a frame.

Compiled when it is first imported on a machine, which takes some ten seconds, and kept in
``__pycache__``, or in the user's cache folder where that cannot be written. Even then an import
takes two seconds: whoever does not compare frames leaves it out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numba import njit
from numpy.typing import NDArray

from vla.cache.config import RECOVERY_AGE
from vla.cache.patches import CHANGES, Bytes, Float
from vla.cache.selector import Selector

# What is compiled is kept until this file changes, so that none of it may stand in another.
BEND = 0.05  # a change of this size is half of what the selector can be told
MOTION = 0.1  # the same for the arm [rad] and grippers
AGE = 8  # an age that counts as 1 [observations]
# Sums may be taken in any order, so that they run in vector units; not a number stays not a number.
_OPTIONS = {"fastmath": {"reassoc", "contract", "nsz"}, "error_model": "numpy"}


def _compiled(signature: str) -> Callable[[Callable], Callable]:
    def compile(function: Callable) -> Callable:
        try:
            return njit(signature, cache=True, **_OPTIONS)(function)
        except RuntimeError:  # no folder to keep it in: it is compiled at each start
            return njit(signature, **_OPTIONS)(function)

    return compile


@_compiled("uint8(uint8, uint8)")
def _apart(a, b):
    return np.uint8(max(a, b) - min(a, b))


@_compiled("void(uint8[:, ::1], uint8[:, ::1], int64, float32[:, ::1])")
def _compare(new, old, newest, found):
    count, size = new.shape
    if old.shape != new.shape or found.shape != (count, 6) or newest > size:
        raise ValueError("patches and their reference differ in shape")
    for p in range(count):
        differ = np.uint8(0)
        for k in range(size):
            differ |= new[p, k] ^ old[p, k]
        if differ == 0:  # most of a picture
            found[p] = 0
            continue
        for c in range(3):
            moved = np.int32(0)
            for k in range(newest // 3):
                moved = np.int32(moved + new[p, 3 * k + c] - old[p, 3 * k + c])
            found[p, c] = moved * np.float32(3 / (255 * newest))
        first, total, most = np.uint32(0), np.uint32(0), np.uint8(0)
        for k in range(newest):
            first = np.uint32(first + _apart(new[p, k], old[p, k]))
        for k in range(size):
            apart = _apart(new[p, k], old[p, k])
            total, most = np.uint32(total + apart), max(most, apart)
        found[p, 3] = first * np.float32(1 / (255 * newest))
        found[p, 4] = total * np.float32(1 / (255 * size))
        found[p, 5] = most * np.float32(1 / 255)


@_compiled("float32[:, ::1](float32[:, ::1], int64[::1], float64, float64)")
def _features(changes, ages, arm, grippers):
    count, known = changes.shape
    found = np.empty((count, known + 3), np.float32)
    moved, held = arm / (arm + MOTION), grippers / (grippers + MOTION)
    for n in range(count):
        for c in range(known):
            found[n, c] = changes[n, c] / (abs(changes[n, c]) + np.float32(BEND))
        found[n, known] = ages[n] * np.float32(1 / AGE)
        found[n, known + 1] = moved
        found[n, known + 2] = held
    return found


@_compiled(
    "Tuple((float32[::1], int64))(float32[:, ::1], int64[::1], float64, float64, float32[:, ::1], "
    "float32[:, ::1], float32[::1], int64[::1], float32[:, ::1], float32[::1], float32[:, ::1], "
    "float32[::1])"
)
def _judge(
    changes, ages, arm, grippers, bias, enter, leave, told, r_enter, r_enter_bias, r_leave, r_bias
):
    if len(changes) != len(bias) or len(ages) != len(bias):
        raise ValueError("changes or ages are not of the selector's rows")
    tokens = _features(changes, ages, arm, grippers)
    features = len(enter)
    if tokens.shape[1] != features:
        raise ValueError("changes are not what the selector knows")
    scores, hidden = np.empty(len(tokens), np.float32), np.empty(len(leave), np.float32)
    # Means, greatest values, and some of the sorted scores.
    pooled = np.zeros(len(r_enter), np.float32)
    most = pooled[features : 2 * features]
    most[:] = -np.inf
    for n in range(len(tokens)):
        hidden[:] = bias[n]
        for f in range(features):
            given = tokens[n, f]
            pooled[f] += given
            most[f] = max(most[f], given)
            for h in range(len(hidden)):
                hidden[h] += given * enter[f, h]
        score = np.float32(0)
        for h in range(len(hidden)):
            score += max(hidden[h], np.float32(0)) * leave[h]
        scores[n] = score
    pooled[:features] /= np.float32(len(tokens))
    pooled[2 * features :] = np.sort(scores)[told]
    inner = r_enter_bias.copy()
    for i in range(len(pooled)):
        for h in range(len(inner)):
            inner[h] += pooled[i] * r_enter[i, h]
    logits = r_bias.copy()
    for h in range(len(inner)):
        for m in range(len(logits)):
            logits[m] += max(inner[h], np.float32(0)) * r_leave[h, m]
    return scores, np.argmax(logits)


@_compiled("boolean[::1](float32[::1], int64)")
def _greatest(values, count):
    found = np.zeros(len(values), np.bool_)
    bound = np.sort(values)[len(values) - count]
    equal = count
    for n in range(len(values)):
        equal -= values[n] > bound
    for n in range(len(values)):  # of equal ones the first
        found[n] = values[n] > bound
        if values[n] == bound and equal > 0:
            found[n] = True
            equal -= 1
    return found


@_compiled("Tuple((int64[::1], int64))(float32[::1], int64[::1], int64, int64, int64)")
def _pick(scores, ages, count, recovered, recovery_age):
    rows = len(scores)
    if len(ages) != rows or not 0 < count <= rows or not 0 < recovered <= rows:
        raise ValueError("scores and ages are not of the same rows, or more are asked for")
    worth = np.empty(rows, np.float32)
    for n in range(rows):
        worth[n] = np.inf if np.isnan(scores[n]) else scores[n]
    if ages.max() >= recovery_age:
        worth[_greatest(ages.astype(np.float32), recovered)] = np.inf
    computed = _greatest(worth, count)
    oldest = 0
    for n in range(rows):
        if not computed[n]:
            oldest = max(oldest, ages[n])
    return np.flatnonzero(computed), oldest


def frame_changes(patches: Sequence[Bytes], reference: Sequence[Bytes], newest: int) -> Float:
    """How each patch differs from its reference, each value of full scale.

    Shape (N, 6): change of mean red, green and blue of the newest frame; mean difference of the
    newest frame, mean and greatest difference of all lags.

    Args:
        patches: Per camera. Shape (P, K), uint8.
        reference: The same.
        newest: How many of the K bytes are the newest frame's; they come first.

    Raises:
        ValueError: The two are of different shapes.
    """
    found, begin = np.empty((sum(map(len, patches)), CHANGES), np.float32), 0
    for new, old in zip(patches, reference, strict=True):
        _compare(new, old, newest, found[begin : begin + len(new)])
        begin += len(new)
    return found


def token_features(changes: Float, ages: NDArray[np.int64], arm: float, grippers: float) -> Float:
    """What the selector is told of each token. Shape (N, FEATURES), each value about -1..1.

    Args:
        changes: As ``frame_changes``. Shape (N, 6).
        ages: Ages of the rows [observations]. Shape (N,).
        arm: How far the arm's joints have moved since the last observation, at most [rad].
        grippers: The same for grippers.
    """
    return _features(changes, ages, arm, grippers)


def judge(
    selector: Selector,
    changes: Float,
    ages: NDArray[np.int64],
    arm: float,
    grippers: float,
    bias: Float,
) -> tuple[Float, int]:
    """Scores of the tokens, high where one is to be computed, and which of ``row_counts``.

    Args:
        selector: Whose word it is.
        changes: As for ``token_features``, and so the next three.
        ages: Shape (N,).
        arm: [rad]
        grippers: [1]
        bias: As ``Selector.bind``. Shape (N, hidden).

    Returns:
        Shape (N,), and an index.

    Raises:
        ValueError: N differs.
    """
    return _judge(changes, ages, arm, grippers, bias, *selector.weights)


def pick_rows(
    scores: Float, ages: NDArray[np.int64], count: int, recovered: int
) -> tuple[NDArray[np.int64], int]:
    """The rows to compute: those of the highest scores; from RECOVERY_AGE on, the oldest before.

    Args:
        scores: What each is worth; what is not a number is worth most. Shape (N,).
        ages: Shape (N,) [observations].
        count: M, at least 1.
        recovered: How many of the oldest come first.

    Returns:
        The rows, increasing, shape (M,); and the greatest age of the others.

    Raises:
        ValueError: M is more than N.
    """
    return _pick(scores, ages, count, recovered, RECOVERY_AGE)
