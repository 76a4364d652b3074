"""The executor at work: joints that fail, words, clients that go, and what stands in the rings."""

from __future__ import annotations

import gc
import itertools
import os
import time

import numpy as np
import pytest

from controller.errors import OnsetError
from controller.executor_loop import LoopSettings
from controller.record import record_dtype
from controller.watchdog import LadderConfig, Mode, Reason
from tests.controller.executor_fakes import TICK, Bench, plan_of
from tests.controller.helpers import MS

RUNNING, COASTING, DECELERATING, HOLDING, FAULT = Mode
PARK = (-0.8, 1.0, 0.0)
_number = itertools.count()


@pytest.fixture
def make():
    """Makes benches whose segments are removed in the end."""
    made: list[Bench] = []

    def start(*, begin: bool = True, **settings) -> Bench:
        made.append(Bench(f"t-loop-{os.getpid() % 10**6}-{next(_number)}", **settings))
        if begin:
            made[-1].loop.start(made[-1].clock.now_ns())
        return made[-1]

    yield start
    for bench in made:
        bench.__exit__()


def glide(bench: Bench, steps: int = 100, **more) -> None:
    """Gives it a plan that moves the pan by 1 rad/s, and is fresh for long."""
    pan = 0.04 * np.arange(1, steps + 1)
    rows = np.column_stack([pan, 0 * pan, 0 * pan + 0.5])
    bench.publish(plan_of(rows, renewed_ns=bench.clock.now_ns() + 10**10), **more)


def mode(bench: Bench) -> Mode:
    return Mode(int(bench.state["mode"]))


def reason(bench: Bench) -> Reason:
    return Reason(int(bench.state["reason"]))


def test_it_stands_where_the_arm_is_until_there_is_a_plan(make):
    bench = make()
    assert bench.run(20)
    assert mode(bench) is HOLDING
    assert len(bench.joints.commands) == 20
    assert {tuple(c.position) for c in bench.joints.commands} == {(0.0, 0.0, 0.5)}
    assert bench.state["episode"] == -1
    assert bench.state["starved"] == 0
    glide(bench)
    bench.run(100)
    assert mode(bench) is RUNNING
    assert bench.joints.state[0] > 0.3


def test_an_arm_that_cannot_be_read_is_not_started(make):
    bench = make(begin=False)
    bench.joints.failing = {"read"}
    with pytest.raises(OnsetError, match="no answer"):
        bench.loop.start(bench.clock.now_ns())


@pytest.mark.parametrize("what", ["read", "write"])
def test_five_failures_one_after_the_other_are_a_fault(make, what):
    bench = make()
    glide(bench)
    bench.run(40)
    bench.events()
    bench.joints.failing = {what}
    for k in range(5):
        assert mode(bench) is RUNNING, k
        bench.tick()
    bench.tick()
    assert (mode(bench), reason(bench)) == (FAULT, Reason.ROBOT)
    said = bench.events()
    assert said.count("RUNNING -> FAULT: the robot does not answer") == 1
    assert any("no answer" in text for text in said)
    bench.run(60)
    assert np.abs(bench.state["velocity"]).max() == 0
    assert mode(bench) is FAULT


@pytest.mark.parametrize("what", ["read", "write"])
def test_failures_between_which_it_answers_are_none(make, what):
    bench = make()
    glide(bench)
    for k in range(60):
        bench.joints.failing = {what} if k % 5 else set()
        bench.tick()
    assert mode(bench) is RUNNING


def test_the_words_stop_the_arm_and_let_it_go(make):
    bench = make()
    glide(bench)
    bench.run(60)
    bench.raise_word("stop")
    bench.run(60)
    assert (mode(bench), reason(bench)) == (HOLDING, Reason.STOPPING)
    bench.raise_word("stop", 0)
    bench.run(10)
    assert mode(bench) is RUNNING
    bench.raise_word("estop")
    bench.run(60)
    assert (mode(bench), reason(bench)) == (FAULT, Reason.ESTOP)
    bench.raise_word("clear")
    bench.run(5)
    assert mode(bench) is FAULT  # not while the stop is pressed
    assert any("without emergency stop" in text for text in bench.events())
    bench.raise_word("estop", 0)
    bench.run(5)
    assert mode(bench) is FAULT  # not by itself
    bench.joints.state[:3] = [0.2, 0.1, 0.5]
    bench.joints.frozen = True
    bench.publish(plan_of(np.zeros((0, 3)), version=2))
    bench.raise_word("clear", 2)
    bench.run(2)
    assert mode(bench) is HOLDING
    np.testing.assert_allclose(bench.state["command"], [0.2, 0.1, 0.5], atol=1e-6)
    assert any("FAULT -> HOLDING" in text for text in bench.events())


