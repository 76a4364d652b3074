"""Chunks at a multiple of their speed in the loop: half the steps, one phase, kept limits."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from controller.errors import OnsetError
from controller.loop_types import TickCode
from controller.speedup import speed_up, speed_up_slice
from controller.strategy import STRATEGIES
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
    """Unless asked for the limit is for what the factor adds: the rest is the robot's to judge."""
    rig = Rig(replace(FAST, speedup=1), robot=ROBOT)
    rig.link.chunk = lambda observation: replace(
        numbered(observation), actions=np.tile(np.array([[2, 0], [-2, 0]], np.float32), (4, 1))
    )
    assert [float(r.set_point[0]) for r in rig.run(4)] == [2, -2, 2, -2]
    assert rig.loop.counters.clamped == 0


@settings(max_examples=40, deadline=None)
@given(
    actions=arrays(np.float32, (24, 24, 2), elements=st.floats(-2, 2, width=32)),
    latency=st.integers(0, 9),
)
def test_on_request_the_limit_is_kept_at_its_own_speed_too(actions: Float, latency):
    config = replace(CONFIG, keep_velocity=True, execute_steps=2)
    rig = Rig(config, robot=ROBOT, latency_ns=latency * 10 * MS)
    rig.link.chunk = lambda observation: replace(
        numbered(observation, 0, 24), actions=actions[observation.id]
    )
    points = np.array([np.zeros(2), *(r.set_point for r in rig.run(40))])
    assert np.abs(np.diff(points[:, 0])).max() <= 9.0 * 0.01 + 1e-5


def test_a_step_that_is_too_long_is_cut_on_request_and_counted():
    rig = Rig(replace(FAST, keep_velocity=True), robot=ROBOT)
    rig.link.chunk = lambda observation: replace(
        numbered(observation), actions=np.tile(np.array([[2, 0], [-2, 1]], np.float32), (4, 1))
    )
    results = rig.run(4)
    # 9 rad/s for 40 ms; the gripper's rate is not in the state, and so has no limit.
    np.testing.assert_allclose([r.set_point for r in results], [[0.36, 0], [0, 1]] * 2, atol=1e-6)
    assert rig.loop.counters.clamped == 4


# ---- behind actions that a chunk continues


@pytest.mark.parametrize("strategy", ["rtc", "rtc_identity"])
def test_what_is_guided_by_the_old_chunk_is_not_sped_up(strategy):
    """The old chunk's actions are the robot's steps by then, and no longer the policy's."""
    with pytest.raises(OnsetError, match=r"config.speedup: given 2; allowed: 1\.\.1"):
        replace(TWICE, strategy=strategy)


def ramp_rig(strategy: str, q: int, delay: int, latency: int) -> Rig:
    """A policy that goes on by one each step from the state, or the action, that it begins at."""
    way = STRATEGIES[strategy]
    config = replace(FAST, strategy=strategy, delay_steps=delay, speedup=q)
    rig = Rig(config, latency_ns=latency * STEP, forecaster=Exact() if way.late else None)

    def chunk(observation: Observation) -> ActionSlice:
        start = way.start(observation.delay)
        given = observation.committed[start:] if way.committed else observation.committed[:0]
        state = observation.state if start == 0 else observation.forecast
        assert state is not None
        last = given[-1] if len(given) else state[:2]
        index = np.arange(12 * q)
        first = observation.step + start
        actions = (last + (index[:, None] + 1) * np.ones(2)).astype(np.float32)
        return ActionSlice(observation.id, first, first + len(given) + index, actions, final=True)

    rig.link.chunk = chunk
    return rig


class Exact:
    """A forecaster for a robot that is at once where it is told to be."""

    def forecast(self, state: Float, set_point: Float, actions: Float) -> Float:
        out = state.copy()
        if len(actions):
            out[:2] = actions[-1]
        return out


@pytest.mark.parametrize("strategy", ["prefix", "forecast", "onset"])
@pytest.mark.parametrize(("delay", "latency"), [(0, 0), (1, 1), (3, 3), (4, 4), (3, 1), (4, 0)])
@pytest.mark.parametrize("q", [1, 2, 3])
def test_at_a_multiple_of_its_speed_a_chunk_goes_on_without_a_seam(strategy, delay, latency, q):
    """Neither a group of its own for what it continues, nor a step at the policy's speed."""
    results = ramp_rig(strategy, q, delay, latency).run(40)
    owners = [r.observation_id for r in results]
    assert owners == sorted(owners)
    assert len(set(owners) - {-1}) >= 9
    moved = np.diff([r.set_point[0] for r in results])[delay + 4 :]
    np.testing.assert_allclose(moved, q, atol=1e-4)


@given(
    horizon=st.integers(1, 20),
    continued=st.integers(0, 5),
    q=st.integers(1, 6),
    cuts=st.sets(st.integers(1, 19)),
)
def test_groups_are_counted_behind_what_is_continued(horizon, continued, q, cuts):
    whole = numbered(observation(step=100), continued, horizon)
    whole = replace(whole, start_step=100)  # the first ones are not sent back
    edges = sorted(c for c in cuts if c < horizon)
    pieces = [speed_up_slice(p, q, continued) for p in cut(whole, edges)]
    steps = np.concatenate([p.steps for p in pieces])
    full = horizon // q
    np.testing.assert_array_equal(steps, 100 + continued + np.arange(full))
    actions = np.concatenate([p.actions for p in pieces])
    np.testing.assert_array_equal(actions[:, 1], q * np.arange(full) + q - 1)


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
