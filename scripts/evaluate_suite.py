"""The suites that can be evaluated: our own tasks one at a time, or several of Meta-World's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from rich.box import SIMPLE_HEAD
from rich.table import Table

from controller.errors import ErrorCode, OnsetError
from controller.types import RobotSpec
from scripts.evaluate_cases import hardness_options
from scripts.evaluate_report import Report, Row
from sim.env import CONTROL_PERIOD_NS, SimRobot
from sim.flicker import Flicker
from sim.metaworld.hand import TICK_NS
from sim.simulated import Simulated
from sim.tasks import make_task


@dataclass(frozen=True)
class Suite:
    """What a suite has.

    Attributes:
        who: The rows that it can have.
        delays: Those injected by default [steps].
        tick_ns: Time between set-points [ns].
    """

    who: tuple[str, ...]
    delays: tuple[int, ...]
    tick_ns: int


SUITES = {
    "onset": Suite(
        ("policy", "expert", "still", "random", "untrained", "swap_instruction", "swap_frames"),
        (0, 8),
        CONTROL_PERIOD_NS,
    ),
    # Its scenes name no other thing that a policy could be told to deal with.
    "metaworld": Suite(
        ("policy", "expert", "still", "random", "untrained", "swap_frames"), (0, 4), TICK_NS
    ),
}


def tasks_of(
    suite: str, task: str, tasks: Sequence[str], hardness: Sequence[str]
) -> tuple[str, ...]:
    """The tasks to evaluate.

    Raises:
        OnsetError: They are none of the suite's, or an option does not belong to it.
    """
    if suite == "onset":
        if tasks:
            raise OnsetError(ErrorCode.BAD_VALUE, "tasks", list(tasks), "--task, with this suite")
        make_task(task, **hardness_options(task, hardness))
        return (task,)
    if task or hardness:
        given = [task, *hardness]
        raise OnsetError(ErrorCode.BAD_VALUE, "task, hardness", given, f"--tasks, with {suite}")
    from sim.metaworld.world import check_tasks

    check_tasks(tasks)
    return tuple(dict.fromkeys(tasks))


def check_flicker(suite: str, share: float) -> None:
    """Checks that a suite's light can flicker on so much of a picture.

    Raises:
        OnsetError: BAD_VALUE.
    """
    if share and suite != "onset":
        raise OnsetError(ErrorCode.BAD_VALUE, "flicker", share, f"0 with {suite}")
    if share:
        Flicker(share)


def check_prompts(tasks: Sequence[str], known: Sequence[str]) -> None:
    """Checks that a policy knows the instructions of Meta-World's tasks.

    Raises:
        OnsetError: UNKNOWN_PROMPT.
    """
    from sim.metaworld.robot import prompt_of

    if unknown := [prompt_of(t) for t in tasks if prompt_of(t) not in known]:
        raise OnsetError(ErrorCode.UNKNOWN_PROMPT, "tasks of the policy", unknown, list(known))


def make_robot(
    suite: str, task: str, hardness: Sequence[str], flicker: float, spec: RobotSpec
) -> Simulated:
    """The simulation of a task, for a policy of this robot."""
    if suite == "onset":
        light = Flicker(flicker) if flicker else None
        return SimRobot(make_task(task, **hardness_options(task, hardness)), spec, light)
    from sim.metaworld.robot import MetaWorldRobot, MetaWorldTask

    return MetaWorldRobot(MetaWorldTask(task))


def suite_rows(reports: Mapping[str, Report]) -> list[Row]:
    """The rows of all tasks, each with its task."""
    return [{"task": name, **row} for name, r in reports.items() for row in r.filled_rows()]


def suite_figures(reports: Mapping[str, Report]) -> dict[str, float]:
    """Each figure's mean over the tasks, and the policy's success on each.

    Ratios are those of the means: a task on which nobody succeeds has none of its own.
    """
    each = {name: report.figures() for name, report in reports.items()}
    names = dict.fromkeys(n for figures in each.values() for n in figures)
    ratios = ("success_over_expert", "kept_at_")
    mean = {
        name: fmean(figures[name] for figures in each.values())
        for name in names
        if not name.startswith(ratios)
    }
    success, best = mean.get("success"), mean.get("expert_success")
    if success is not None and best:
        mean["success_over_expert"] = success / best
    for name in [n for n in mean if n.startswith("success_d") and n[9:].isdigit()]:
        if success:
            mean[f"kept_at_{name[8:]}"] = mean[name] / success
    of_task = {f"success_{n}": f["success"] for n, f in each.items() if "success" in f}
    return mean | of_task


def suite_table(title: str, reports: Mapping[str, Report]) -> Table:
    """One table of all tasks; of several, then the means of their rows. At most 80 columns."""
    caption = "late: delay in steps; won: share of n seeds; length: steps"
    table = Table(title=title, caption=caption, box=SIMPLE_HEAD, padding=(0, 0))
    for name in ("task", "who", "late", "K", "n", "won", "95%", "score", "length"):
        left = name in ("task", "who")
        table.add_column(name, justify="left" if left else "right", no_wrap=True)
    for task, report in reports.items():
        for number, (label, late, row) in enumerate(report.labelled()):
            interval = f"{row['low']:.2f}-{row['high']:.2f}"
            cells = [label, late, str(row["execute_steps"]), str(row["episodes"])]
            cells += [f"{row['success']:.3f}", interval]
            cells += [f"{row['score']:.3f}", f"{row['length']:.0f}"]
            table.add_row(task if number == 0 else "", *cells)
        table.add_section()
    if len(reports) < 2:
        return table
    several = zip(*(report.labelled() for report in reports.values()), strict=True)
    for number, same in enumerate(several):
        label, late, first = same[0]
        success, score, length = (
            fmean(float(str(row[name])) for _, _, row in same)
            for name in ("success", "score", "length")
        )
        seeds = sum(int(str(row["episodes"])) for _, _, row in same)
        cells = [label, late, str(first["execute_steps"]), str(seeds), f"{success:.3f}", ""]
        table.add_row("all" if number == 0 else "", *cells, f"{score:.3f}", f"{length:.0f}")
    return table
