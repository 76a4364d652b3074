from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from controller.errors import ErrorCode, OnsetError
from controller.speedup import VelocityLimits, limit_step, speed_up, velocity_limits
from controller.types import ActionKind, Dimension
from tests.controller.helpers import MS, ROBOT

ABSOLUTE = Dimension("pan.pos", "rad", -2.0, 2.0)
DELTA = replace(ABSOLUTE, name="lift.pos", kind=ActionKind.DELTA_PREVIOUS)
FROM_STATE = replace(ABSOLUTE, name="roll.pos", kind=ActionKind.DELTA_STATE)
GRIPPER = Dimension("grip.pos", "1", 0.0, 1.0)
ALL = (ABSOLUTE, DELTA, FROM_STATE, GRIPPER)

# Whole numbers, whose float32 sums are exact.
chunks = st.integers(0, 40).flatmap(
    lambda n: arrays(np.float32, (n, len(ALL)), elements=st.integers(-1000, 1000).map(float))
)
# Sixteenths, so that what is asked of a limit is exact too.
sixteenths = st.integers(-64, 64).map(lambda n: n / 16)


def test_each_kind_by_hand_with_an_incomplete_group():
    column = np.array([1, 2, 4, 8, 16], np.float32)
    actions = np.stack([column] * 4, axis=1)
    assert speed_up(actions, 2, ALL).tolist() == [[2, 3, 2, 2], [8, 12, 8, 8], [16, 16, 16, 16]]


def test_a_gripper_keeps_its_last_value_whatever_its_kind():
    gripper = replace(GRIPPER, kind=ActionKind.DELTA_PREVIOUS)
    assert speed_up(np.array([[1.0], [0.0], [1.0]], np.float32), 3, [gripper]).tolist() == [[1.0]]


@given(actions=chunks)
def test_one_by_one_nothing_changes(actions):
    np.testing.assert_array_equal(speed_up(actions, 1, ALL), actions)


