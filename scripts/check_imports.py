"""Checks the direction of imports between the packages, from their source.

    controller  <-  vla     torch
                <-  sim     mujoco
    scripts, tests, benchmarks compose all three

The base that a robot computer installs is `controller`: it never needs torch or mujoco. Imports
inside functions and under TYPE_CHECKING count as well.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# package -> what nothing in it may import
FORBIDDEN = {
    "controller": {"torch", "mujoco", "vla", "sim", "scripts", "tests", "benchmarks"},
    "vla": {"mujoco", "sim", "scripts", "tests", "benchmarks"},
    "sim": {"vla", "scripts", "tests", "benchmarks"},
}


def violations(root: Path = ROOT) -> Iterator[str]:
    """Yield "file:line: controller imports torch.nn" for every import against the direction."""
    for package, forbidden in FORBIDDEN.items():
        for file in sorted((root / package).rglob("*.py")):
            place = file.relative_to(root)
            for line, module in imported_modules(file.read_text(encoding="utf-8"), place):
                if module.partition(".")[0] in forbidden:
                    yield f"{place.as_posix()}:{line}: {package} imports {module}"


def imported_modules(source: str, place: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, absolute module name) for each import in a source file.

    Args:
        source: the text of the file.
        place: its path from the root, which relative imports start from.
    """
    for node in ast.walk(ast.parse(source, filename=str(place))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            parents = place.parts[: len(place.parts) - node.level] if node.level else ()
            base = [*parents, *([node.module] if node.module else [])]
            if base:
                yield node.lineno, ".".join(base)
            else:  # `from .. import sim` at the root
                for alias in node.names:
                    yield node.lineno, alias.name
        elif isinstance(node, ast.Call) and node.args:
            # import_module("torch"), importlib.import_module("torch"), __import__("torch")
            called = node.func.attr if isinstance(node.func, ast.Attribute) else node.func
            called = called.id if isinstance(called, ast.Name) else called
            name = node.args[0]
            if called in ("import_module", "__import__") and isinstance(name, ast.Constant):
                yield node.lineno, str(name.value)


def main() -> int:
    """Print every violation; return the exit status."""
    found = list(violations())
    for violation in found:
        print(violation, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
