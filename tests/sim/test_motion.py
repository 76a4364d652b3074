"""Figures of motion from ticks made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from controller.loop_types import TickCode, TickResult
from sim.motion import MotionMeter

DT = 0.04


def tick(step: int, value: float, source: int = 0, **changes) -> TickResult:
    """One at which the first joint is there; the gripper is far away, and never counts."""
    point = np.array([value, 0, 0, 0, 0, (-1) ** step * 50], np.float32)
    code = TickCode.RUNNING if source >= 0 else TickCode.STARVED
    return TickResult(code, step, point, **({"boundary": True, "observation_id": source} | changes))


def motion_of(ticks: list[TickResult]):
    meter = MotionMeter(DT)
    for result in ticks:
        meter.see(result)
    return meter.motion()


def test_steps_at_a_switch_and_within_a_chunk_are_told_apart():
    values, sources = [0.0, 0.1, 0.3, 0.9, 0.8], [0, 0, 1, 1, 2]
    motion = motion_of(
        [tick(i, v, s) for i, (v, s) in enumerate(zip(values, sources, strict=True))]
    )
    np.testing.assert_allclose(motion.switches, [0.2, 0.1], atol=1e-6)
    np.testing.assert_allclose(motion.within, [0.1, 0.6], atol=1e-6)
    assert motion.hold == 0.0
    assert motion.forecast_errors.shape == (0, 0)


def test_the_greatest_joint_counts():
    results = [tick(0, 0.0), tick(1, 0.1)]
    results[1].set_point[3] = -0.4
    np.testing.assert_allclose(motion_of(results).within, [0.4], atol=1e-6)


def test_a_hold_is_no_step_and_behind_it_a_chunk_is_switched_to():
    values, sources = [0.0, 0.1, 0.1, 0.1, 0.5, 0.6], [0, 0, -1, -1, 0, 0]
    motion = motion_of(
        [tick(i, v, s) for i, (v, s) in enumerate(zip(values, sources, strict=True))]
    )
    np.testing.assert_allclose(motion.switches, [0.4], atol=1e-6)
    np.testing.assert_allclose(motion.within, [0.1, 0.1], atol=1e-6)
    assert motion.hold == pytest.approx(2 / 6)


def test_the_last_tick_of_a_step_is_the_steps():
    """Also its source, where the step was amended."""
    results = [
        tick(0, 0.0),
        tick(1, 0.05),
        tick(1, 0.1, boundary=False),
        tick(2, 0.15, -1),
        tick(2, 0.2, boundary=False, source=1),
        tick(2, 0.3, boundary=False, source=1),
    ]
    motion = motion_of(results)
    np.testing.assert_allclose(motion.within, [0.1], atol=1e-6)
    np.testing.assert_allclose(motion.switches, [0.2], atol=1e-6)
    assert motion.hold == 0.0


def test_jerk_is_the_third_difference_over_joints_and_steps():
    smooth = motion_of([tick(i, 0.01 * i**2) for i in range(8)])
    assert smooth.jerk == pytest.approx(0.0, abs=0.1)
    cubic = motion_of([tick(i, 0.001 * i**3) for i in range(8)])
    # 0.006 a step in one joint of five.
    assert cubic.jerk == pytest.approx(0.006 / DT**3 / np.sqrt(5), rel=1e-3)
    assert motion_of([tick(i, float(i)) for i in range(3)]).jerk == 0.0


def test_forecast_errors_are_kept_in_order():
    errors = [np.full(12, i, np.float32) for i in range(3)]
    results = [tick(i, 0.0, forecast_error=error) for i, error in enumerate(errors)]
    results.insert(1, tick(0, 0.0))
    np.testing.assert_array_equal(motion_of(results).forecast_errors, errors)