@given(actions=chunks, q=st.integers(1, 45))
def test_the_way_and_the_end_are_kept(actions, q):
    merged = speed_up(actions, q, ALL)
    assert merged.dtype == np.float32
    assert merged.shape == (-(-len(actions) // q), len(ALL))
    assert merged[:, 1].sum() == actions[:, 1].sum()
    np.testing.assert_array_equal(merged[-1:, [0, 2, 3]], actions[-1:, [0, 2, 3]])


@given(actions=chunks, q=st.integers(1, 45))
def test_a_delta_arm_passes_through_the_positions_of_an_absolute_one(actions, q):
    actions[:, 0] = np.cumsum(actions[:, 1])
    merged = speed_up(actions, q, ALL)
    np.testing.assert_array_equal(np.cumsum(merged[:, 1]), merged[:, 0])


@given(actions=chunks, q=st.integers(1, 8))
def test_groups_are_counted_from_the_first_action(actions, q):
    """What comes behind a whole number of groups does not shift those before it."""
    merged = speed_up(actions, q, ALL)
    whole = len(actions) // q
    np.testing.assert_array_equal(speed_up(actions[: whole * q], q, ALL), merged[:whole])
    for group in range(whole):
        alone = speed_up(actions[group * q : (group + 1) * q], q, ALL)
        np.testing.assert_array_equal(alone, merged[group : group + 1])


def test_the_chunk_given_is_not_changed():
    actions = np.ones((5, 4), np.float32)
    speed_up(actions, 1, ALL)[:] = 7
    speed_up(actions, 2, ALL)[:] = 7
    assert (actions == 1).all()


@pytest.mark.parametrize(
    ("actions", "q", "code"),
    [
        (np.zeros((4, 4)), 0, ErrorCode.BAD_VALUE),
        (np.zeros((4, 3)), 2, ErrorCode.BAD_SHAPE),
        (np.full((4, 4), np.nan), 2, ErrorCode.NON_FINITE),
    ],
)
def test_a_bad_chunk_or_factor_is_refused(actions, q, code):
    with pytest.raises(OnsetError) as caught:
        speed_up(actions, q, ALL)
    assert caught.value.code is code


def test_limits_are_those_of_the_velocity_with_the_joints_name():
    limits = velocity_limits(ROBOT)
    assert limits.lower.tolist() == [-9.0, -np.inf]
    assert limits.upper.tolist() == [9.0, np.inf]


def test_a_gripper_has_its_velocity_limit_too():
    state = (*ROBOT.state, Dimension("grip.vel", "1/s", -3.0, 4.0))
    limits = velocity_limits(replace(ROBOT, state=state))
    assert (limits.lower.tolist(), limits.upper.tolist()) == ([-9.0, -3.0], [9.0, 4.0])


@pytest.mark.parametrize(
    "velocity",
    [Dimension("grip.vel", "rad/s", -3.0, 3.0), Dimension("grip.vel", "1/s", 1.0, 3.0)],
)
def test_a_velocity_in_other_units_or_without_rest_is_refused(velocity):
    with pytest.raises(OnsetError, match="grip.vel"):
        velocity_limits(replace(ROBOT, state=(*ROBOT.state, velocity)))


def test_a_step_is_cut_by_hand():
    limits = velocity_limits(ROBOT)  # 9 rad/s for 40 ms: 0.36 rad
    start = np.array([1.0, 0.0], np.float32)
    reached, limited = limit_step(start, np.array([0.0, 1.0], np.float32), limits, 40 * MS)
    np.testing.assert_allclose(reached, [0.64, 1.0], rtol=1e-6)
    assert limited
    near = np.array([1.3, 1.0], np.float32)
    reached, limited = limit_step(start, near, limits, 40 * MS)
    np.testing.assert_array_equal(reached, near)
    assert not limited
    # Half the time, half the way.
    assert limit_step(start, near, limits, 20 * MS)[0][0] == pytest.approx(1.18)


@given(
    start=arrays(np.float32, 3, elements=sixteenths),
    actions=arrays(np.float32, (12, 3), elements=sixteenths),
    limits=arrays(np.float32, (2, 3), elements=st.integers(0, 64).map(lambda n: n / 16)),
    duration_ns=st.sampled_from([MS, 10 * MS, 40 * MS, 1000 * MS]),
)
def test_no_step_is_faster_than_its_limit_and_only_faster_ones_are_cut(
    start, actions, limits, duration_ns
):
    allowed = VelocityLimits(-limits[0], limits[1])
    seconds = duration_ns * 1e-9
    for action in actions:
        reached, limited = limit_step(start, action, allowed, duration_ns)
        assert reached.dtype == np.float32
        change = reached.astype(float) - start
        assert (change <= limits[1] * seconds + 1e-6).all()
        assert (change >= -limits[0] * seconds - 1e-6).all()
        # It is never past the action, and only a limit keeps it from there.
        short = reached != action
        assert limited == short.any()
        assert (np.sign(change) * np.sign(action - reached) >= 0).all()
        bound = np.where(action > start, limits[1], -limits[0]) * seconds
        np.testing.assert_allclose(change[short], bound[short], atol=1e-6)
        start = reached


@given(
    way=st.floats(-3, 3, width=32),
    speed=st.floats(0.5, 20, width=32),
)
def test_a_constant_target_is_reached_in_the_time_that_its_limit_takes(way, speed):
    """The limit of each step begins where the step before has ended."""
    limits = VelocityLimits(np.array([-speed], np.float32), np.array([speed], np.float32))
    position, target = np.zeros(1, np.float32), np.array([way], np.float32)
    needed = int(np.ceil(abs(way) / (speed * 0.04) * (1 + 1e-5)))
    for _ in range(needed):
        position, _ = limit_step(position, target, limits, 40 * MS)
    np.testing.assert_allclose(position, target, atol=1e-5)


def test_a_step_without_time_is_refused():
    with pytest.raises(OnsetError, match="duration_ns"):
        limit_step(np.zeros(2), np.zeros(2), velocity_limits(ROBOT), 0)
