"""Chunks at a multiple of their speed in the loop: half the steps, one phase, kept limits."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from controller.loop_types import TickCode
from controller.speedup import speed_up, speed_up_slice
from controller.types import ActionSlice, Float, Observation
from tests.controller.helpers import MS, ROBOT, WIDE, observation
from tests.controller.loop_fakes import CONFIG, FAST, Rig, numbered

STEP = WIDE.period_ns
TWICE = replace(FAST, speedup=2)


def cut(whole: ActionSlice, edges: list[int]) -> list[ActionSlice]:
    """One chunk in slices that end at these indices and at its own end."""
    ends = [0, *edges, len(whole.steps)]
    return [
        replace(
            whole, steps=whole.steps[a:b], actions=whole.actions[a:b], final=b == len(whole.steps)
        )
        for a, b in zip(ends, ends[1:], strict=False)
    ]


def test_a_chunk_is_executed_in_half_its_steps():
    rig = Rig(TWICE)
    rig.link.chunk = numbered
    points = [r.set_point.tolist() for r in rig.run(8)]
    assert points == [[0, 1], [0, 3], [0, 5], [0, 7], [1, 1], [1, 3], [1, 5], [1, 7]]
    assert rig.loop.counters.starved == 0


@pytest.mark.parametrize("execute_steps", [1, 2, 3, 5])
@pytest.mark.parametrize("latency", [0, 1, 2])
@pytest.mark.parametrize("q", [2, 3])
def test_the_phase_is_that_of_the_chunk_wherever_it_began(execute_steps, latency, q):
    rig = Rig(replace(FAST, speedup=q, execute_steps=execute_steps), latency_ns=latency * STEP)
    rig.link.chunk = lambda observation: numbered(observation, 0, 8 * q)
    results = rig.run(40)
    steps = {o.id: o.step for o in rig.link.sent}
    driven = [r for r in results if r.code is TickCode.RUNNING]
    assert len(driven) == 40 - latency
    for result in driven:
        owner, index = result.set_point.tolist()
        assert index == q * (result.step - steps[int(owner)]) + q - 1


def test_who_waits_begins_with_the_first_group():
    rig = Rig(replace(TWICE, strategy="sync"), latency_ns=3 * STEP)
    rig.link.chunk = numbered
    results = rig.run(11)
    indices = [int(r.set_point[1]) if r.code is TickCode.RUNNING else None for r in results]
    assert indices == [None, None, None, 1, 3, 5, 7, None, None, None, 1]


@settings(max_examples=60, deadline=None)
@given(
    actions=arrays(np.float32, (24, 24, 2), elements=st.floats(-2, 2, width=32)),
    latency=st.integers(0, 9),
    speedup=st.integers(2, 4),
)
def test_no_tick_moves_faster_than_the_joint_may_also_where_a_step_is_amended(
    actions: Float, latency, speedup
):
    rig = Rig(
        replace(CONFIG, speedup=speedup, execute_steps=2), robot=ROBOT, latency_ns=latency * 10 * MS
    )
    rig.link.chunk = lambda observation: replace(
        numbered(observation, 0, 24), actions=actions[observation.id]
    )
    results = rig.run(40)
    points = np.array([np.zeros(2), *(r.set_point for r in results)])
    most = 9.0 * 0.01  # [rad] in a tick: pan.vel is within 9 rad/s
    assert np.abs(np.diff(points[:, 0])).max() <= most + 1e-5
    assert (np.abs(np.diff(points[::4, 0])) <= 4 * most + 1e-5).all()
    # It goes towards what it is told, and says where it does not get there.
    for before, now, result in zip(points[3::4], points[4::4], results[3::4], strict=False):
        owner = result.observation_id
        if owner < 0:
            continue
        index = speedup * (result.step - rig.link.sent[owner].step) + speedup - 1
        target = np.clip(actions[owner][index], ROBOT.action_lower, ROBOT.action_upper)
        if not result.clamped:
            np.testing.assert_array_equal(now, target)
        else:
            assert np.abs(now[0] - target[0]) <= np.abs(before[0] - target[0]) + 1e-5


def test_at_its_own_speed_a_chunk_is_left_as_it_is():
    """The limit is for what the factor adds; the policy's own steps are the robot's to judge."""
    rig = Rig(replace(FAST, speedup=1), robot=ROBOT)
    rig.link.chunk = lambda observation: replace(
        numbered(observation), actions=np.tile(np.array([[2, 0], [-2, 0]], np.float32), (4, 1))
    )
    assert [float(r.set_point[0]) for r in rig.run(4)] == [2, -2, 2, -2]
    assert rig.loop.counters.clamped == 0


@given(
    horizon=st.integers(1, 20),
    start=st.integers(0, 9),
    q=st.integers(1, 6),
    cuts=st.sets(st.integers(1, 19)),
)
def test_slices_cut_anywhere_are_the_whole_chunk(horizon, start, q, cuts):
    whole = numbered(observation(step=100), start, horizon)
    pieces = [speed_up_slice(p, q) for p in cut(whole, sorted(c for c in cuts if c < horizon))]
    steps = np.concatenate([p.steps for p in pieces])
    actions = np.concatenate([p.actions for p in pieces])
    full = horizon // q  # an incomplete group at the end has no last action
    np.testing.assert_array_equal(steps, 100 + start + np.arange(full))
    np.testing.assert_array_equal(actions, speed_up(whole.actions, q, ROBOT.action)[:full])
    assert {p.start_step for p in pieces} == {100 + start}
    assert [p.final for p in pieces] == [False] * (len(pieces) - 1) + [True]


@settings(max_examples=60, deadline=None)
@given(
    cuts=st.lists(st.sets(st.integers(1, 11)), min_size=8, max_size=8),
    latency=st.integers(0, 12),
    execute_steps=st.integers(1, 6),
    strategy=st.sampled_from(["naive", "sync", "blend"]),
)
def test_the_robot_moves_the_same_however_chunks_are_cut(cuts, latency, execute_steps, strategy):
    config = replace(CONFIG, speedup=2, execute_steps=execute_steps, strategy=strategy)
    points = []
    for edges in (cuts, [set()] * 8):
        rig = Rig(config, latency_ns=latency * 10 * MS)

        def pieces(observation: Observation, edges=edges) -> list[ActionSlice]:
            return cut(numbered(observation, 0, 12), sorted(edges[observation.id % 8]))

        rig.link.pieces = pieces
        points.append([r.set_point.tolist() for r in rig.run(100)])
    assert points[0] == points[1]
