"""Trains the built-in policy for one task: collect, train, DAgger rounds, tune, ship.

With ``--suite metaworld`` it trains one policy for several of Meta-World's tasks instead
(``scripts/train_metaworld.py``).

The first stage trains a plain flow policy on the constant schedule. Tuning then goes on from its
weights with what serving needs: chunks that begin later than their pictures, from a forecast state
and behind committed actions, the horizon-aware schedule's times, and a MeanFlow head for few steps.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
import tyro
from numpy.typing import NDArray

from controller.bounds import check_range
from controller.errors import ErrorCode, OnsetError
from controller.forecast import load_servo
from controller.strategy import STRATEGIES
from scripts.results import code_commit
from scripts.train_collect import Driving, collect
from scripts.train_stages import fit, read, resumed, ship
from sim.collect import HORIZON
from sim.robots import so101
from sim.task import Targets, Task
from sim.tasks import make_task
from vla.checkpoint import PolicyMeta, load_checkpoint
from vla.models.refine import refined
from vla.models.small import SmallVLAConfig
from vla.train.data import Demonstrations, Replan
from vla.train.loop import TrainConfig, Trainer
from vla.train.losses import Draws
from vla.train.offsets import Offsets
from vla.train.times import Mixture
from vla.transforms import Normaliser, Tokeniser

MAX_DELAY = 12  # greatest delay that a policy is tuned for [steps]


@dataclass(frozen=True)
class Recipe:
    """How much of what a task takes.

    Attributes:
        episodes: Expert episodes of the first round.
        rounds: DAgger rounds: the policy drives, the expert labels.
        round_episodes: Episodes of each round.
        first: Steps on the first round's data, before the first DAgger round.
        steps: Steps in all; the rest is shared by the rounds.
        tune_steps: Steps of tuning, on the data of all rounds.
        hardness: Parameters of the task in which episodes are collected, as name=value.
    """

    episodes: int
    rounds: int
    round_episodes: int
    first: int
    steps: int
    tune_steps: int
    hardness: tuple[str, ...] = ()


# An episode of intercept is short; pick_place has two cameras and three times the phases.
RECIPES = {
    "whack": Recipe(480, 3, 120, 1500, 2800, 1200),
    "intercept": Recipe(1600, 3, 400, 1200, 2800, 1500),
    "pick_place": Recipe(800, 3, 160, 1500, 3300, 1000),
    # Belts of every speed at which it will be measured, all of which change it.
    "conveyor": Recipe(
        *(1200, 3, 400, 1200, 2800, 1500),
        hardness=("speed_min=0.04", "speed_max=0.2", "change_probability=1"),
    ),
}


TUNE = TrainConfig(
    batch=32,
    draws=Draws(1, 1, "distil"),
    mixture=Mixture(),
    offsets=Offsets(count=4, d_max=MAX_DELAY),
    rate=5e-4,
)


@dataclass(frozen=True)
class Args:
    """Trains the built-in policy for one task: collect, train, DAgger rounds, tune, ship.

    Every stage is passed over when it is done: an interrupted run goes on where it was.

    Attributes:
        task: whack, intercept, pick_place or conveyor.
        suite: onset for one of our tasks, metaworld for one policy of several of Meta-World's.
        tasks: Meta-World's tasks, e.g. reach-v3; episodes are counted for each of them. Nothing
            is tuned there.
        episodes: Expert episodes of the first round; the task's recipe by default.
        rounds: DAgger rounds; the recipe's by default.
        round_episodes: Episodes of each round; the recipe's by default.
        first: Steps before the first DAgger round; the recipe's by default.
        steps: Steps in all, before tuning; the recipe's by default.
        tune_steps: Steps of tuning; the recipe's by default.
        hardness: Parameters of the task as name=value; the recipe's by default.
        workers: Processes that collect.
        threads: CPU threads of the optimiser.
        device: cpu or cuda.
        out: Folder of the run.
        ship: Copy the result into the bundled weights.
        train: Settings of the first stage; its steps come from the recipe.
        tune: Settings of tuning; its steps come from the recipe.
        start: A policy, by name or path, to go on tuning from. There is no first stage then: it
            keeps its scales, and drives in every round.
        patch: Height and width of the patches of what is tuned [px], where they are to be finer
            than those of the policy that it starts from.
        lags: Frames of the fixed camera that it sees, as steps before now, where they are to be
            more than those of the policy that it starts from; those come first.
        round_delay: Greatest delay with which the policy drives in the rounds [steps], drawn anew
            for each episode.
        round_strategy: How it drives then: as it is served under this strategy, within the arm's
            limits. By default from action to action, disturbed; what is late is passed over.
        name: Of the bundled policy that is written; the task's by default.
    """

    task: str = ""
    suite: Literal["onset", "metaworld"] = "onset"
    tasks: tuple[str, ...] = ()
    episodes: int | None = None
    rounds: int | None = None
    round_episodes: int | None = None
    first: int | None = None
    steps: int | None = None
    tune_steps: int | None = None
    hardness: tuple[str, ...] | None = None
    workers: int = 2
    threads: int = 2
    device: str = "cpu"
    out: Path = Path("runs")
    ship: bool = True
    train: TrainConfig = field(default_factory=TrainConfig)
    tune: TrainConfig = TUNE
    start: Path | None = None
    patch: int | None = None
    lags: tuple[int, ...] | None = None
    round_delay: int = 0
    round_strategy: str = ""
    name: str = ""


def make_recipe(args: Args) -> Recipe:
    """The task's recipe with what the command line overrides."""
    if args.task not in RECIPES:
        raise OnsetError(ErrorCode.BAD_VALUE, "task", repr(args.task), sorted(RECIPES))
    given = {f.name: getattr(args, f.name) for f in dataclasses.fields(Recipe)}
    return dataclasses.replace(
        RECIPES[args.task], **{name: value for name, value in given.items() if value is not None}
    )


