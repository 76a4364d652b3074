"""Fits a robot's servo model to logs, and reports how far ahead it tells the state.

A log is a shard of `scripts/train.py` or a file alike: `state` (T, 2 A) positions, then velocities,
`action` (T, A) the set-point to be reached at the end of each step, `length` (E,) the steps of each
episode. The set-point of an episode begins where the robot is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from controller.errors import ErrorCode, OnsetError
from controller.servo import UNITS, Array, ServoModel
from controller.types import RobotSpec
from scripts.results import code_commit, write_results
from sim.robots import so101

Row = dict[str, str | int | float]

CONSOLE = Console(width=100)
ROBOTS = {"so101-sim": so101.spec}
CASES = ("free motion", "holding", "making contact", "collision", "all")
AHEAD = 8  # steps
SHOWN = (4, 8)  # steps ahead in the table
SAMPLE = 3000  # windows fitted
STALLS = (np.inf, 0.02, 0.05)  # [unit]; less is friction, or a servo that turns round
START = np.log([2000.0, 100.0, 50.0])  # a servo of 50 ms lag, for want of knowing better
OUTLIER = 0.005  # [unit]: errors past it are collisions as likely as servo
VELOCITY_S = 0.02  # weighs velocity against position [s]
JAM = 0.05  # [unit]: further than the servo's lag lets a joint be for two steps on end


@dataclass(frozen=True)
class Args:
    """Fits a robot's servo model to logs, and reports how far ahead it tells the state.

    Every third log is held out: it is not fitted, and the report is on these alone.

    Attributes:
        logs: Shards with state, action and length, three or more.
        robot: Robot that they are of; its dimensions and period are looked up.
        out: File of the model; controller/servos/<robot>.json is where it is looked for.
        json: Result file to write.
        seed: Seeds the choice of rows that are fitted.
    """

    logs: tuple[Path, ...]
    robot: str = "so101-sim"
    out: Path = Path("controller/servos/so101-sim.json")
    json: Path | None = None
    seed: int = 0


@dataclass(frozen=True)
class Windows:
    """What followed each row of the logs: B windows of n steps.

    Attributes:
        position: Shape (B, 1+n, A), [unit]; the first is where the window begins.
        velocity: Shape (B, 1+n, A), [unit/s].
        command: Set-point that stood at each. Shape (B, 1+n, A), [unit].
    """

    position: Array
    velocity: Array
    command: Array

    def __getitem__(self, which: np.ndarray) -> Windows:
        return Windows(self.position[which], self.velocity[which], self.command[which])

    def forecast(self, model: ServoModel, period_s: float) -> tuple[Array, Array]:
        """Positions and velocities that the model expects. Shape (B, n, A) each."""
        command = self.command
        start = self.position[:, 0], self.velocity[:, 0], command[:, 0]
        return model.roll(*start, command[:, 1:], period_s)

    def joint(self, i: int) -> Windows:
        """One joint's. Shapes (B, 1+n, 1)."""
        return Windows(*(a[..., i : i + 1] for a in (self.position, self.velocity, self.command)))


def main(args: Args) -> None:
    commit = code_commit()
    if args.robot not in ROBOTS:
        raise OnsetError(ErrorCode.BAD_VALUE, "robot", args.robot, sorted(ROBOTS))
    if len(args.logs) < 3:
        raise OnsetError(ErrorCode.BAD_VALUE, "logs", f"{len(args.logs)} files", "3 or more")
    spec = ROBOTS[args.robot]()
    fitted = [path for i, path in enumerate(args.logs) if i % 3 != 2]
    windows = read(fitted, spec)
    rng = np.random.default_rng(args.seed)
    model = fit(windows[rng.permutation(len(windows.position))[:SAMPLE]], spec)
    rows = report(model, read(args.logs[2::3], spec), spec)
    CONSOLE.print(table(rows))
    model.save(args.out)
    CONSOLE.print(f"wrote {args.out}")
    if args.json is not None:
        worst = max(float(row["worst_ratio"]) for row in rows if row["case"] in CASES[:2])
        write_results(args.json, {"forecast_over_last_command_rms": worst}, rows, commit=commit)
        CONSOLE.print(f"wrote {args.json}")


def read(paths: Sequence[Path], spec: RobotSpec) -> Windows:
    """All windows of the logs; none crosses from one episode to the next."""
    size = len(spec.action)
    found: list[list[np.ndarray]] = [[], [], []]
    for path in paths:
        with np.load(path) as log:
            missing = {"state", "action", "length"} - set(log.files)
            if missing or log["state"].shape[1] != len(spec.state):
                raise OnsetError(
                    ErrorCode.BAD_SHAPE,
                    f"logs[{path.name}]",
                    log.files,
                    f"state (T, {len(spec.state)}), action (T, {size}), length (E,)",
                )
            state, action = log["state"].astype(float), log["action"].astype(float)
            ends = np.cumsum(log["length"])
        for rows in np.split(np.arange(len(state)), ends[:-1]):
            position, velocity = state[rows, :size], state[rows, size:]
            command = np.concatenate([position[:1], action[rows[:-1]]])
            for series, out in zip((position, velocity, command), found, strict=True):
                if len(rows) > AHEAD:
                    view = np.lib.stride_tricks.sliding_window_view(series, AHEAD + 1, axis=0)
                    out.append(view.swapaxes(1, 2))
    return Windows(*(np.concatenate(series) for series in found))


def fit(windows: Windows, spec: RobotSpec) -> ServoModel:
    """The model that errs least, joint by joint."""
    joints = [fit_joint(windows.joint(i), spec.period_ns * 1e-9) for i in range(len(spec.action))]
    values = {name: np.concatenate([getattr(j, name) for j in joints]) for name in UNITS}
    return ServoModel(spec.action_names, tuple(d.unit for d in spec.action), **values)