def test_clear_begins_where_the_arm_is_now_and_not_where_it_was_read_last(make):
    bench = make(settings=LoopSettings(TICK, read_every=1000))
    bench.raise_word("estop")
    bench.run(5)
    bench.raise_word("estop", 0)
    bench.joints.frozen = True
    bench.joints.state[:3] = [0.2, 0.1, 0.4]
    bench.joints.failing = {"read"}
    bench.raise_word("clear", 1)
    bench.tick()
    assert mode(bench) is FAULT
    assert any("where the arm can be read" in text for text in bench.events())
    bench.joints.failing = set()
    bench.raise_word("clear", 2)
    bench.tick()
    assert mode(bench) is HOLDING
    np.testing.assert_allclose(bench.state["command"], [0.2, 0.1, 0.4], atol=1e-6)


def test_joints_that_fail_for_long_do_not_fill_the_record_with_it(make):
    bench = make()
    bench.joints.failing = {"read", "write"}
    bench.run(250)
    said = bench.events()
    assert len(said) < 20
    assert sum("FAULT" in text for text in said) == 1
    # And where they answer again, the fault stays; cleared, the arm goes on.
    bench.joints.failing = set()
    bench.run(20)
    assert (mode(bench), reason(bench)) == (FAULT, Reason.ROBOT)
    bench.raise_word("clear")
    glide(bench)
    bench.run(20)
    assert mode(bench) is RUNNING


def test_clear_does_nothing_to_an_arm_that_moves(make):
    bench = make()
    glide(bench)
    bench.run(60)
    bench.joints.frozen = True  # and so is not measured where it is commanded
    bench.run(4)
    before = bench.state["command"].copy()
    bench.raise_word("clear")
    bench.tick()
    assert np.abs(bench.state["command"] - before).max() < 0.01
    assert mode(bench) is RUNNING


def test_quit_stops_the_arm_and_ends(make):
    bench = make()
    glide(bench)
    bench.run(60)
    bench.raise_word("quit")
    assert not bench.run(60)
    assert mode(bench) is HOLDING
    assert np.abs(bench.state["velocity"]).max() == 0
    assert not bench.loop.parked
    assert not bench.loop.orphaned


def test_quit_parks_the_arm_where_there_is_a_pose_for_it(make):
    bench = make(park=PARK)
    glide(bench)
    bench.run(60)
    bench.loop.stop()
    assert not bench.run(2000)
    assert bench.loop.parked
    np.testing.assert_allclose(bench.joints.state[:3], PARK, atol=1e-5)
    assert sum("parking" in text for text in bench.events()) == 1
    records = bench.records()
    rest = records["mode"][-20:]
    assert set(rest) == {HOLDING}
    velocity = np.abs(np.diff(records["command"], axis=0)).max(axis=0) / 0.005
    assert (velocity <= bench.limits.velocity).all()
    acceleration = np.abs(np.diff(records["command"], n=2, axis=0)).max(axis=0) / 0.005**2
    assert (acceleration <= bench.limits.acceleration * (1 + 1e-6)).all()


def test_an_arm_that_is_parked_already_ends_soon(make):
    bench = make(park=(0.0, 0.0, 0.5))
    bench.run(5)
    bench.raise_word("quit")
    assert not bench.run(10)
    assert bench.loop.parked


def test_quit_in_a_fault_holds_where_it_is(make):
    bench = make(park=PARK)
    glide(bench)
    bench.run(60)
    bench.raise_word("estop")
    bench.raise_word("quit")
    assert not bench.run(60)
    assert mode(bench) is FAULT
    assert not bench.loop.parked


def test_an_emergency_stop_ends_the_way_to_the_park_pose(make):
    bench = make(park=PARK)
    bench.raise_word("quit")
    bench.run(100)
    assert np.abs(bench.state["velocity"]).max() > 0
    bench.raise_word("estop")
    assert not bench.run(60)
    assert mode(bench) is FAULT
    assert np.abs(bench.state["velocity"]).max() == 0


def test_without_a_client_it_stops_for_good(make):
    bench = make(settings=LoopSettings(TICK, orphan_ns=200 * MS))
    glide(bench)
    for _ in range(60):
        bench.raise_word("client_ns", bench.clock.now_ns())
        assert bench.tick()
    assert mode(bench) is RUNNING
    assert bench.run(40)  # 200 ms
    assert not bench.loop.orphaned
    assert not bench.run(60)
    assert bench.loop.orphaned
    assert sum("no client" in text for text in bench.events()) == 1
    assert mode(bench) is HOLDING


def test_it_holds_for_ever_where_it_is_told_to(make):
    bench = make(settings=LoopSettings(TICK, orphan_ns=None))
    bench.raise_word("client_ns", 1)
    assert bench.run(300)
    assert not bench.loop.orphaned


