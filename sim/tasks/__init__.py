"""The tasks, by name."""

from __future__ import annotations

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
        OnsetError: Unknown name or option.
    """
    if name not in TASKS:
        raise OnsetError(ErrorCode.BAD_VALUE, "task", name, sorted(TASKS))
    try:
        return TASKS[name](**options)
    except TypeError as error:
        raise OnsetError(ErrorCode.BAD_VALUE, f"task[{name}] options", options, error) from error
