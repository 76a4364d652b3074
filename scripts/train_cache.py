"""Trains the token cache's selector and ratio predictor for a bundled policy, which is frozen.

Collects closed-loop rollouts of the policy in virtual time, aligns the selector with the measured
effect of each token, then distils; see ``vla.train.cache``. Every stage is passed over when it is
done: an interrupted run goes on where it was.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.progress import track

from controller.errors import OnsetError
from controller.types import Observation
from scripts.cache_run import fit
from scripts.results import code_commit, write_results
from sim.env import SimRobot
from sim.rollout import loop_config, run_episode
from sim.tasks import make_task
from vla.cache.selector import WEIGHTS
from vla.checkpoint import Checkpoint, load_checkpoint
from vla.engine import Engine
from vla.train.blended import BlendedBuiltIn, Rollout
from vla.train.cache import CacheTraining

CONSOLE = Console()
FIRST_SEED = 3_000_000  # evaluation seeds are below, those of the policies' training too


@dataclass(frozen=True)
class Args:
    """Trains the token cache's selector and ratio predictor for a bundled policy.

    Attributes:
        task: whack, intercept, pick_place or conveyor.
        policy: Bundled name or path of a .safetensors file; the task's own by default.
        episodes: Episodes of the policy to collect.
        execute_steps: K, steps between observations.
        threads: CPU threads.
        out: Folder of the run.
        ship: Copy the result into the bundled weights.
        json: Result file to write.
        train: Settings of the training.
    """

    task: str
    policy: str | None = None
    episodes: int = 60
    execute_steps: int = 4
    threads: int = 1
    out: Path = Path("runs/cache")
    ship: bool = True
    json: Path | None = None
    train: CacheTraining = field(default_factory=CacheTraining)


def main(args: Args) -> None:
    commit = code_commit()
    torch.set_num_threads(args.threads)
    given = Path(args.policy or args.task)
    checkpoint = load_checkpoint(given)
    # Of the file: several bundled policies of a task have one name.
    name, folder = checkpoint.meta.name, args.out / given.stem
    rollouts = collect(args, checkpoint, folder / "rollouts")
    policy = BlendedBuiltIn(checkpoint)
    trainer, meta, log = fit(policy, name, checkpoint.digest, args.train, rollouts, folder)
    if args.ship:
        trainer.heads.selector(meta).save(WEIGHTS / f"{given.stem}.safetensors")
    if args.json is not None:
        figures = {"rows": log[-1]["rows"], "error": log[-1]["error"]}
        write_results(args.json, figures, log, commit=commit)


def collect(args: Args, checkpoint: Checkpoint, folder: Path) -> list[Rollout]:
    """Episodes of the policy in closed loop; those that are there already are read."""
    robot, engine, rollouts = None, None, []
    for number in track(range(args.episodes), f"{args.task}: rollouts", console=CONSOLE):
        path = folder / f"{number:04d}.npz"
        if not path.is_file():
            robot = robot or SimRobot(make_task(args.task), checkpoint.meta.robot)
            engine = engine or Engine(checkpoint)
            _record(robot, engine, FIRST_SEED + number, args.execute_steps, path)
        with np.load(path, allow_pickle=False) as arrays:
            frames = {n[7:]: arrays[n] for n in arrays if n.startswith("frames_")}
            rollouts.append(Rollout(str(arrays["prompt"]), arrays["state"], frames))
    if robot is not None:
        robot.close()
    return rollouts


def _record(robot: SimRobot, engine: Engine, seed: int, execute_steps: int, path: Path) -> None:
    seen: list[Observation] = []

    def stream(observation: Observation):
        frames = {n: np.array(f) for n, f in observation.frames.items()}
        seen.append(dataclasses.replace(observation, frames=frames))
        return engine.stream(observation, robot.prompt)

    run_episode(robot, stream, seed, config=loop_config(execute_steps))
    arrays = {f"frames_{n}": np.stack([o.frames[n] for o in seen]) for n in seen[0].frames}
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".tmp.npz")
    np.savez_compressed(
        fresh,
        allow_pickle=False,
        prompt=np.array(robot.prompt),
        state=np.stack([o.state for o in seen]),
        **arrays,
    )
    fresh.replace(path)


if __name__ == "__main__":
    try:
        main(tyro.cli(Args))
    except OnsetError as error:
        raise SystemExit(f"error: {error}") from error
