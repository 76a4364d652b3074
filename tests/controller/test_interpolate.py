import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from controller.interpolate import set_point
from tests.controller.helpers import MS

START = np.array([0.0, 1.0], np.float32)
ACTION = np.array([1.0, -1.0], np.float32)


def test_the_last_tick_of_a_step_writes_its_action():
    points = [set_point(START, ACTION, t * MS, 10 * MS, 40 * MS) for t in (0, 10, 20, 30)]
    expected = [[0.25, 0.5], [0.5, 0.0], [0.75, -0.5], [1.0, -1.0]]
    np.testing.assert_allclose(points, expected, atol=1e-6)
    assert points[-1].tolist() == ACTION.tolist()


def test_one_tick_per_step_writes_the_action_whole():
    assert set_point(START, ACTION, 0, 40 * MS, 40 * MS).tolist() == ACTION.tolist()


@given(st.integers(0, 100), st.integers(0, 100))
def test_it_never_leaves_the_line_and_never_goes_back(first, second):
    early, late = sorted((first, second))
    a = set_point(START, ACTION, early * MS, 10 * MS, 40 * MS)
    b = set_point(START, ACTION, late * MS, 10 * MS, 40 * MS)
    assert 0 <= a[0] <= b[0] <= 1
