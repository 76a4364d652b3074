"""Unit maps and the velocity estimate: no lerobot needed."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.errors import OnsetError
from controller.robots.lerobot_velocity import VelocityFilter
from controller.robots.units import JointUnit, LeRobotUnit, UnitMap
from controller.types import Dimension

PAN = Dimension("pan.pos", "rad", -1.5, 1.5)
GRIP = Dimension("grip.pos", "1", 0.0, 1.0)
BASE = Dimension("x.vel", "m/s", -1.0, 1.0)

PAIRS = st.one_of(
    st.tuples(
        st.just(PAN),
        st.builds(
            JointUnit,
            st.sampled_from(LeRobotUnit),
            st.floats(1.6, 3.2),
            st.floats(-1.0, 1.0),
            st.booleans(),
        ),
    ),
    st.tuples(
        st.just(GRIP),
        st.builds(
            JointUnit,
            st.sampled_from([LeRobotUnit.SHARE, LeRobotUnit.SIGNED_SHARE]),
            st.none(),
            st.just(0.0),
            st.booleans(),
        ),
    ),
)


@given(st.lists(st.tuples(PAIRS, st.floats(0, 1)), min_size=1, max_size=8))
def test_there_and_back_is_the_same(rows):
    dimensions = [d for (d, _), _ in rows]
    units = UnitMap(dimensions, [u for (_, u), _ in rows])
    ours = np.array([d.lower + share * (d.upper - d.lower) for (d, _), share in rows])
    back = units.from_lerobot(units.to_lerobot(ours))
    np.testing.assert_allclose(back, ours, atol=1e-6)


@pytest.mark.parametrize(
    ("dimension", "unit", "theirs", "ours"),
    [
        (PAN, JointUnit(LeRobotUnit.DEGREES), 90, math.pi / 2),
        (PAN, JointUnit(LeRobotUnit.DEGREES, zero=0.25, reverse=True), 90, 0.25 - math.pi / 2),
        (PAN, JointUnit(LeRobotUnit.SIGNED_SHARE, 2.0, zero=0.5), 50, 1.5),
        (PAN, JointUnit(LeRobotUnit.SIGNED_SHARE, 2.0, reverse=True), 50, -1.0),
        (PAN, JointUnit(LeRobotUnit.SHARE, 2.0), 0, -2.0),
        (PAN, JointUnit(LeRobotUnit.SHARE, 2.0, reverse=True), 0, 2.0),
        (GRIP, JointUnit(LeRobotUnit.SHARE), 25, 0.25),
        (GRIP, JointUnit(LeRobotUnit.SHARE, reverse=True), 25, 0.75),
        (GRIP, JointUnit(LeRobotUnit.SIGNED_SHARE), -100, 0.0),
        (BASE, JointUnit(LeRobotUnit.SAME), 0.3, 0.3),
    ],
)
def test_known_values(dimension, unit, theirs, ours):
    assert UnitMap([dimension], [unit]).from_lerobot([theirs]) == pytest.approx([ours])


@pytest.mark.parametrize(
    ("dimension", "unit"),
    [
        (GRIP, JointUnit(LeRobotUnit.DEGREES)),
        (BASE, JointUnit(LeRobotUnit.DEGREES)),
        (PAN, JointUnit(LeRobotUnit.SIGNED_SHARE)),
        (PAN, JointUnit(LeRobotUnit.DEGREES, zero=math.nan)),
        (PAN, JointUnit(LeRobotUnit.DEGREES, half_range=0.0)),
    ],
)
def test_what_cannot_be_converted_is_refused_by_name(dimension, unit):
    with pytest.raises(OnsetError, match=dimension.name):
        UnitMap([dimension], [unit])


def test_limits_beyond_the_calibrated_range_are_refused_by_name():
    units = UnitMap(
        [GRIP, PAN], [JointUnit(LeRobotUnit.SHARE), JointUnit(LeRobotUnit.DEGREES, 1.4)]
    )
    with pytest.raises(OnsetError, match=r"pan\.pos.*-1\.4000, 1\.4000.*narrow"):
        units.check_limits([GRIP, PAN])
    units.check_limits([GRIP, Dimension("pan.pos", "rad", -1.4, 1.4)])


def test_a_constant_rate_is_followed_and_noise_is_not():
    ms = 1_000_000
    slow, plain = VelocityFilter(50 * ms), VelocityFilter(0)
    rng = np.random.default_rng(0)
    seen = []
    for i in range(100):
        position = np.array([0.5 * i * 0.01 + rng.choice([0.0, 0.0015])])
        seen.append((slow.update(i * 10 * ms, position)[0], plain.update(i * 10 * ms, position)[0]))
    rates = np.array(seen[50:])
    assert np.abs(rates[:, 0] - 0.5).max() < 0.12
    assert rates[:, 0].std() < 0.4 * rates[:, 1].std()
    assert slow.update(99 * 10 * ms, np.array([9.0])) == rates[-1, 0]  # the same instant again
    slow.reset()
    assert slow.update(200 * 10 * ms, np.array([9.0])) == 0
