"""Random limits, wild targets, and what the finite differences of a run come to."""

from __future__ import annotations

import numpy as np

from controller.limits import Limiter, MotionLimits

SO101 = (5.0, 40.0, 2000.0)
MS = 1_000_000


def same_limits(count: int, velocity=5.0, acceleration=40.0, jerk=2000.0, reach=1.7):
    ones = np.ones(count)
    return MotionLimits(
        tuple(f"joint {i}" for i in range(count)),
        -reach * ones,
        reach * ones,
        velocity * ones,
        acceleration * ones,
        jerk * ones,
    )


def random_limits(rng: np.random.Generator, count: int) -> MotionLimits:
    """Limits of very different joints: slow and fast, stiff and soft, near and far from 0."""

    def power(low: float, high: float):
        return 10 ** rng.uniform(low, high, count)

    half, middle = power(-1, 1), rng.uniform(-3, 3, count)
    velocity = power(-1, 1.3)
    acceleration = velocity * power(0, 2)
    jerk = acceleration * power(0, 3)
    names = tuple(f"joint {i}" for i in range(count))
    return MotionLimits(names, middle - half, middle + half, velocity, acceleration, jerk)


class Run:
    """Notes of what a limiter emitted."""

    def __init__(self, limits: MotionLimits, period_ns: int, start) -> None:
        self.limiter, self.t = Limiter(limits, period_ns), period_ns / 1e9
        self.limiter.reset(start)
        self.codes: list[str] = []
        self.states = [self.now()]

    def now(self):
        at = self.limiter
        return np.stack([at.position, at.velocity, at.acceleration])

    def towards(self, position, velocity=None):
        self.codes.append(self.limiter.towards(position, velocity))
        self.states.append(self.now())
        return self.codes[-1]

    def brake(self):
        self.codes.append(self.limiter.brake())
        self.states.append(self.now())
        return self.codes[-1]

    @property
    def positions(self):
        return np.array(self.states)[:, 0]

    def excess(self) -> dict[str, float]:
        """By how much each limit was exceeded, as a share of it; below 0 where it was not.

        Positions, and the differences of positions, velocities and accelerations per period. What
        rounding makes of a difference of positions is taken off.
        """
        limits, t = self.limiter.limits, self.t
        p, v, a = np.array(self.states).transpose(1, 0, 2)
        bounds = (limits.velocity, limits.acceleration, limits.jerk)
        rounding = 2e-15 * np.maximum(np.abs(limits.lower), np.abs(limits.upper))
        worst = {
            "position": np.maximum(p - limits.upper, limits.lower - p).max() + 0.0,
            "velocity": (np.abs(v) / limits.velocity).max() - 1,
            "acceleration": (np.abs(a) / limits.acceleration).max() - 1,
        }
        for name, values, first in (("p", p, 0), ("v", v, 1), ("a", a, 2)):
            for order in range(1, 4 - first):
                steps = np.abs(np.diff(values, n=order, axis=0))
                steps = steps - (2**order * rounding if name == "p" else 0.0)
                share = steps / t**order / bounds[first + order - 1]
                worst[f"d{order}{name}"] = share.max(initial=0.0) - 1
        return {name: float(value) for name, value in worst.items()}


def wild_run(seed: int, count: int, steps: int) -> Run:
    """Targets that jump, glide, lie outside and on the limits, stop, are NaN; and brakes between.

    The velocities that come with them have little to do with how they move.
    """
    rng = np.random.default_rng(seed)
    limits = random_limits(rng, count)
    run = Run(limits, int(rng.uniform(2 * MS, 10 * MS)), rng.uniform(limits.lower, limits.upper))
    middle, half = (limits.lower + limits.upper) / 2, (limits.upper - limits.lower) / 2
    position, velocity = run.limiter.position.copy(), np.zeros(count)
    for _ in range(steps):
        chance = rng.random(count)
        on_limit = middle + half * np.sign(chance - 0.065)
        anywhere = middle + 1.5 * half * rng.uniform(-1, 1, count)
        position = np.where(
            chance < 0.05, anywhere, np.where(chance < 0.08, on_limit, position + velocity * run.t)
        )
        chance = rng.random(count)
        glide = velocity + 0.3 * run.t * limits.acceleration * rng.normal(size=count)
        any_speed = 1.3 * limits.velocity * rng.uniform(-1, 1, count)
        velocity = np.where(chance < 0.05, any_speed, np.where(chance < 0.1, 0.0, glide))
        chance = rng.random()
        if chance < 0.05:
            run.brake()
        elif chance < 0.07:
            broken = position.copy()
            broken[rng.integers(count)] = rng.choice([np.nan, np.inf, -np.inf])
            run.towards(broken, velocity)
        elif chance < 0.15:
            run.towards(position)
        else:
            run.towards(position, velocity)
    return run


def hermite(points, step_s: float, t: float):
    """Piecewise cubic through points with Catmull-Rom tangents: positions and velocities at t."""
    tangents = np.gradient(points, step_s, axis=0)
    ticks = round(step_s / t)
    s = (np.arange(1, ticks + 1) / ticks)[None, :, None]
    p0, p1 = points[:-1, None], points[1:, None]
    m0, m1 = tangents[:-1, None] * step_s, tangents[1:, None] * step_s
    a, b = 2 * (p0 - p1) + m0 + m1, 3 * (p1 - p0) - 2 * m0 - m1
    shape = (-1, points.shape[1])
    return (
        (((a * s + b) * s + m0) * s + p0).reshape(shape),
        (((3 * a * s + 2 * b) * s + m0) / step_s).reshape(shape),
    )


def sine(amplitude, hertz, phase, t: float, steps: int):
    """Positions and velocities at the ends of ``steps`` periods. Shape (steps, A) each."""
    w = 2 * np.pi * hertz
    angle = w * t * np.arange(1, steps + 1)[:, None] + phase
    return amplitude * np.sin(angle), amplitude * w * np.cos(angle)
