"""The executor in its own process: started, driven, stopped, left alone, killed."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from controller.errors import ErrorCode, OnsetError
from controller.exchange import Sent, running_robots
from controller.plan import Plan
from controller.recorder import read_recording
from controller.robot_file import load_robot
from controller.runtime import Runtime, RuntimeSetup
from controller.watchdog import Mode, Reason
from scripts import estop

ROBOT = load_robot("so101-sim")
JOINTS = "tests.controller.process_joints:make_joints"


def setup(*executor: str, recordings: Path | None = None, **options) -> RuntimeSetup:
    name = f"test-{secrets.token_hex(4)}"
    return RuntimeSetup(
        name, ROBOT.spec, "so101-sim", JOINTS, options, recordings=recordings, executor=executor
    )


def follow(runtime: Runtime, steps: int = 200, episode: int = 0) -> None:
    """A slow turn of the pan joint, from now on."""
    now = time.monotonic_ns()
    actions = np.tile(ROBOT.home, (min(steps, 128), 1)).astype(np.float32)
    actions[:, 0] += 0.01 * np.arange(1, len(actions) + 1)
    ids = np.zeros(len(actions), dtype=np.int64)
    runtime.beat(now)
    runtime.publish(Sent(Plan(0, actions, ids, now, 1), episode, now))


def reason(runtime: Runtime) -> Reason:
    return Reason(int(runtime.state()["reason"]))


def test_follows_a_plan_stops_at_its_end_and_is_recorded(tmp_path: Path) -> None:
    with Runtime.start(setup(recordings=tmp_path)) as runtime:
        assert runtime.mode is Mode.HOLDING
        np.testing.assert_allclose(runtime.state()["command"], ROBOT.home)
        follow(runtime, steps=8)
        assert runtime.wait(Mode.RUNNING, 2.0)
        began = time.monotonic()
        assert runtime.wait(Mode.HOLDING, 2.0)
        # 8 steps of 40 ms, and at most 250 ms to come to rest
        assert time.monotonic() - began < 0.32 + 0.25 + 0.1
        assert runtime.state()["command"][0] > ROBOT.home[0] + 0.05
        path = runtime.recording_path
    recording = read_recording(path)
    assert recording.complete
    assert recording.missing_ticks == 0
    steps = recording.records[recording.records["observation_id"] == 0]["step"]
    assert set(steps) == set(range(8))
    assert [e.text for e in recording.events if "RUNNING" in e.text]


def test_anybody_may_stop_and_release_it() -> None:
    with Runtime.start(given := setup()) as runtime:
        follow(runtime)
        assert runtime.wait(Mode.RUNNING, 2.0)
        assert given.name in running_robots()
        assert estop.main(estop.Args(given.name)) == [given.name]
        assert runtime.wait(Mode.FAULT, 1.0)
        assert reason(runtime) is Reason.ESTOP
        follow(runtime, episode=1)  # latched: no plan starts it again
        time.sleep(0.2)
        assert runtime.mode is Mode.FAULT
        stood = runtime.state()["command"]
        estop.main(estop.Args(given.name, clear=True))
        assert runtime.wait(Mode.RUNNING, 1.0)
        np.testing.assert_allclose(runtime.state()["command"], stood, atol=0.1)
    with pytest.raises(OnsetError) as gone:
        estop.main(estop.Args(given.name))
    assert gone.value.code is ErrorCode.UNAVAILABLE


def test_parks_at_the_end_and_lets_go_only_there() -> None:
    runtime = Runtime.start(setup("--when-done", "park"))
    follow(runtime, steps=5)
    assert runtime.wait(Mode.RUNNING, 2.0)
    began = time.monotonic()
    parked = None
    runtime._stops.word("quit").value = 1  # as ``close`` does, which forgets the state
    while runtime.running and time.monotonic() - began < 20:
        parked = runtime.state()["command"]
        time.sleep(0.01)
    runtime.close()
    np.testing.assert_allclose(parked, ROBOT.park, atol=1e-3)


def test_an_executor_that_cannot_start_says_why() -> None:
    with pytest.raises(OnsetError) as outside:
        Runtime.start(setup(at=[9.0, 0, 0, 0, 0, 0]))
    assert outside.value.code is ErrorCode.UNAVAILABLE
    assert "shoulder_pan.pos" in str(outside.value)
    with pytest.raises(OnsetError, match="an executor that starts"):
        Runtime.start(setup(die=True))
    assert not [name for name in running_robots() if name.startswith("test-")]


def test_one_name_one_executor() -> None:
    with Runtime.start(given := setup()), pytest.raises(OnsetError) as taken:
        Runtime.start(given)
    assert taken.value.code is ErrorCode.ALREADY_OPEN


def test_a_robot_that_stops_answering_is_a_fault() -> None:
    with Runtime.start(setup(fail_after=20)) as runtime:
        assert runtime.wait(Mode.FAULT, 2.0)
        assert reason(runtime) is Reason.ROBOT


def test_a_bug_in_the_loop_stops_the_arm_first() -> None:
    runtime = Runtime.start(setup(raise_after=100))
    follow(runtime)
    assert runtime.wait(Mode.RUNNING, 2.0)
    began = time.monotonic()
    while runtime.running and time.monotonic() - began < 5:
        time.sleep(0.01)
    state = runtime.state()
    assert Mode(int(state["mode"])) is Mode.HOLDING
    assert not state["velocity"].any()
    assert "ZeroDivisionError" in runtime.said()
    runtime.close()


CLIENT = """
import sys, time
from tests.controller.test_runtime import *
given = setup("--orphan-s", sys.argv[2])
object.__setattr__(given, "name", sys.argv[1])
runtime = Runtime.start(given)
follow(runtime)
runtime.wait(Mode.RUNNING, 5.0)
print("running", flush=True)
time.sleep(60)
"""


def killed_client(name: str, orphan_s: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", CLIENT, name, orphan_s], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "running\n"
    process.kill()
    process.wait()
    process.stdout.close()


def test_another_client_takes_over_after_a_kill() -> None:
    killed_client(name := f"test-{secrets.token_hex(4)}", "30")
    with Runtime.attach(name, ROBOT.spec) as runtime:
        assert runtime.mode in (Mode.RUNNING, Mode.COASTING)  # it goes on along what it has
        runtime.stop()
        assert runtime.wait(Mode.HOLDING, 1.0)
        runtime.stop(False)
        follow(runtime, episode=int(runtime.state()["episode"]) + 1)
        assert runtime.wait(Mode.RUNNING, 1.0)
    estop.main(estop.Args(name, quit=True))
    _gone(name)


def test_an_orphan_ends_by_itself_and_leaves_nothing() -> None:
    killed_client(name := f"test-{secrets.token_hex(4)}", "0.5")
    _gone(name)
    with pytest.raises(OnsetError):
        Runtime.attach(name, ROBOT.spec)


def _gone(name: str) -> None:
    give_up = time.monotonic() + 15
    while name in running_robots():
        assert time.monotonic() < give_up
        time.sleep(0.05)


def test_sigterm_stops_it_in_order() -> None:
    runtime = Runtime.start(setup())
    follow(runtime)
    assert runtime.wait(Mode.RUNNING, 2.0)
    assert runtime.pid is not None
    os.kill(runtime.pid, signal.SIGTERM)
    give_up = time.monotonic() + 3
    while runtime.running and time.monotonic() < give_up:
        time.sleep(0.01)
    assert not runtime.running
    assert not runtime.state()["velocity"].any()
    runtime.close()
