"""The simulated arm in a process of its own: real time, real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
import pytest

from controller.errors import ErrorCode, OnsetError
from controller.shared import Segment
from controller.types import Command
from sim.device import SimDevice, SimJoints, attach, make_cameras, make_joints
from sim.device_process import STEP_NS
from sim.device_shared import DEVICE
from sim.env import SimRobot
from sim.film import Film
from sim.tasks import make_task


@pytest.fixture(scope="module")
def device() -> Iterator[SimDevice]:
    with SimDevice("whack") as device:
        yield device


@pytest.fixture
def joints(device: SimDevice):
    joints = make_joints({"segment": device.segment})
    yield joints
    joints.close()


@pytest.fixture
def cameras(device: SimDevice):
    cameras = make_cameras({"segment": device.segment})
    yield cameras
    cameras.close()


def position(joints) -> np.ndarray:
    return joints.read_state()[:6].astype(np.float64)


def write(joints, target: np.ndarray) -> None:
    joints.write(Command(time.monotonic_ns(), target))


def wait(condition, limit_s: float = 3.0) -> None:
    give_up = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.002)


def test_a_set_point_moves_the_arm_and_a_reset_puts_it_back(device, joints) -> None:
    prompt = device.reset(3)
    assert prompt == SimRobot(make_task("whack")).reset(3) == device.status().prompt
    start = position(joints)
    target = start + [0.2, 0, 0, 0, 0, 0.1]
    write(joints, target)
    wait(lambda: np.abs(position(joints) - target).max() < 0.01)
    np.testing.assert_allclose(device.status().set_point, target, atol=1e-6)

    episode = device.status().episode
    device.reset(3)
    np.testing.assert_allclose(position(joints), start, atol=1e-3)
    assert device.status().episode == episode + 1 == joints.episode
    time.sleep(0.1)  # the set-point of before does not pull it away
    np.testing.assert_allclose(position(joints), start, atol=1e-3)


def test_what_is_not_meant_for_this_episode_or_not_finite_does_nothing(device, joints) -> None:
    device.reset(1)
    start = position(joints)
    before = device.status().health
    device.reset(1)
    write(joints, start + 0.2)  # computed from a state before the reset
    position(joints)
    write(joints, np.full(6, np.nan))
    wait(lambda: device.status().health.refused == before.refused + 1)
    assert device.status().health.stale == before.stale + 1
    np.testing.assert_allclose(position(joints), start, atol=1e-3)


def test_a_prompt_can_be_named_and_a_wrong_one_is_refused(device) -> None:
    assert device.reset(0, "hit the blue mole") == "hit the blue mole"
    episode = device.status().episode
    with pytest.raises(OnsetError, match="hit the pink mole") as caught:
        device.reset(0, "hit the pink mole")
    assert caught.value.code == ErrorCode.UNKNOWN_PROMPT
    assert "hit the blue mole" in caught.value.allowed
    with pytest.raises(OnsetError, match="seed"):
        device.reset(-1)
    time.sleep(0.05)
    assert device.status().episode == episode
    assert device.reset(0)


def test_frames_come_at_the_policys_rate_and_stop_when_stalled(device, joints, cameras) -> None:
    device.reset(0)
    captured, first = cameras.frames()
    assert first["front"].shape == (96, 96, 3)
    write(joints, position(joints) + [0.3, 0, 0, 0, 0, 0])
    seen = {captured}
    give_up = time.monotonic() + 0.4
    while time.monotonic() < give_up:
        seen.add(cameras.frames()[0])
        time.sleep(0.002)
    assert 9 <= len(seen) <= 12
    now, last = cameras.frames()
    assert time.monotonic_ns() - now < 80_000_000
    assert np.abs(last["front"].astype(int) - first["front"]).max() > 50

    device.stall(True)
    time.sleep(0.05)
    stalled, _ = cameras.frames()
    time.sleep(0.1)
    assert cameras.frames()[0] == stalled
    device.stall(False)
    wait(lambda: cameras.frames()[0] > stalled)


def test_it_moves_as_the_arm_in_virtual_time_does(device, joints) -> None:
    """Set-points act from the next step, however late physics or this test may be."""
    device.reset(5)
    joints.connect()
    home = position(joints)
    written = []
    for i in range(60):
        write(joints, home + 0.3 * np.sin(i / 10) * np.array([1, 0.2, -0.2, 0.3, 0.5, 0]))
        written.append(joints._command[0].copy())
        time.sleep(0.005)
    shared = Segment.attach(device.segment, DEVICE)
    begun = int(shared.latest("reply").read()["begun_ns"])
    state = shared.latest("state").read()
    shared.close()

    robot = SimRobot(make_task("whack"))
    robot.reset(5, now_ns=begun)
    for step in range((int(state["time_ns"]) - begun) // STEP_NS):
        due = [w for w in written if w["time_ns"] <= begun + step * STEP_NS]
        if due:
            robot.write(Command(0, due[-1]["position"]))
        robot.step()
    np.testing.assert_allclose(state["state"], robot.read().state, atol=1e-5)
    assert np.abs(robot.velocity).max() > 0.05


def test_steps_of_two_milliseconds_do_what_steps_of_a_task_do() -> None:
    coarse, fine = (SimRobot(make_task("pick_place")) for _ in range(2))
    for robot in (coarse, fine):
        robot.reset(2)
        robot.write(Command(0, robot.position + 0.1))
    coarse.advance_to(500_000_000)
    for _ in range(250):
        fine.step()
    np.testing.assert_array_equal(coarse.data.qpos, fine.data.qpos)
    assert coarse.task.score() == fine.task.score()


def is_gone(segment: str) -> bool:
    try:
        attach(segment).close()
    except OnsetError as error:
        return error.code == ErrorCode.UNAVAILABLE
    return False


def run_killed(code: str, *args: str) -> str:
    """Runs code that kills its own process at the end; returns what it printed."""
    code = f"import os, sys\nfrom sim.device import *\n{code}\nos.kill(os.getpid(), 9)"
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    return done.stdout.strip()


def test_its_users_may_die(device, joints, cameras) -> None:
    code = (
        "from controller.types import Command\n"
        "print(attach(sys.argv[1]).reset(7), flush=True)\n"
        "joints = make_joints({'segment': sys.argv[1]})\n"
        "joints.write(Command(0, joints.read_state()[:6] + 0.1))"
    )
    assert run_killed(code, device.segment) == device.status().prompt
    time.sleep(0.02)
    target = device.status().set_point
    assert np.abs(position(joints) - target).max() > 0.05
    wait(lambda: np.abs(position(joints) - target).max() < 0.01)
    frame, _ = cameras.frames()
    wait(lambda: cameras.frames()[0] > frame)
    np.testing.assert_array_equal(device.status().set_point, target)
    assert device.reset(8)
    with attach(device.segment) as client:
        assert client.status().prompt == device.status().prompt


def test_with_the_process_that_started_it_it_ends() -> None:
    segment = run_killed("print(SimDevice('whack').__enter__().segment, flush=True)")
    wait(lambda: is_gone(segment))


def test_its_states_can_be_filmed(device) -> None:
    robot = SimRobot(make_task("whack"))
    film = Film(robot, device.reset(4))
    shot = device.capture()
    film.keep(shot.qpos, shot.mocap_pos, shot.mocap_quat)
    robot.reset(4)
    film.capture()
    for far, near in zip(*film._states, strict=True):
        np.testing.assert_allclose(far, near, atol=1e-3)


def test_killed_it_is_missed_and_can_be_started_again_beside_another(device) -> None:
    first = SimDevice("intercept").__enter__()
    assert first.reset(0).startswith("block")
    joints = SimJoints(first.segment, silent_ns=200_000_000)
    os.kill(first.pid, signal.SIGKILL)
    with pytest.raises(OnsetError, match="ended with -9"):
        first.reset(1)
    with SimDevice("intercept", first.segment) as second:
        assert second.reset(0).startswith("block")
        assert device.reset(0).startswith("hit")
        with pytest.raises(OnsetError, match=r"state\.age"):
            joints.read_state()
        with pytest.raises(OnsetError, match="already_open"):
            SimDevice("intercept", first.segment).__enter__()
        first.close()  # takes nothing away that is the second's
        with attach(first.segment) as client:
            assert client.pid == second.pid != first.pid
        os.kill(second.pid, signal.SIGTERM)
        assert second._process.wait(5) == 0
        assert is_gone(first.segment)
    joints.close()


def test_a_device_that_cannot_start_says_why() -> None:
    with pytest.raises(OnsetError, match="pick_place"):
        SimDevice("juggle").__enter__()
