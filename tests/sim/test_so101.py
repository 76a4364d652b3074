"""The arm's kinematics: forward against physics, inverse against forward."""

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sim.env import SimRobot
from sim.robots import so101
from sim.tasks import make_task


@settings(max_examples=200, deadline=None)
@given(
    pan=st.floats(-1.8, 1.8),
    lift=st.floats(-1.2, 1.2),
    elbow=st.floats(-1.15, 1.6),
    wrist=st.floats(-1.6, 1.6),
)
def test_inverse_undoes_forward(pan, lift, elbow, wrist):
    joints = np.array([pan, lift, elbow, wrist])
    x, y, z, pitch = so101.forward(joints)
    radius = np.cos(pan) * (x - so101.PAN_X) + np.sin(pan) * y
    at_wrist = radius - so101.HAND * np.cos(pitch) - so101.SHOULDER[0]
    # Behind its own axis the arm has another way to reach the same point.
    assume(radius > 0.01 and at_wrist > 0.01)
    np.testing.assert_allclose(so101.inverse(np.array([x, y, z, pitch])), joints, atol=1e-6)


def test_forward_is_where_physics_has_the_tip():
    robot = SimRobot(make_task("whack"))
    rng = np.random.default_rng(0)
    for _ in range(20):
        robot.reset(0)
        robot.data.qpos[:6] = rng.uniform(so101.LOWER, so101.UPPER)
        robot.advance_to(0)
        np.testing.assert_allclose(so101.forward(robot.data.qpos[:4])[:3], robot.tip, atol=1e-4)
