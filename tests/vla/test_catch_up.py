"""A chunk that turns elsewhere than the old plan begins with its observation.

step                     k  k+1  k+2 | k+3  k+4  k+5
committed, planned       a   a    a  | p    p    p        d = 3
the same way                         | 0    1    2  ...   from the forecast
elsewhere                0   1    2  | 3    4    5  ...   from the measured state
"""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from controller.strategy import STRATEGIES
from tests.vla.helpers import (
    HORIZON,
    MS,
    PROMPTS,
    ROBOT,
    LocalServer,
    chunk_of,
    link_to,
    tiny_normaliser,
)
from tests.vla.helpers import observation as base
from vla.catch_up import ELSEWHERE, STILL, Paced, at_once, can_catch_up, turns
from vla.chunking import ChunkMemory
from vla.engine import Engine
from vla.schedule import AVERAGE, SCHEDULES

D = 3
ONSET = STRATEGIES["onset"]
SCALES = tiny_normaliser()
STATE = np.array([0.9, 0.1, -0.4], np.float32)
HERE = np.array([0.3, 0.6], np.float32)
STD = SCALES.chunk_std.numpy()


def seen(*moves: tuple[float, float], **changes):
    """An observation whose old plan leaves ``HERE`` by these moves, one a step."""
    planned = HERE + np.array(moves, np.float32).reshape(-1, 2)
    committed = np.tile(HERE, (D, 1))
    told = {"delay": D, "committed": committed, "planned": planned, "forecast": STATE}
    return base(3, **({"set_point": HERE, **told} | changes))


def chunk_to(*move: float, at: int = D - 1) -> torch.Tensor:
    """A normalised chunk whose action of index ``at`` is this far from ``HERE``."""
    rows = np.tile(HERE, (1, HORIZON, 1))
    rows[0, at] += move
    return SCALES.chunk(torch.from_numpy(rows.astype(np.float32)), torch.from_numpy(STATE)[None])


# Whether it turns


def test_the_same_way_is_no_turn_and_the_opposite_one_is():
    asked = seen((0.2, 0.2), (0.5, 0.5), (1.0, 1.0))
    assert not turns(chunk_to(1.0, 1.0), asked, STATE, SCALES)
    assert turns(chunk_to(-1.0, -1.0), asked, STATE, SCALES)


def test_setting_off_and_stopping_are_turns():
    assert turns(chunk_to(1.0, 0.0), seen((0, 0), (0, 0), (0, 0)), STATE, SCALES)
    assert turns(chunk_to(0.0, 0.0), seen((0.3, 0), (0.7, 0), (1.0, 0)), STATE, SCALES)


def test_standing_still_is_none_whatever_the_noise():
    tiny = 0.9 * ELSEWHERE * STILL * STD[D - 1]
    asked = seen((0, 0), (0, 0), (0, 0))
    assert not turns(chunk_to(float(tiny[0]), 0.0), asked, STATE, SCALES)


@given(
    way=st.tuples(*[st.floats(-2, 2)] * 2),
    old=st.tuples(*[st.floats(-2, 2)] * 2),
    count=st.integers(1, D),
)
def test_ways_are_compared_in_the_policys_units_where_the_old_plan_ends(way, old, count):
    moves = [(0.0, 0.0)] * (count - 1) + [old]
    a, b = (np.array(w) / STD[count - 1] for w in (way, old))
    gap = np.linalg.norm(a - b)
    limit = ELSEWHERE * max(np.linalg.norm(a) + np.linalg.norm(b), STILL)
    if abs(gap - limit) > 1e-3:
        asked = seen(*moves)
        assert turns(chunk_to(*way, at=count - 1), asked, STATE, SCALES) == (gap > limit)


def test_without_an_old_plan_the_robot_would_stand_still():
    nothing = np.zeros((0, 2), np.float32)
    asked = seen(committed=nothing, planned=nothing)
    assert turns(chunk_to(1.0, 0.0), asked, STATE, SCALES)
    assert not turns(chunk_to(0.0, 0.0), asked, STATE, SCALES)


def test_it_is_asked_only_with_a_delay_and_where_the_old_plan_is_known():
    assert can_catch_up(seen(), D + 1)
    assert not can_catch_up(seen(), D)  # nothing of the chunk would be left
    assert not can_catch_up(seen(delay=0), HORIZON)
    assert not can_catch_up(seen(set_point=None), HORIZON)


