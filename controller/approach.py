"""The fastest approach to a moving target, by ruckig.

Ruckig's target is where a trajectory ends, whenever that is. Given the place of a moving target
now, it would arrive there when the target has gone on. So it is asked in the target's own frame,
where the target stands still at 0: positions and velocities are the distances to it, and the
limits of velocity are those that are left beside its velocity. While the target is near, the
frame accelerates with it, too.
"""

from __future__ import annotations

from collections.abc import Sequence

from ruckig import InputParameter, Ruckig, RuckigError, Synchronization, Trajectory

from controller.axis import Axis, Reference, State

# Share of the limits that a target's motion may use; the rest is what it can be caught up with.
FRAME_VELOCITY = 0.9
FRAME_ACCELERATION = 0.95
# A target is taken to go on accelerating when it can be caught within about this time [periods].
NEAR_PERIODS = 20
# What ruckig may miss its target by [share of the way of a period at greatest speed].
ARRIVED = 1e-9


class Approach:
    """Asks ruckig for one period of the fastest approach, each axis by itself."""

    def __init__(self, axes: Sequence[Axis], period_s: float) -> None:
        """Makes an approach.

        Args:
            axes: The axes and their limits.
            period_s: Control period [s].
        """
        self._axes, self._t = tuple(axes), period_s
        self._near = NEAR_PERIODS * period_s
        count = len(axes)
        self._ruckig, self._trajectory = Ruckig(count), Trajectory(count)
        self._input = InputParameter(count)
        self._input.synchronization = Synchronization.No
        self._input.max_jerk = [axis.jerk for axis in axes]
        self._input.target_position = [0.0] * count

    def step(self, now: Sequence[State], goals: Sequence[Reference]) -> list[State] | None:
        """Returns the states one period on, or None where ruckig finds no way.

        Args:
            now: The states. Length A.
            goals: Where the targets will be at the end of the period. Length A.
        """
        t, ask = self._t, self._input
        frames = [self._frame(*each) for each in zip(self._axes, now, goals, strict=True)]
        starts = [
            (s[0] - g.position + (v - a * t / 2) * t, s[1] - v + a * t, s[2] - a)
            for s, g, (v, a) in zip(now, goals, frames, strict=True)
        ]
        speeds = [v - a * t for v, a in frames]
        most = [axis.velocity for axis in self._axes]
        ask.max_velocity = [m - v for m, v in zip(most, speeds, strict=True)]
        ask.min_velocity = [-m - v for m, v in zip(most, speeds, strict=True)]
        most = [axis.acceleration for axis in self._axes]
        ask.max_acceleration = [m - a for m, (_, a) in zip(most, frames, strict=True)]
        ask.min_acceleration = [-m - a for m, (_, a) in zip(most, frames, strict=True)]
        ask.current_position, ask.current_velocity, ask.current_acceleration = map(
            list, zip(*starts, strict=True)
        )
        try:
            self._ruckig.calculate(ask, self._trajectory)
        except (RuckigError, ValueError):  # ValueError: a failure that its enum does not know
            return None
        p, v, a = self._trajectory.at_time(t)
        lasts = self._trajectory.independent_min_durations
        then = []
        for i, (axis, goal, frame) in enumerate(zip(self._axes, goals, frames, strict=True)):
            if lasts[i] <= t and abs(p[i]) < ARRIVED * axis.velocity * t:
                then.append((goal.position, *frame))
            else:
                then.append((goal.position + p[i], frame[0] + v[i], frame[1] + a[i]))
        return then

    def _frame(self, axis: Axis, now: State, goal: Reference) -> tuple[float, float]:
        """Velocity at the end of the period, and acceleration, of the frame of the target."""
        most = FRAME_VELOCITY * axis.velocity
        v = min(max(goal.velocity, -most), most)
        most = FRAME_ACCELERATION * axis.acceleration
        a = min(max(goal.acceleration, -most), most)
        near, dv = self._near, abs(now[1] - v)
        dp = abs(now[0] - goal.position + v * self._t)
        # Over a longer time its acceleration says little; and its velocity must stay in bounds.
        if dv < axis.acceleration * near / 2 and dp < axis.acceleration * near**2 / 4:
            return v, a if abs(v) + abs(a) * near < axis.velocity else 0.0
        return v, 0.0
