"""The other process of the tests of shared memory: ``-m tests.controller.shared_workers ROLE``."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from controller.shared import LatestLayout, RingLayout, Segment, WordLayout

VALUE = np.dtype([("version", "<i8"), ("filled", "<i8", (500,))])
RECORD = np.dtype([("tick", "<i8"), ("filled", "<f8", (60,))])
CAPACITY = 64
LAYOUT = {
    "value": LatestLayout(VALUE),
    "records": RingLayout(RECORD, CAPACITY),
    "beat": WordLayout(),
}


def value(version: int) -> np.ndarray:
    made = np.zeros((), VALUE)
    made["version"] = made["filled"] = version
    return made


def record(tick: int) -> np.ndarray:
    made = np.zeros((), RECORD)
    made["tick"] = made["filled"] = tick
    return made


def is_whole(found: np.void, key: str) -> bool:
    return bool((found["filled"] == found[key]).all())


def start(role: str, name: str, *more: str) -> subprocess.Popen[str]:
    """Starts a worker and waits until it is at work."""
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "tests.controller.shared_workers", role, name, *more]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    worker = subprocess.Popen(
        command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=sys.stderr, text=True
    )
    assert worker.stdout is not None
    assert worker.stdout.readline() == "ready\n"
    return worker


def kill(worker: subprocess.Popen[str]) -> None:
    worker.kill()
    worker.communicate()


def write_values(segment: Segment) -> None:
    latest = segment.latest("value")
    while True:
        latest.write(value(latest.version + 1))


def write_records(segment: Segment) -> None:
    ring = segment.ring("records")
    while True:
        ring.write(record(ring.written + 1))


def read_records(segment: Segment, file: str) -> None:
    """Writes each tick to a file, and says that it is done with it only then."""
    reader = segment.ring("records").reader()
    with open(file, "a") as out:
        while True:
            records, lost = reader.read_all(done=False)
            for tick in records["tick"].tolist():
                out.write(f"{tick} {lost}\n")
                out.flush()
            reader.done()


def kill_writers(segment: Segment) -> None:
    """Kills writers at any moment; between them the value must be whole, and not an older one."""
    latest, reader = segment.latest("value"), segment.ring("records").reader()
    chance = random.Random(0)
    version = tick = torn = 0
    for _ in range(150):
        write = chance.choice((write_values, write_records))
        child = os.fork()
        if child == 0:
            write(segment)
        time.sleep(chance.uniform(0.0, 0.004))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found = latest.read()
        if found is not None:
            torn += not is_whole(found, "version")
            torn += latest.read_version < version or found["version"] != latest.read_version
            torn += latest.read_version != latest.version
            version = latest.read_version
        records, lost = reader.read_all()
        ticks = records["tick"].tolist()
        torn += ticks != list(range(tick + lost + 1, tick + lost + 1 + len(ticks)))
        torn += not all(is_whole(one, "tick") for one in records)
        tick += lost + len(ticks)
    print(version, tick, torn)


def main() -> None:
    role, name, *more = sys.argv[1:]
    if role == "create":
        segment = Segment.create(name, LAYOUT)
        segment.latest("value").write(value(1))
    else:
        segment = Segment.attach(name, LAYOUT)
    print("ready", flush=True)
    match role:
        case "values":
            write_values(segment)
        case "records":
            write_records(segment)
        case "reader":
            read_records(segment, *more)
        case "killer":
            kill_writers(segment)
        case "leave":
            return
        case _:
            time.sleep(60)


if __name__ == "__main__":
    main()