def test_of_a_longer_plan_what_is_behind_another_delay_does_not_count():
    moves = [(0.2, 0.2), (0.5, 0.5), (1.0, 1.0)]
    asked = seen(*moves, *[(9.0, -9.0)] * HORIZON)
    assert not turns(chunk_to(1.0, 1.0), asked, STATE, SCALES)


# The engine


def whole(engine: Engine, asked, strategy=ONSET, memory=None):
    """Steps and actions of a chunk in order, its first step and how many expert steps it took."""
    parts = list(engine.stream(asked, PROMPTS[0], strategy, memory))
    steps = np.concatenate([p.steps for p in parts])
    order = np.argsort(steps)
    actions = np.concatenate([p.actions for p in parts])[order]
    return steps[order], actions, parts[0].start_step, parts[-1].expert_steps


def like(checkpoint, asked, change: float):
    """The observation with an old plan that goes as the late chunk will, or away from it."""
    late = whole(Engine(checkpoint), asked, STRATEGIES["forecast"])[1]
    planned = HERE + change * (late[:D] - HERE)
    return replace(asked, planned=planned.astype(np.float32))


@pytest.fixture
def moving(delayed):
    """A policy to which it matters where a chunk begins."""
    model = copy.deepcopy(delayed.model)
    torch.manual_seed(1)
    torch.nn.init.normal_(model.start.weight)
    return replace(delayed, model=model)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_chunk_that_goes_the_same_way_is_the_late_one(moving, schedule):
    engine, asked = Engine(moving, schedule=schedule), like(moving, seen(), 1.0)
    found, late = whole(engine, asked), whole(engine, asked, STRATEGIES["forecast"])
    np.testing.assert_array_equal(found[0], late[0])
    np.testing.assert_allclose(found[1], late[1], atol=1e-6)
    assert found[2] == late[2] == asked.step + D
    # What judges is the first step; with average velocities it is one more.
    assert found[3] == late[3] + (schedule in AVERAGE)


@pytest.mark.parametrize("schedule", ["constant", "one_step"])
def test_one_that_turns_begins_with_its_observation_and_is_used_from_the_delay_on(moving, schedule):
    engine, asked = Engine(moving, schedule=schedule), like(moving, seen(), -1.0)
    steps, actions, start, expert_steps = whole(engine, asked)
    now = whole(engine, asked, STRATEGIES["naive"])
    assert start == asked.step
    np.testing.assert_array_equal(steps, now[0][D:])
    np.testing.assert_allclose(actions, now[1][D:], atol=1e-6)
    assert expert_steps == now[3] + 1


def test_horizon_aware_its_first_used_action_is_finished_first(moving):
    asked = like(moving, seen(), -1.0)
    first = next(Engine(moving, schedule="has").stream(asked, PROMPTS[0], ONSET))
    assert (first.steps[0], first.expert_steps) == (asked.step + D, 2)


@pytest.mark.parametrize("executed", [1, 3, HORIZON])
def test_the_expert_stops_behind_what_is_executed(moving, executed):
    asked = like(moving, seen(), -1.0)
    steps = whole(Engine(moving, schedule="has", executed=executed), asked)[0]
    assert len(steps) >= min(executed, HORIZON - D)
    assert steps[0] == asked.step + D


def test_the_memory_keeps_no_action_whose_step_is_over(moving):
    memory, asked = ChunkMemory(None), like(moving, seen(), -1.0)
    steps, actions, *_ = whole(Engine(moving), asked, memory=memory)
    later = seen(step=asked.step + 1, committed=np.tile(HERE, (D - 1, 1)))
    known = memory.amend(later, 0).committed
    # What is executed until the chunk takes over is the robot's word.
    np.testing.assert_array_equal(known, [HERE, HERE, actions[0]])


def test_it_is_compared_with_the_chunk_that_is_under_way(moving):
    """The robot does not know of it yet; a turn that it makes already is none any more."""
    memory, asked = ChunkMemory(None), like(moving, seen(), -1.0)
    late = whole(Engine(moving), asked, STRATEGIES["forecast"])[1]
    under_way = np.concatenate([[HERE], late[:D]])
    memory.note(2, asked.step + D - 1 + np.arange(D + 1), under_way.astype(np.float32))
    assert whole(Engine(moving), asked)[2] == asked.step
    told = replace(asked, committed=asked.committed[: D - 1])  # its old chunk ends before
    assert whole(Engine(moving), told, memory=memory)[2] == asked.step + D