def test_an_arm_put_elsewhere_is_read_before_the_episode_begins(make):
    bench = make(settings=LoopSettings(TICK, read_every=1000))
    bench.run(20)
    bench.joints.state[:3] = [0.7, -0.4, 0.2]
    bench.joints.frozen = True
    bench.publish(plan_of(np.zeros((0, 3))), episode=1, placed=True)
    reads = bench.joints.reads
    bench.tick()
    assert bench.joints.reads == reads + 1
    np.testing.assert_allclose(bench.state["command"], [0.7, -0.4, 0.2], atol=1e-6)
    assert (bench.state["episode"], bench.state["step"], bench.state["starved"]) == (1, 0, 1)
    assert "the arm was put elsewhere" in bench.events()
    bench.run(30)
    assert bench.joints.reads == reads + 1  # for each episode once
    # Not put elsewhere, the next one goes on from the command.
    bench.joints.state[:3] = [0.0, 0.0, 0.0]
    bench.publish(plan_of(np.zeros((0, 3))), episode=2)
    bench.tick()
    np.testing.assert_allclose(bench.state["command"], [0.7, -0.4, 0.2], atol=1e-6)
    assert bench.joints.reads == reads + 1


def test_joints_are_read_as_often_as_told(make):
    bench = make(settings=LoopSettings(TICK, read_every=4))
    reads = bench.joints.reads
    bench.run(40)
    assert bench.joints.reads - reads == 10


def test_a_record_says_all_of_a_tick(make):
    bench = make()
    glide(bench, episode=3, round_trip_ns=77)
    begin_ns = bench.clock.now_ns()
    bench.run(50)
    bench.tick(late_ns=123_456, missed=2)
    records = bench.records()
    assert records.dtype == record_dtype(3, 4)
    assert records["tick"].tolist() == list(range(1, 52))
    np.testing.assert_array_equal(records["time_ns"], begin_ns + TICK * np.arange(51))
    np.testing.assert_array_equal(records["step"], np.arange(51) // 8)
    assert set(records["episode"]) == {3}
    assert set(records["round_trip_ns"]) == {77}
    assert set(records["observation_id"]) == {7}
    assert set(records["mode"]) == {RUNNING}
    assert set(records["reason"]) == {Reason.NONE}
    assert set(records["refused"]) == set(records["clamped"]) == {0}
    last = records[-1]
    assert last["late_ns"] == 123_456
    assert last["busy_ns"] == 0  # virtual time stands still within a tick
    assert bench.state["missed"] == 2
    np.testing.assert_allclose(records["desired"][:, 0], 0.04 * (records["step"] + 1), atol=1e-6)
    written = [c.position for c in bench.joints.commands]
    np.testing.assert_array_equal(records["command"], written)
    np.testing.assert_allclose(records["measured"][1:, :3], records["command"][:-1], atol=1e-6)
    speed = np.diff(records["velocity"], axis=0) / 0.005
    np.testing.assert_allclose(
        (records["acceleration"][1:] + records["acceleration"][:-1]) / 2, speed, atol=1e-6
    )
    assert np.isfinite(records["target"]).all()


def test_a_record_says_what_there_was_not(make):
    bench = make()
    bench.tick()
    rows = np.array([[0.1, np.nan, 0.5], [5.0, 0.0, 0.5]])
    bench.publish(plan_of(rows, renewed_ns=bench.clock.now_ns()))
    bench.run(16)
    records = bench.records()
    assert records["age_ns"][:2].tolist() == [-1, 0]
    assert records["round_trip_ns"][0] == -1
    assert records["episode"][:2].tolist() == [-1, 0]
    assert np.isnan(records["desired"][0]).all()
    refused, cut = records[1:9], records[9:]
    assert set(refused["refused"]) == {1}
    assert set(refused["reason"]) == {Reason.ACTION_REFUSED}
    assert set(refused["observation_id"]) == {-1}
    assert set(cut["clamped"] & 1) == {1}
    assert set(cut["observation_id"]) == {7}


def test_the_age_of_a_plan_that_came_after_the_tick_was_due_is_not_unknown(make):
    bench = make()
    bench.publish(plan_of(np.zeros((5, 3)), renewed_ns=bench.clock.now_ns() + 1))
    bench.tick()
    assert bench.records()["age_ns"][0] >= 0


def test_changes_of_mode_are_told_in_order(make):
    bench = make(ladder=LadderConfig(fresh_ns=100 * MS))
    pan = np.linspace(0.02, 0.4, 20)
    rows = np.column_stack([pan, 0 * pan, 0 * pan + 0.5])
    bench.publish(plan_of(rows, renewed_ns=bench.clock.now_ns()))
    bench.run(260)
    said = [text.split(":")[0] for text in bench.events() if " -> " in text]
    assert said == [
        "HOLDING -> RUNNING",
        "RUNNING -> COASTING",
        "COASTING -> DECELERATING",
        "DECELERATING -> HOLDING",
    ]
    assert bench.state["starved"] == 13  # of 33 steps the first 20 had an action


def test_a_tick_is_cheap(make):
    """In the median; what a busy machine adds is not the tick's."""
    bench = make()
    glide(bench, steps=120)
    bench.run(20)
    costs = []
    gc.disable()
    try:
        for _ in range(800):
            began = time.perf_counter_ns()
            bench.tick()
            costs.append(time.perf_counter_ns() - began)
    finally:
        gc.enable()
    assert np.median(costs) < 1_000_000
