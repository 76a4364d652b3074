"""The direction of imports: by source for every file, and by a real import for the base."""

import subprocess
import sys
from pathlib import Path

import pytest

from scripts.check_imports import ROOT, imported_modules, violations

BASE_MODULES = sorted(
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for file in (ROOT / "controller").rglob("*.py")
)


def test_packages_import_in_one_direction():
    assert list(violations()) == []


@pytest.mark.parametrize("module", BASE_MODULES)
def test_the_base_needs_no_torch_and_no_mujoco(module):
    program = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not loaded & {"torch", "mujoco", "lerobot", "vla", "sim", "scripts"}


@pytest.mark.parametrize(
    ("place", "line", "module"),
    [
        ("controller/a.py", "import torch.nn as nn", "torch.nn"),
        ("controller/robots/a.py", "from ..codec import x\nimport numpy, mujoco", "mujoco"),
        ("controller/a.py", "def f():\n    from vla.flow import loss", "vla.flow"),
        ("controller/a.py", "from .. import sim", "sim"),
        ("controller/a.py", "import importlib\nimportlib.import_module('torch')", "torch"),
        ("vla/a.py", "if TYPE_CHECKING:\n    import sim.task", "sim.task"),
        ("vla/a.py", "from sim import task", "sim"),
        ("sim/a.py", "import vla", "vla"),
        ("sim/a.py", "__import__('vla.policy')", "vla.policy"),
    ],
)
def test_an_import_against_the_direction_is_found(tmp_path, place, line, module):
    file = tmp_path / place
    file.parent.mkdir(parents=True)
    file.write_text(line)
    package = place.partition("/")[0]
    number = line.count("\n") + 1
    assert list(violations(tmp_path)) == [f"{place}:{number}: {package} imports {module}"]


def test_relative_imports_resolve_to_their_package():
    source = "from . import a\nfrom .b import c\nfrom ..d import e\nimport f"
    found = [name for _, name in imported_modules(source, Path("controller/robots/x.py"))]
    assert found == ["controller.robots", "controller.robots.b", "controller.d", "f"]