@pytest.mark.parametrize("change", [1.0, -1.0])
def test_over_the_wire_it_is_the_same(moving, change):
    asked = like(moving, seen(), change)
    with LocalServer(moving) as server, link_to(server, strategy="onset") as link:
        link.submit(asked)
        piece = chunk_of(link)
    steps, actions, start, _ = whole(Engine(moving), asked)
    assert piece.start_step == start
    np.testing.assert_array_equal(piece.steps, steps)
    np.testing.assert_allclose(piece.actions, actions, atol=1e-5)


def test_at_once_is_the_measured_state():
    asked = seen()
    made = at_once(asked)
    assert (made.start, made.prefix, made.unused) == (0, None, D)
    np.testing.assert_array_equal(made.state, asked.state)


# The pace


def with_pace(checkpoint, pace: float | None):
    return replace(checkpoint, meta=replace(checkpoint.meta, pace=pace))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_joint_catches_up_no_faster_than_the_pace_and_the_gripper_as_before(moving, schedule):
    asked, pace = like(moving, seen(), -1.0), 1.0  # 0.04 rad a step
    free = whole(Engine(moving, schedule=schedule), asked)
    paced = whole(Engine(with_pace(moving, pace), schedule=schedule), asked)
    np.testing.assert_array_equal(paced[0], free[0])
    np.testing.assert_array_equal(paced[1][:, 1], free[1][:, 1])
    at, expected = HERE[0], []
    for aim in free[1][:, 0]:
        at += np.clip(aim - at, -pace * 0.04, pace * 0.04)
        expected.append(at)
    np.testing.assert_allclose(paced[1][:, 0], expected, atol=1e-5)
    assert np.abs(paced[1][:, 0] - free[1][:, 0]).max() > 0.01


@pytest.mark.parametrize("strategy", ["naive", "forecast", "onset"])
def test_only_what_catches_up_is_paced(moving, strategy):
    """Ours is not where it goes the same way as the old plan."""
    asked = like(moving, seen(), 1.0)
    free, paced = (
        whole(Engine(with_pace(moving, pace)), asked, STRATEGIES[strategy]) for pace in (None, 0.1)
    )
    np.testing.assert_array_equal(free[1], paced[1])


def test_the_memory_knows_what_was_sent(moving):
    memory, asked = ChunkMemory(None), like(moving, seen(), -1.0)
    actions = whole(Engine(with_pace(moving, 1.0)), asked, memory=memory)[1]
    later = seen(step=asked.step + D, committed=np.tile(HERE, (D, 1)))
    np.testing.assert_array_equal(memory.amend(later, 0).committed, actions[:D])


JOINTS = replace(ROBOT, action=(*ROBOT.action, replace(ROBOT.action[0], name="lift.pos")))


@given(
    chunk=st.lists(st.tuples(*[st.floats(-3, 3)] * 3), min_size=1, max_size=12),
    cuts=st.sets(st.integers(1, 11)),
)
def test_whatever_the_slices_joints_go_straight_towards_the_chunk_at_the_pace(chunk, cuts):
    step = 0.5 * JOINTS.period_ns / (1000 * MS)
    rows, begin = np.array(chunk, np.float32), np.zeros(3, np.float32)
    paced = Paced(begin, JOINTS, 0.5)
    found = np.concatenate([paced.follow(part) for part in np.split(rows, sorted(cuts))])
    np.testing.assert_array_equal(found[:, 1], rows[:, 1])
    at = begin
    for row, sent in zip(rows, found, strict=True):
        way, done = (row - at)[[0, 2]], (sent - at)[[0, 2]]
        assert np.abs(done).max() <= step + 1e-6
        if np.abs(way).max() <= step:
            np.testing.assert_array_equal(sent, row)
        else:
            assert np.abs(done).max() == pytest.approx(step, abs=1e-6)
            np.testing.assert_allclose(done * np.abs(way).max(), way * step, atol=1e-5)
        at = sent
