"""Four tiny checkpoints, built and loaded once for all tests of the adapters."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

if TYPE_CHECKING:
    from tests.vla.adapters.tiny import Tiny
    from vla.adapters.load import LeRobotPolicy


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lerobot")


@pytest.fixture(scope="session")
def language(root: Path) -> Path:
    from tests.vla.adapters.tiny import write_language

    return write_language(root / "language")


@pytest.fixture(scope="session")
def tinies(root: Path, language: Path) -> dict[str, Tiny]:
    """As LeRobot has them."""
    from tests.vla.adapters.tiny import KINDS, build

    return {kind: build(kind, root, language) for kind in KINDS}


@pytest.fixture(scope="session")
def loaded(tinies: dict[str, Tiny]) -> dict[str, LeRobotPolicy]:
    """As we load them from the files that LeRobot saved."""
    from tests.vla.adapters.tiny import small_gemmas
    from vla.adapters.load import load_lerobot_policy

    with small_gemmas():
        return {
            kind: load_lerobot_policy(str(tiny.path), language=tiny.language)
            for kind, tiny in tinies.items()
        }
