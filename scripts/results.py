"""Writes the result files that docs/results.md is made from.

One JSON a run:

    command   the command line as typed, from the repository's root
    commit    the commit of the code, with `-dirty` when it had local changes
    machine   cores, processor, python, libraries {name: version}; gpu where one is in use
    figures   name -> number: what the run was for
    rows      the full table, one mapping a row
"""

import json
import math
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = (
    "grpcio",
    "lerobot",
    "mujoco",
    "numba",
    "numpy",
    "onnxruntime",
    "protobuf",
    "ruckig",
    "torch",
)


def write_results(
    path: str | Path,
    figures: Mapping[str, float],
    rows: Sequence[Mapping[str, object]],
    *,
    commit: str | None = None,
) -> None:
    """Write one result file, whole or not at all.

    Args:
        path: the file; missing folders are made.
        figures: finite numbers by name.
        rows: the full table; values are strings, booleans, numbers or None.
        commit: `code_commit()` taken when a long run began; read now when not given.

    Raises:
        ValueError: a figure is not finite.
        TypeError: a value has no place in JSON.
    """
    for name, figure in figures.items():
        if not math.isfinite(figure):
            raise ValueError(f"figure {name!r} is {figure}; a figure is a finite number")
    document = {
        "command": command_line(),
        "commit": commit or code_commit(),
        "machine": machine(),
        "figures": {name: float(figure) for name, figure in figures.items()},
        "rows": [{name: _plain(value) for name, value in row.items()} for row in rows],
    }
    text = json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def command_line(argv: Sequence[str] | None = None) -> str:
    """Return the command line as typed at the repository's root.

    Absolute paths become relative to the root, or their last part where they lie outside it.
    """
    return shlex.join(_without_place(part) for part in (sys.argv if argv is None else argv))


def code_commit() -> str:
    """Return the commit of this checkout, with `-dirty` when its code has local changes.

    What is under docs is not code: a run may write its files and pictures there. "unknown" outside
    git.
    """
    try:
        head = _git("rev-parse", "HEAD")
        changes = _git("status", "--porcelain", "--", ".", ":!docs")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head}-dirty" if changes else head


def machine() -> dict[str, object]:
    """Return what figures depend on: cores, processor, python, library versions, GPU."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count()
    found: dict[str, object] = {
        "cores": cores,
        "processor": _processor(),
        "python": platform.python_version(),
        "libraries": _library_versions(),
    }
    torch = sys.modules.get("torch")  # a run that did not import it used no GPU
    if torch is not None and torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def _plain(value: object) -> object:
    """Numpy's and torch's scalars as Python's; a number that is not finite as None."""
    value = getattr(value, "item", lambda: value)()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _without_place(part: str) -> str:
    flag, equals, value = part.partition("=") if part.startswith("-") else ("", "", part)
    path = Path(value)
    if not path.is_absolute():
        return part
    inside = path.is_relative_to(ROOT)
    return flag + equals + (path.relative_to(ROOT).as_posix() if inside else path.name)


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def _library_versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
