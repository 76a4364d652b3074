"""The bundled policies: they do their tasks, and they do them by looking and by listening.

The figures over 200 seeds are in docs/results.md; here a few seeds show that vision and language
are really used.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scripts.evaluate import Args, Job, plan, run_job
from vla.checkpoint import WEIGHTS
from vla.schedule import SCHEDULES

TASKS = ("whack", "intercept", "pick_place", "conveyor")
RESULTS = Path(__file__).parents[1] / "docs" / "results"
MEGABYTE = 1_000_000


def episodes(task: str, who: str, count: int, schedule: str = "constant") -> list:
    args = Args(task, who=(who,), schedule=(schedule,), delays=(0,))
    (case,) = plan(args)
    seeds = range(5_000, 5_000 + count)
    return [run_job(Job(args, case, seed)).episode for seed in seeds]


def share(values: list[bool]) -> float:
    return float(np.mean(values))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.timeout(600)
def test_policy_does_its_task_and_untrained_weights_do_not(task: str) -> None:
    trained = share([e.success for e in episodes(task, "policy", 16)])
    untrained = share([e.success for e in episodes(task, "untrained", 8)])
    assert trained >= 0.6
    assert untrained <= 0.15


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("schedule", SCHEDULES[1:])
@pytest.mark.timeout(600)
def test_policy_does_its_task_under_every_schedule(task: str, schedule: str) -> None:
    assert share([e.success for e in episodes(task, "policy", 10, schedule)]) >= 0.6


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.timeout(600)
def test_another_instruction_leads_to_the_other_thing(task: str) -> None:
    told_otherwise = episodes(task, "swap_instruction", 12)
    assert share([e.success for e in told_otherwise]) <= 0.2
    assert share([e.swapped for e in told_otherwise]) >= 0.5


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.timeout(600)
def test_frames_of_another_episode_lead_nowhere(task: str) -> None:
    blind = episodes(task, "swap_frames", 10)
    assert share([e.success for e in blind]) <= 0.3


@pytest.mark.parametrize("task", TASKS)
def test_weights_are_small_and_their_training_log_is_there(task: str) -> None:
    path: Path = WEIGHTS / f"{task}.safetensors"
    assert path.stat().st_size < 20 * MEGABYTE
    assert (WEIGHTS / f"{task}.json").is_file()
    assert (RESULTS / f"train_{task}.json").is_file()
