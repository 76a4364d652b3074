"""Generates the gRPC stubs beside ``proto/onset/v1/policy.proto``, or checks them.

``--check`` writes nothing: it generates into a temporary folder and exits with 1 when the stubs in
the repository differ.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

PROTO = Path(__file__).resolve().parent.parent / "proto"
SCHEMA = "onset/v1/policy.proto"
STUBS = ("policy_pb2.py", "policy_pb2.pyi", "policy_pb2_grpc.py")


def generate(target: Path) -> None:
    """Writes the three stub files under ``target/onset/v1``."""
    command = [
        *(sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={PROTO}"),
        *(f"--python_out={target}", f"--pyi_out={target}", f"--grpc_python_out={target}"),
        SCHEMA,
    ]
    subprocess.run(command, check=True)


def stale_stubs() -> list[str]:
    """Returns the names of the stubs that are missing or differ from a fresh generation."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        here = PROTO / Path(SCHEMA).parent
        fresh = Path(folder) / Path(SCHEMA).parent
        return [
            name
            for name in STUBS
            if not (here / name).exists()
            or (here / name).read_bytes() != (fresh / name).read_bytes()
        ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare only; exit 1 on a difference")
    if not parser.parse_args().check:
        generate(PROTO)
        return 0
    stale = stale_stubs()
    if stale:
        print(
            f"stubs out of date with {SCHEMA}: {', '.join(stale)}; "
            "run `python scripts/generate_stubs.py` and commit the result",
            file=sys.stderr,
        )
        return 1
    print("stubs are up to date")
    return 0


if __name__ == "__main__":
    sys.exit(main())
