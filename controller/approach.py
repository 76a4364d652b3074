"""The fastest approach to a moving target, by ruckig.

Ruckig's target is where a trajectory ends, whenever that is. Given the place of a moving target
now, it would arrive there when the target has gone on. So it is asked in the target's own frame,
where the target stands still at 0: positions and velocities are the distances to it, and the
limits of velocity are those that are left beside its velocity. While the target is near, the
frame accelerates with it, too.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from ruckig import InputParameter, Ruckig, RuckigError, Synchronization, Trajectory

Array = NDArray[np.float64]
State = tuple[Array, Array, Array]

# Share of the limits that a target's motion may use; the rest is what it can be caught up with.
FRAME_VELOCITY = 0.9
FRAME_ACCELERATION = 0.95
# A target is taken to go on accelerating when it can be caught within about this time [periods].
NEAR_PERIODS = 20


class Approach:
    """Asks ruckig for one period of the fastest approach, each axis by itself."""

    def __init__(self, velocity: Array, acceleration: Array, jerk: Array, period_s: float) -> None:
        """Makes an approach under limits that are the same in both directions. Shape (A,) each."""
        count = len(velocity)
        self._velocity, self._acceleration, self._period_s = velocity, acceleration, period_s
        self._near_velocity = acceleration * (NEAR_PERIODS * period_s / 2)
        self._near_position = acceleration * (NEAR_PERIODS * period_s / 2) ** 2
        self._ruckig, self._trajectory = Ruckig(count), Trajectory(count)
        self._input = InputParameter(count)
        self._input.synchronization = Synchronization.No
        self._input.max_jerk = jerk.tolist()
        self._input.target_position = [0.0] * count

    def step(
        self, state: State, position: Array, velocity: Array, acceleration: Array
    ) -> State | None:
        """Returns the state one period on, or None where ruckig finds no way.

        Args:
            state: Position, velocity and acceleration now. Shape (A,) each.
            position: The target's, at the end of the period. Shape (A,).
            velocity: The target's, at the end of the period. Shape (A,).
            acceleration: The target's. Shape (A,).
        """
        period = self._period_s
        most = FRAME_VELOCITY * self._velocity
        v_end = np.minimum(np.maximum(velocity, -most), most)
        most = FRAME_ACCELERATION * self._acceleration
        a = np.minimum(np.maximum(acceleration, -most), most)
        dp, dv = state[0] - (position - v_end * period), state[1] - v_end
        # Over a longer time its acceleration says little; and its velocity must stay in bounds.
        near = (np.abs(dv) < self._near_velocity) & (np.abs(dp) < self._near_position)
        near &= np.abs(v_end) + np.abs(a) * (NEAR_PERIODS * period) < self._velocity
        a = np.where(near, a, 0.0)
        dp, dv = dp - a * (period * period / 2), dv + a * period
        v_now = v_end - a * period
        ask = self._input
        ask.current_position = dp.tolist()
        ask.current_velocity = dv.tolist()
        ask.current_acceleration = (state[2] - a).tolist()
        ask.max_velocity = (self._velocity - v_now).tolist()
        ask.min_velocity = (-self._velocity - v_now).tolist()
        ask.max_acceleration = (self._acceleration - a).tolist()
        ask.min_acceleration = (-self._acceleration - a).tolist()
        try:
            self._ruckig.calculate(ask, self._trajectory)
        except (RuckigError, ValueError):  # ValueError: a failure that its enum does not know
            return None
        there = np.array(self._trajectory.at_time(period))
        # Ruckig ends within a rounding of its target; arrived is arrived.
        arrived = np.array(self._trajectory.independent_min_durations) <= period
        there[:, arrived & (np.abs(there[0]) < 1e-9 * np.abs(self._velocity) * period)] = 0.0
        return there[0] + position, there[1] + v_end, there[2] + a