def fit_joint(windows: Windows, period_s: float) -> ServoModel:
    """The model of one joint; windows of shape (B, 1+n, 1)."""

    def model(logs: Array, stall: float) -> ServoModel:
        stiffness, damping, acceleration = np.exp(logs)[:, None]
        return ServoModel(("joint",), ("1",), stiffness, damping, acceleration, np.array([stall]))

    def errors(logs: Array, stall: float) -> Array:
        position, velocity = windows.forecast(model(logs, stall), period_s)
        wrong = np.concatenate(
            [position - windows.position[:, 1:], VELOCITY_S * (velocity - windows.velocity[:, 1:])]
        ).ravel()
        # Cauchy's loss as a square: a collision must not bend the servo's figures.
        return np.sign(wrong) * np.sqrt(np.log1p((wrong / OUTLIER) ** 2))

    fits = []
    for stall in STALLS:
        logs, cost = least_squares(lambda logs, s=stall: errors(logs, s), START)
        fits.append((cost, model(logs, stall)))
    return min(fits, key=lambda fitted: fitted[0])[1]


def least_squares(errors: Callable[[Array], Array], start: Array) -> tuple[Array, float]:
    """Levenberg-Marquardt: the minimum of a sum of squares near a start, and the sum there."""
    x, caution = start, 1e-2
    wrong = errors(x)
    for _ in range(40):
        slope = np.stack([(errors(x + 1e-4 * d) - wrong) / 1e-4 for d in np.eye(len(x))], axis=1)
        square, gradient = slope.T @ slope, slope.T @ wrong
        cost, gain = wrong @ wrong, 0.0
        while gain <= 0 and caution < 1e8:
            damped = square + caution * np.diag(np.diag(square) + 1e-9)
            step = np.clip(np.linalg.solve(damped, -gradient), -1, 1)
            tried = errors(x + step)
            gain = cost - tried @ tried
            caution *= 4 if gain <= 0 else 0.25
        if gain <= 0:
            break
        x, wrong = x + step, tried
        if gain < 1e-6 * cost:
            break
    return x, float(wrong @ wrong)


def report(model: ServoModel, windows: Windows, spec: RobotSpec) -> list[Row]:
    """Errors of last command and forecast in each case, joint by joint.

    A window is a collision when an arm joint is kept from its command in it, holding when it
    begins with a blocked gripper, and making contact when the gripper is stopped inside it, which
    nothing in the state foretells. The rest is free motion.
    """
    expected, _ = windows.forecast(model, spec.period_ns * 1e-9)
    true, last = windows.position[:, 1:], windows.command[:, 1:]
    grips = np.isfinite(model.stall)
    stopped = np.any(kept(model, windows), axis=1)
    blocked = model.blocked(windows.position, windows.velocity, windows.command)
    collision = np.any(stopped[:, ~grips], axis=1)
    holding = np.any(blocked[:, 0], axis=1) & ~collision
    touching = np.any(blocked, axis=(1, 2)) | np.any(stopped[:, grips], axis=1)
    making = touching & ~collision & ~holding
    free = ~(collision | touching)
    cases = (free, holding, making, collision, np.ones_like(free))
    rows = []
    for case, which in zip(CASES, cases, strict=True):
        if not which.any():
            continue
        forecast_rms, last_rms = rms(expected[which] - true[which]), rms(last[which] - true[which])
        for i, name in enumerate(model.names):
            row: Row = {"case": case, "joint": name, "unit": model.units[i]}
            row["rows"] = int(which.sum())
            for ahead in SHOWN:
                row[f"last_command_{ahead}"] = last_rms[ahead - 1, i]
                row[f"forecast_{ahead}"] = forecast_rms[ahead - 1, i]
            row["worst_ratio"] = float((forecast_rms / last_rms)[:, i].max())
            rows.append(row)
    return rows


def kept(model: ServoModel, windows: Windows) -> np.ndarray:
    """Whether each joint is far from its command for two steps, and goes there too slowly."""
    gap = windows.command - windows.position
    free = np.abs(gap) * model.stiffness / model.damping
    slow = (np.abs(gap) > JAM) & (windows.velocity * np.sign(gap) < 0.5 * free)
    return slow[:, 1:] & slow[:, :-1]


def rms(errors: Array) -> Array:
    return np.sqrt((errors**2).mean(axis=0))


def table(rows: Sequence[Row]) -> Table:
    grid = Table(
        title="rms error of last command and servo model, held-out logs [unit / 1000]",
        box=SIMPLE_HEAD,
    )
    grid.add_column("case", no_wrap=True)
    grid.add_column("joint", no_wrap=True)
    for column in ("rows", *(f"{w} +{n}" for n in SHOWN for w in ("last", "servo"))):
        grid.add_column(column, justify="right")
    grid.add_column(f"ratio +1..{AHEAD}", justify="right", no_wrap=True)
    for before, row in zip([None, *rows], rows, strict=False):
        first = before is None or before["case"] != row["case"]
        values = [row[f"{w}_{n}"] for n in SHOWN for w in ("last_command", "forecast")]
        if first and before is not None:
            grid.add_section()
        grid.add_row(
            str(row["case"]) if first else "",
            str(row["joint"]),
            str(row["rows"]) if first else "",
            *(f"{1e3 * float(value):.2f}" for value in values),
            f"{float(row['worst_ratio']):.3f}",
        )
    return grid


if __name__ == "__main__":
    try:
        main(tyro.cli(Args))
    except OnsetError as error:
        raise SystemExit(f"error: {error}") from error