def main(args: Args) -> None:
    if args.suite == "metaworld":
        train_metaworld(args)
        return
    if args.tasks:
        raise OnsetError(ErrorCode.BAD_VALUE, "tasks", list(args.tasks), "none without a suite")
    # Now: shipping changes the bundled weights, and with them what git says of the tree.
    commit = code_commit()
    recipe = make_recipe(args)
    folder = args.out / args.task
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    if args.start is not None:
        tuned = go_on(args, recipe, args.start, folder)
    else:
        tuned = make_tuned(args, recipe, first_stage(args, recipe, folder))
    fit(tuned, recipe.tune_steps)
    if args.ship:
        logs = {"flow": folder / "log.jsonl", "tune": tuned.folder / "log.jsonl"}
        ship(args.name or args.task, tuned, {n: p for n, p in logs.items() if p.is_file()}, commit)


def demonstrations(task: Task, meta: PolicyMeta) -> Demonstrations:
    """None yet, of a task's frames."""
    lags = {c.name: c.lags for c in meta.robot.cameras}
    period_s = meta.robot.period_ns * 1e-9
    servo = load_servo(meta.robot.name)
    replan = make_replan(task, period_s) if task.batched else None
    return Demonstrations(meta.model.cameras, lags, period_s, servo, replan)


def driving(args: Args, recipe: Recipe) -> Driving:
    """How episodes are collected.

    Raises:
        OnsetError: BAD_VALUE: there is no such strategy.
    """
    if args.round_strategy not in ("", *STRATEGIES):
        raise OnsetError(
            ErrorCode.BAD_VALUE, "round_strategy", args.round_strategy, sorted(STRATEGIES)
        )
    return Driving(args.task, recipe.hardness, args.round_delay, args.round_strategy, args.workers)


def first_stage(args: Args, recipe: Recipe, folder: Path) -> Trainer:
    """A plain flow policy, trained on the expert's data and in DAgger rounds."""
    task = make_task(args.task)
    meta = make_meta(task)
    data = demonstrations(task, meta)
    collect(driving(args, recipe), folder, 0, recipe.episodes, None)
    read(data, folder, 0)
    # The gripper is absolute; the arm's actions are relative to where it is.
    relative = torch.tensor([0.0 if d.unit == "1" else 1.0 for d in meta.robot.action])
    # Scales come from the first round only: later rounds must not move the model's units.
    normaliser = data.fit(relative)
    config = dataclasses.replace(args.train, steps=recipe.steps)
    trainer = Trainer(meta, config, data, normaliser, folder, torch.device(args.device))
    resumed(trainer)
    # Data first, then steps: stage 0 has the expert's data alone, each round adds the policy's.
    for number in range(recipe.rounds + 1):
        if number:
            driver = folder / "policy.safetensors"
            collect(driving(args, recipe), folder, number, recipe.round_episodes, driver)
            read(data, folder, number)
        rest = recipe.steps - recipe.first
        last = number == recipe.rounds
        until = recipe.steps if last else recipe.first + rest * number // recipe.rounds
        if trainer.step < until:
            fit(trainer, until)
    return trainer


def go_on(args: Args, recipe: Recipe, policy: Path, folder: Path) -> Trainer:
    """The tuning of a policy that is trained, on new data of the expert's and its own.

    It may see more than the policy did: finer patches, or more frames of the past.

    Raises:
        OnsetError: BAD_VALUE: the policy is another task's, the delay is more than it is tuned
            for, there is no such strategy, or it would see less.
    """
    check_range("round_delay", args.round_delay, 0, MAX_DELAY)
    start, task = load_checkpoint(policy), make_task(args.task)
    known = task.prompts
    if start.meta.prompts != known:
        raise OnsetError(
            ErrorCode.BAD_VALUE,
            "start",
            f"{policy}, which knows {start.meta.prompts[0]!r}",
            f"a policy of {args.task}, which knows {known[0]!r}",
        )
    meta = seeing_more(args, start.meta, task)
    weights = refined(start.model.state_dict(), start.meta.model, meta.model)
    data = demonstrations(task, meta)
    for number in range(recipe.rounds + 1):
        episodes = recipe.round_episodes if number else recipe.episodes
        collect(driving(args, recipe), folder, number, episodes, policy if number else None)
        read(data, folder, number)
    tuned = tuning(args, recipe, meta, data, start.normaliser, folder)
    if not resumed(tuned):
        tuned.start_at(weights)
    return tuned


