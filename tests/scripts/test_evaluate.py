"""What an evaluation runs and what it makes of the outcomes."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from controller.errors import OnsetError
from controller.loop_types import Counters
from controller.types import CacheFigures
from scripts.evaluate import Args, main, plan
from scripts.evaluate_cases import (
    Case,
    Variant,
    conditions,
    hardness_options,
    make_cases,
    recorded_times,
)
from scripts.evaluate_report import Outcome, Report
from sim.delay import Compute, Fixed
from sim.rollout import Episode

PERIOD = 40_000_000
CONSTANT = Variant("constant", 10, (10,) * 32)
HAS = Variant("has", 10, (1, 3, 3, 4, 4, 5) + (10,) * 26)


@pytest.fixture
def times(tmp_path: Path) -> Path:
    rows = [
        {"where": "parts", "what": "prefix", "p50_ms": 2.0, "p99_ms": 3.0},
        {"where": "parts", "what": "expert step", "p50_ms": 1.5, "p99_ms": 3.0},
        {"where": "in process", "what": "prefix", "p50_ms": 9.0, "p99_ms": 9.0},
    ]
    path = tmp_path / "ttfa.json"
    path.write_text(json.dumps({"rows": rows}))
    return path


def outcome(won: bool, motion_ms: int | None = None) -> Outcome:
    episode = Episode(0, "hit the red mole", won, float(won), False, 100, Counters())
    return Outcome(episode, None if motion_ms is None else motion_ms * 1_000_000)


def report(results: dict[Case, list[bool]]) -> Report:
    return Report({case: [outcome(won) for won in wins] for case, wins in results.items()})


def cases(variants=(CONSTANT,), who=("policy", "expert"), delays=(0, 8)) -> list[Case]:
    found = conditions(delays, (), Path("none"), PERIOD)
    return make_cases(who, variants, found, 4, 1, 8, PERIOD)


def test_recorded_times_become_the_time_of_the_computation(times) -> None:
    assert recorded_times(times) == (2e6, 1.5e6)
    found = conditions((0, 2), (1, 4), times, PERIOD)
    assert [c.latency for c in found] == [
        Fixed(0),
        Fixed(2 * PERIOD),
        Compute(2_000_000, 1_500_000),
        Compute(8_000_000, 6_000_000),
    ]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rows": [{"where": "parts"}]}'])
def test_a_file_without_times_is_told(tmp_path, text) -> None:
    path = tmp_path / "other.json"
    with pytest.raises(OnsetError, match="times"):
        recorded_times(path)
    path.write_text(text)
    with pytest.raises(OnsetError, match="expert step"):
        recorded_times(path)


def test_every_schedule_runs_with_every_number_of_steps_and_one_step_once() -> None:
    found = plan(Args("intercept", who=("policy",), schedule=("constant", "has"), steps=(4, 10)))
    named = [(c.variant.schedule, c.variant.steps, c.condition.delay) for c in found]
    assert named == [
        (name, steps, delay)
        for delay in (0, 8)
        for name in ("constant", "has")
        for steps in (4, 10)
    ]
    one = Variant("one_step", 1, (1,) * 32)
    assert [c.variant for c in cases(variants=(one,), delays=(0,))] == [one, one]


def test_a_reference_line_runs_once_for_a_quarter_of_the_episodes() -> None:
    found = cases(variants=(CONSTANT, HAS), who=("policy", "expert", "still"))
    assert [(c.who, c.schedule, c.condition.delay, c.episodes) for c in found] == [
        ("policy", "constant", 0, 8),
        ("policy", "has", 0, 8),
        ("policy", "constant", 8, 8),
        ("policy", "has", 8, 8),
        ("expert", None, 0, 8),
        ("expert", None, 8, 8),
        ("still", None, 0, 2),
    ]


def test_auto_observes_as_often_as_the_server_sustains(times) -> None:
    found = conditions((0,), (4,), times, PERIOD)
    chosen = make_cases(("policy", "expert"), (HAS, CONSTANT), found, None, 1, 8, PERIOD)
    cadences = [(c.who, c.schedule, c.cadence.execute_steps, c.cadence.executed) for c in chosen]
    assert cadences == [
        ("policy", "has", 1, 32),
        ("policy", "constant", 1, 32),
        ("policy", "has", 1, 2),
        ("policy", "constant", 2, 4),
        ("expert", None, 1, 32),
        ("expert", None, 2, 4),  # a whole chunk after the last step
    ]


def test_hardness_is_parsed_by_the_tasks_parameters() -> None:
    options = hardness_options("whack", ("up_min=0.4", "appearances=3"))
    assert options == {"up_min": 0.4, "appearances": 3}
    assert isinstance(options["appearances"], int)
    for pair in ("up=1", "up_min", "up_min=soon", "appearances=1.5"):
        with pytest.raises(OnsetError, match="up_max") as refusal:
            hardness_options("whack", (pair,))
        assert pair in str(refusal.value)


def test_figures_of_the_constant_schedule_keep_their_names() -> None:
    found = cases(who=("policy", "expert", "untrained", "swap_instruction"))
    wins = [[True] * 6 + [False] * 2, [True] * 3 + [False] * 5, [True] * 8, [True] * 4]
    figures = report(dict(zip(found, [*wins, [False] * 2, [False] * 2], strict=True))).figures()
    assert figures == {
        "success": 0.75,
        "success_d8": 0.375,
        "expert_success": 1.0,
        "expert_success_d8": 1.0,
        "untrained_success": 0.0,
        "swapped_instruction_success": 0.0,
        "swapped_instruction_other": 0.0,
        "success_over_expert": 0.75,
        "kept_at_d8": 0.5,
    }


def test_another_schedule_is_compared_with_the_first_seed_by_seed() -> None:
    found = cases(variants=(CONSTANT, HAS), who=("policy",), delays=(0,))
    made = report({found[0]: [True, True, False, True], found[1]: [True, False, True, True]})
    first, second = made.rows
    assert (first["only_this"], first["only_first"], first["p"]) == (None, None, None)
    assert (second["only_this"], second["only_first"], second["p"]) == (1, 1, 1.0)
    assert made.figures() == {"success": 0.75, "success_has": 0.75}


def test_steps_are_named_where_a_schedule_has_several() -> None:
    few = Variant("has", 4, (1,) + (4,) * 31)
    found = cases(variants=(CONSTANT, HAS, few), who=("policy",), delays=(0,))
    figures = report({case: [True] for case in found}).figures()
    assert list(figures) == ["success", "success_has_n10", "success_has_n4"]


def test_motion_is_averaged_over_the_episodes_in_which_the_arm_moved(times) -> None:
    found = conditions((), (4,), times, PERIOD)
    (case,) = make_cases(("policy",), (HAS,), found, None, 1, 4, PERIOD)
    made = Report({case: [outcome(True, 80), outcome(True, 120), outcome(False), outcome(False)]})
    (row,) = made.rows
    assert (row["motion_ms"], row["reacted"]) == (100.0, 2)
    assert row["motion_low"] == pytest.approx(100 - 1.96 * 20)
    assert made.figures() == {"success_x4_has": 0.5, "motion_ms_x4_has": 100.0}
    assert "delay" not in made.filled_rows()[0]


def test_the_table_fits_80_columns(times) -> None:
    meanflow = Variant("has_meanflow", 10, HAS.ready_at)
    found = conditions((), (0.5, 8), times, PERIOD)
    chosen = make_cases(("policy", "expert"), (CONSTANT, meanflow), found, None, 1, 400, PERIOD)
    # Each wins where the other does not, but for a few seeds: the widest cells there are.
    wins = {name: n for n, name in enumerate(("constant", "has_meanflow"))}
    made = Report(
        {
            case: [
                outcome(i < 20 or i % 3 == wins[case.variant.schedule], 130 + i) for i in range(400)
            ]
            for case in chosen
        }
    )
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(made.table("whack"))
    text = console.export_text()
    assert "…" not in text
    assert "has_meanflow " in text


@pytest.mark.timeout(120)
def test_an_evaluation_from_end_to_end(tmp_path, times) -> None:
    main(
        Args(
            "intercept",
            episodes=2,
            who=("policy",),
            schedule=("constant", "has"),
            scales=(4,),
            times=times,
            execute_steps="auto",
            hardness=("kick_probability=1",),
            workers=1,
            json=tmp_path / "found.json",
            plot=tmp_path / "found.png",
        )
    )
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert [(r["schedule"], r["steps"], r["execute_steps"]) for r in rows] == [
        ("constant", 10, 2),
        ("has", 10, 1),
    ]
    # The first step of an episode waits for the first action, and no other one does.
    assert [r["starved"] for r in rows] == [2, 1]
    assert all(r["motion_ms"] > 0 for r in rows)
    assert (tmp_path / "found.png").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_run_is_told_before_anything_runs() -> None:
    with pytest.raises(OnsetError, match="kick_from"):
        main(Args("intercept", hardness=("gravity=2",)))
    with pytest.raises(OnsetError, match="at least 1"):
        main(Args("intercept", steps=(0,)))


def test_caches_are_compared_seed_by_seed_with_the_first() -> None:
    first, second = CONSTANT, Variant("constant", 10, CONSTANT.ready_at, "learned")
    found = cases(variants=(first, second), who=("policy",), delays=(0,))
    wins = {found[0]: [True, True, False, True], found[1]: [True, False, True, True]}
    figures = (CacheFigures(64, 64, 0, "first frame of the session", 0), CacheFigures(64, 16, 1))
    outcomes = {
        case: [
            replace(outcome(won), cache=figures if case.variant.cache != "off" else ())
            for won in won_of
        ]
        for case, won_of in wins.items()
    }
    made = Report(outcomes)
    rows = made.filled_rows()
    assert [row["cache"] for row in rows] == ["off", "learned"]
    assert (rows[1]["only_this"], rows[1]["only_first"]) == (1, 1)
    assert rows[1]["rows_computed"] == pytest.approx(0.625)
    assert rows[1]["dense_reasons"] == "first frame of the session 4"
    assert rows[0]["max_age"] is None
    numbers = made.figures()
    assert numbers["success"] == 0.75
    assert numbers["success_difference_learned"] == 0
    assert numbers["mcnemar_p_learned"] == 1


def test_a_cache_that_needs_rows_or_is_unknown_is_told_before_it_runs() -> None:
    with pytest.raises(OnsetError, match="cache_rows"):
        plan(Args("intercept", who=("policy",), cache=("off", "pixel")))
    found = plan(Args("intercept", who=("policy",), cache=("off", "learned"), delays=(0,)))
    assert [case.variant.cache for case in found] == ["off", "learned"]
