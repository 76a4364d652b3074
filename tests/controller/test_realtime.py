import errno
import gc
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from controller import realtime
from controller.errors import OnsetError
from controller.realtime import RealtimeConfig, make_realtime

linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux's scheduling")
ROOT = Path(__file__).resolve().parents[2]

# Says what became of the process and of a thread and a process that it starts.
REPORT = """
import gc, json, os, subprocess, sys, threading
from controller.realtime import RealtimeConfig, make_realtime
said = make_realtime(RealtimeConfig(**json.loads(sys.argv[1])))
helper = []
thread = threading.Thread(target=lambda: helper.append(os.sched_getscheduler(0)))
thread.start()
thread.join()
code = "import os; print(os.sched_getscheduler(0))"
child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({
    "said": said,
    "policy": os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK,
    "priority": os.sched_getparam(0).sched_priority,
    "nice": os.getpriority(os.PRIO_PROCESS, 0),
    "cpus": sorted(os.sched_getaffinity(0)),
    "locked_kb": int(status["VmLck"].split()[0]),
    "collects": gc.isenabled(),
    "frozen": gc.get_freeze_count(),
    "helpers": helper + [int(child.stdout)],
}))
"""


def report(config: dict, *, before: tuple[str, ...] = (), limits: str = "") -> dict:
    command = [*before, sys.executable, "-c", limits + REPORT, json.dumps(config)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "USER": "ada"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_configuration_is_checked():
    for wrong in ({"priority": 100}, {"priority": -1}, {"cpu": -1}):
        with pytest.raises(OnsetError):
            RealtimeConfig(**wrong)


@linux
def test_with_permission_the_loop_is_real_time_and_its_helpers_are_not():
    cpu = max(os.sched_getaffinity(0))
    got = report({"priority": 7, "cpu": cpu})
    if any("SCHED_FIFO" in sentence for sentence in got["said"]):
        pytest.skip(f"not permitted here: {got['said']}")
    assert (got["policy"], got["priority"]) == (os.SCHED_FIFO, 7)
    assert got["cpus"] == [cpu]
    assert got["helpers"] == [os.SCHED_OTHER, os.SCHED_OTHER]
    assert not got["collects"]
    assert got["frozen"] > 1000


@linux
def test_memory_is_locked_when_permitted():
    got = report({"priority": 0})
    if got["said"]:
        pytest.skip(f"not permitted here: {got['said']}")
    assert got["locked_kb"] > realtime._HEAP_BYTES // 1024


@linux
def test_what_is_not_asked_for_stays():
    got = report({"priority": 0, "lock_memory": False})
    assert got["said"] == []
    assert got["policy"] == os.SCHED_OTHER
    assert got["locked_kb"] == 0
    assert got["cpus"] == sorted(os.sched_getaffinity(0))


NO_LIMIT_LEFT = """
import resource
resource.setrlimit(resource.RLIMIT_RTPRIO, (0, 0))
resource.setrlimit(resource.RLIMIT_NICE, (0, 0))
resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
"""


def unprivileged() -> tuple[str, ...]:
    """What to put before a command so that it has no right to any of it."""
    if os.geteuid() != 0:
        return ()  # the limits alone do it
    tool = shutil.which("setpriv")
    if tool is None:
        pytest.skip("setpriv, which takes the superuser's rights away, is not installed")
    gone = "-sys_nice,-ipc_lock,-sys_resource"
    return (tool, "--bounding-set", gone, "--inh-caps", gone)


@linux
def test_without_permission_each_thing_is_said_and_the_process_goes_on():
    got = report({"priority": 60, "cpu": 4095}, before=unprivileged(), limits=NO_LIMIT_LEFT)
    memory, cpu, fifo, nice = got["said"]
    assert "64 kB" in memory
    assert "'ada - memlock unlimited'" in memory
    assert "4095" in cpu
    assert all(str(one) in cpu for one in got["cpus"])
    assert "'ada - rtprio 60'" in fifo
    assert "CAP_SYS_NICE" in fifo
    assert "'ada - nice -15'" in nice
    assert got["policy"] == os.SCHED_OTHER
    assert got["locked_kb"] == 0
    assert not got["collects"]


@linux
def test_a_lower_priority_is_taken_when_only_that_is_permitted(monkeypatch):
    asked = []

    def scheduler(pid, policy, parameters):
        asked.append(parameters.sched_priority)
        if parameters.sched_priority > 20:
            raise PermissionError(errno.EPERM, "no")

    monkeypatch.setattr(os, "sched_setscheduler", scheduler)
    monkeypatch.setattr(realtime, "_raised_limit", lambda which: 20)
    (sentence,) = realtime._raise_priority(60)
    assert asked == [60, 20]
    assert "priority 20, not 60" in sentence


def test_on_another_system_it_says_so_and_goes_on(monkeypatch):
    asked = []
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(os, "setpriority", lambda *given: asked.append(given))
    try:
        (sentence,) = make_realtime(RealtimeConfig())
    finally:
        gc.enable()
        gc.unfreeze()
    assert "Linux" in sentence
    assert len(asked) == 1