def seeing_more(args: Args, meta: PolicyMeta, task: Task) -> PolicyMeta:
    """A policy's description with what the command line has it see.

    Raises:
        OnsetError: BAD_VALUE: frames that it sees now are not the first of those to come.
    """
    robot = meta.robot
    if args.lags is not None:
        robot = robot.remembering(so101.spec(task.cameras, args.lags))
    for now, then in zip(meta.robot.cameras, robot.cameras, strict=True):
        if then.lags[: len(now.lags)] != now.lags:
            raise OnsetError(
                ErrorCode.BAD_VALUE, "lags", list(then.lags), f"{list(now.lags)} and then more"
            )
    patch = meta.model.patch if args.patch is None else args.patch
    lags = tuple(len(c.lags) for c in robot.cameras)
    model = dataclasses.replace(meta.model, patch=patch, lags=lags)
    return dataclasses.replace(meta, model=model, robot=robot)


def train_metaworld(args: Args) -> None:
    """One policy for several of Meta-World's tasks.

    Raises:
        OnsetError: BAD_VALUE for an option that says nothing there, or what ``train`` refuses.
    """
    from scripts.train_metaworld import Recipe, Run, train

    unused = {
        "task": "",
        "tune_steps": None,
        "hardness": None,
        "tune": TUNE,
        "start": None,
        "patch": None,
        "lags": None,
        "round_delay": 0,
        "round_strategy": "",
        "name": "",
    }
    given = [name for name, value in unused.items() if getattr(args, name) != value]
    if given:
        raise OnsetError(ErrorCode.BAD_VALUE, "suite", f"metaworld with {given}", "without them")
    names = [f.name for f in dataclasses.fields(Recipe)]
    recipe = {name: value for name in names if (value := getattr(args, name)) is not None}
    run = Run(
        tasks=args.tasks,
        folder=args.out / args.suite,
        workers=args.workers,
        threads=args.threads,
        device=args.device,
        ship=args.ship,
        train=args.train,
    )
    train(run, Recipe(**recipe))


def make_tuned(args: Args, recipe: Recipe, trainer: Trainer) -> Trainer:
    """The trainer of the second stage, at its beginning or where it was."""
    tuned = tuning(args, recipe, trainer.meta, trainer.data, trainer.normaliser, trainer.folder)
    if not resumed(tuned):
        tuned.start_from(trainer.folder)
    return tuned


def tuning(
    args: Args,
    recipe: Recipe,
    meta: PolicyMeta,
    data: Demonstrations,
    normaliser: Normaliser,
    folder: Path,
) -> Trainer:
    """The trainer of the second stage, with weights that are still to come."""
    config = dataclasses.replace(args.tune, steps=recipe.tune_steps)
    most = config.offsets.d_max
    model = dataclasses.replace(meta.model, mean_flow=config.draws.jump > 0, max_start=most)
    meta = dataclasses.replace(meta, model=model, max_delay=most)
    return Trainer(meta, config, data, normaliser, folder / "tune", torch.device(args.device))


def make_meta(task: Task) -> PolicyMeta:
    """The built-in policy's description for a task."""
    spec = so101.spec(task.cameras, task.lags)
    tokens = Tokeniser.of(task.prompts)
    config = SmallVLAConfig(
        cameras=task.cameras,
        lags=tuple(len(c.lags) for c in spec.cameras),
        image_size=spec.cameras[0].height,
        horizon=HORIZON,
        state_dim=len(spec.state),
        action_dim=len(spec.action),
        words=len(tokens.vocabulary) + 1,
        max_words=tokens.max_words,
        readouts=task.targets_count,
    )
    return PolicyMeta(
        name=f"small-{task.name}",
        model=config,
        prompts=task.prompts,
        robot=spec,
    )


def make_replan(task: Task, period_s: float) -> Replan:
    """The expert's plans from where the arm will be, of a scene that is some time old."""
    dims = len(so101.JOINTS)

    def replan(
        position: NDArray, velocity: NDArray, visible: NDArray, age_s: NDArray, state: NDArray
    ) -> NDArray:
        targets = Targets(position, velocity, visible).later(age_s)
        return task.plan_for(targets, state[:, :dims], state[:, dims:], HORIZON, period_s)

    return replan


if __name__ == "__main__":
    try:
        main(tyro.cli(Args))
    except OnsetError as error:
        raise SystemExit(f"error: {error}") from error
