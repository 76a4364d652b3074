"""The tasks, by name."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from controller.errors import ErrorCode, OnsetError
from sim.task import Task
from sim.tasks.conveyor import Conveyor
from sim.tasks.intercept import Intercept
from sim.tasks.pick_place import PickPlace
from sim.tasks.whack import Whack

TASKS: dict[str, type[Task]] = {task.name: task for task in (Conveyor, Intercept, PickPlace, Whack)}


def make_task(name: str, **options: float) -> Task:
    """Builds a task.

    Args:
        name: One of ``TASKS``.
        options: The task's hardness parameters.

    Raises:
        OnsetError: Unknown name or option, or a value that is not allowed.
    """
    known = hardness(name)
    if unknown := sorted(set(options) - set(known)):
        raise OnsetError(ErrorCode.BAD_VALUE, f"task[{name}] options", unknown, list(known))
    return TASKS[name](**options)


def task_of(prompts: Sequence[str]) -> str:
    """The name of the task whose instructions a policy knows.

    Raises:
        OnsetError: BAD_VALUE: they are no task's.
    """
    for name, task in TASKS.items():
        if task.prompts == tuple(prompts):
            return name
    known = {name: task.prompts[0] for name, task in TASKS.items()}
    raise OnsetError(ErrorCode.BAD_VALUE, "prompts", list(prompts), f"a task's: {known}")


def hardness(name: str) -> dict[str, float]:
    """A task's hardness parameters and their defaults.

    Raises:
        OnsetError: Unknown name.
    """
    if name not in TASKS:
        raise OnsetError(ErrorCode.BAD_VALUE, "task", name, sorted(TASKS))
    parameters = inspect.signature(TASKS[name]).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters}
