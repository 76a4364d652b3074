"""Unchanged cameras reuse the image tower's output, exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

if TYPE_CHECKING:
    from vla.adapters.load import LeRobotPolicy

KINDS = ("smolvla", "pi0", "pi05", "xvla")


def frames(seed: int) -> dict[str, np.ndarray]:
    from tests.vla.adapters.tiny import CAMERAS

    random = np.random.default_rng(seed)
    return {name: random.integers(0, 256, (48, 64, 3), np.uint8) for name in CAMERAS}


def batch_of(policy: LeRobotPolicy, pictures: dict[str, np.ndarray]) -> dict[str, Any]:
    images = {
        name: torch.from_numpy(frame).permute(2, 0, 1)[None].contiguous().float() / 255
        for name, frame in pictures.items()
    }
    state = torch.linspace(-1, 1, policy.adapter.state_dim)[None]
    return policy.pre({**images, "observation.state": state, "task": ["pick"]})


def tensors(context: Any) -> list[torch.Tensor]:
    found = []
    for value in vars(context).values():
        found += [v for v in (value if isinstance(value, tuple) else (value,)) if v is not None]
    return [v for v in found if isinstance(v, torch.Tensor)]


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_only_changed_cameras_run(kind: str, loaded: dict[str, LeRobotPolicy]):
    from vla.adapters.tower import FrameMemory

    policy = loaded[kind]
    adapter, memory = policy.adapter, FrameMemory()
    first = frames(0)
    second = {**first, adapter.cameras[1]: frames(1)[adapter.cameras[1]]}
    copied = {name: frame.copy() for name, frame in second.items()}
    for pictures, expected in ((first, 2), (second, 1), (copied, 0), (first, 1)):
        slots = [memory.slot(name, pictures[name]) for name in adapter.cameras]
        before = adapter.tower.runs
        kept = adapter.encode(batch_of(policy, pictures), slots)
        assert adapter.tower.runs - before == expected
        dense = adapter.encode(batch_of(policy, pictures))
        for ours, theirs in zip(tensors(kept), tensors(dense), strict=True):
            # X-VLA's own tower takes all cameras as one batch: not bit by bit the same.
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 if kind == "xvla" else 0)


def test_sessions_do_not_share_frames():
    from vla.adapters.tower import FrameMemory

    one, other = FrameMemory(), FrameMemory()
    frame = frames(0)["observation.images.front"]
    assert one.slot("front", frame) is one.slot("front", frame)
    assert one.slot("front", frame) is not other.slot("front", frame)
    assert one.slot("front", frame) is not one.slot("wrist", frame)
    slot = one.slot("front", frame)
    one.clear()
    assert one.slot("front", frame) is not slot


def test_one_pixel_makes_another_frame():
    from vla.adapters.tower import FrameMemory

    memory = FrameMemory()
    frame = frames(0)["observation.images.front"]
    slot = memory.slot("front", frame)
    other = frame.copy()
    other[0, 0, 0] ^= 1
    assert memory.slot("front", other) is not slot
    assert memory.slot("blank", None) is memory.slot("blank", None)
