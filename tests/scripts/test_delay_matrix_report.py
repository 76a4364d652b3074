"""What the delay matrix concludes from its episodes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from scripts.delay_matrix_cells import OURS, STALE, Cell
from scripts.delay_matrix_report import Report, paired, summary

MS = 1_000_000


def row(seed: int, success: bool, **changes) -> dict:
    base = {
        "seed": seed,
        "success": success,
        "steps": 50,
        "reaction_ns": None,
        "switches": [],
        "within": [],
        "jerk": 10.0,
        "hold": 0.0,
        "late": 0,
        "skipped": 0,
        "missed": 0,
        "squared_forecast_error": [0.0] * 6,
        "forecasts": 0,
    }
    return base | changes


def rows(wins: int, of: int = 20, **changes) -> list[dict]:
    """The first so many seeds are won."""
    return [row(seed, seed < wins, **changes) for seed in range(of)]


def cell(strategy: str, delay: int = 8, **changes) -> Cell:
    return Cell("whack", strategy, delay, **changes)


def test_a_cells_figures():
    found = summary(
        [
            row(0, True, steps=40, reaction_ns=100 * MS, switches=[0.1, 0.3], within=[0.1, 0.2]),
            row(1, True, steps=60, reaction_ns=300 * MS, switches=[0.2], within=[0.1, 0.4]),
            row(2, False, steps=99, hold=0.3, late=3),
            row(3, False, jerk=30.0, within=[0.0, 0.9]),
        ]
    )
    assert (found["episodes"], found["success"], found["reactions"]) == (4, 0.5, 2)
    assert (found["lower"], found["upper"]) == pytest.approx((0.15, 0.85), abs=1e-3)
    assert found["reaction_mean_ms"] == found["reaction_p50_ms"] == 200.0
    assert found["switch_p50"] == pytest.approx(0.2)
    assert found["switch_p99"] == pytest.approx(0.298)
    assert found["within_p99"] == pytest.approx(0.4)  # the median episode's
    assert (found["jerk"], found["hold"], found["late"]) == (15.0, 0.075, 0.75)
    assert found["finish_steps"] == 50.0  # of those that were won
    nothing = summary([row(0, False)])
    assert [nothing[n] for n in ("reaction_mean_ms", "switch_p99", "finish_steps")] == [None] * 3


def test_episodes_are_paired_by_their_seeds():
    ours = [row(0, True), row(1, True), row(2, False), row(3, True)]
    other = [row(3, True), row(2, True), row(1, False), row(9, True)]
    assert paired(ours, other) == (1, 1, 1.0)
    assert paired(rows(6), rows(0)) == (6, 0, 2 / 2**6)


@pytest.mark.parametrize(
    ("naive", "prefix", "best"),
    [
        (0, 10, 1.0),  # both below with p < .05
        (0, 15, 0.5),  # 16 against 15 is a tie
        (0, 20, 0.5),  # four seeds more are not enough to lose
        (0, 16, 0.5),
    ],
)
def test_ours_is_the_best_where_each_rival_is_below_it_beyond_chance(naive, prefix, best):
    found = Report(
        {
            cell(OURS): rows(16),
            cell("naive"): rows(naive),
            cell("prefix"): rows(prefix),
            cell("oracle"): rows(20),  # no rivals
            cell(STALE): rows(20),
        }
    ).figures()
    assert found["best_at_8_whack"] == best
    assert found["best_at_8_whack_margin"] == pytest.approx((16 - max(naive, prefix)) / 20)


def test_it_is_not_where_one_rival_is_above():
    cells = {cell(OURS): rows(10), cell("naive"): rows(0), cell("prefix"): rows(18)}
    assert Report(cells).figures()["best_at_8_whack"] == 0.0  # 8 to 0


def test_early_delays_and_cells_without_ours_have_no_verdict():
    cells = {cell(OURS, 2): rows(10), cell("naive", 2): rows(0), cell("naive", 8): rows(0)}
    assert Report(cells).figures() == {}


def test_with_recorded_times_there_is_a_verdict_for_each_scale():
    def scaled(strategy: str, scale: float) -> Cell:
        return Cell("whack easy", strategy, None, scale)

    cells = {scaled(OURS, 8.0): rows(20), scaled("naive", 8.0): rows(5)}
    cells |= {scaled(OURS, 1.0): rows(20), scaled("naive", 1.0): rows(20)}
    found = Report(cells).figures()
    assert (found["best_at_x8_whack_easy"], found["best_at_x1_whack_easy"]) == (1.0, 0.5)
    assert found["best_at_x8_whack_easy_margin"] == 0.75


def test_what_ours_keeps_is_held_against_what_late_eyes_leave():
    cells = {cell(OURS, 0): rows(16), cell(OURS, 4): rows(12), cell(OURS, 8): rows(8)}
    cells |= {cell(STALE, 0): rows(20), cell(STALE, 4): rows(18), cell(STALE, 8): rows(10)}
    cells |= {cell(OURS, 12): rows(1), cell(STALE, 12): rows(1)}  # past what is asked
    found = Report(cells).figures()
    assert {name: found[name] for name in found if "bound" in name} == {
        "ours_over_bound_d4_whack": pytest.approx((12 / 16) / (18 / 20)),
        "ours_over_bound_d8_whack": pytest.approx((8 / 16) / (10 / 20)),
    }
    cells[cell(STALE, 8)] = rows(0)  # nothing to be held against
    assert "ours_over_bound_d8_whack" not in Report(cells).figures()


def test_a_switch_is_held_against_the_steps_of_a_chunk_that_is_waited_for():
    cells = {
        cell(OURS): rows(10, switches=[0.06]),
        cell("sync"): rows(10, switches=[0.5], within=[0.01, 0.04]),
    }
    assert Report(cells).figures()["switch_over_sync_whack"] == pytest.approx(1.5)


def test_how_much_faster_it_is_at_twice_the_speed():
    def pick(delay: int, q: int) -> Cell:
        return Cell("pick_place", OURS, delay, speedup=q)

    cells = {pick(4, 1): rows(20, steps=90), pick(4, 2): rows(18, steps=60)}
    cells |= {pick(0, 2): rows(20)}  # without its pair
    report = Report(cells)
    found = {name: v for name, v in report.figures().items() if "speedup" in name}
    assert found == {"speedup_q2_d4": 1.5, "speedup_q2_d4_loss": pytest.approx(0.1)}
    assert any("q actions merged" in str(table.title) for table in report.tables())


def test_forecasts_are_compared_by_their_worst_joint():
    cells = {
        cell("forecast"): rows(1, 2, squared_forecast_error=[1.0] * 6, forecasts=4),
        cell("last_command"): rows(
            1, 2, squared_forecast_error=[16.0, 4.0, *[16.0] * 4], forecasts=4
        ),
    }
    found = Report(cells).figures()
    assert found["forecast_over_last_command_rms_closed"] == pytest.approx(0.5)


@pytest.mark.parametrize(("moved", "ratio"), [(4.0, 0.25), (0.0, None)])
def test_a_joint_that_stood_still_tells_nothing_of_forecasts(moved, ratio):
    squares = {"forecast": [moved / 16, *[0.0] * 5], "last_command": [moved, 1e-25, *[0.0] * 4]}
    cells = {
        cell(name): rows(1, 2, squared_forecast_error=errors, forecasts=2)
        for name, errors in squares.items()
    }
    assert Report(cells).figures().get("forecast_over_last_command_rms_closed") == ratio


def test_each_row_says_what_it_is_and_how_it_compares_with_ours():
    cells = {
        cell(OURS): rows(16),
        cell("naive"): rows(8),
        cell(STALE): rows(16),
        cell("naive", 4): rows(8),
        cell("sync"): [],  # not run yet
    }
    found = {(r["strategy"], r["delay"]): r for r in Report(cells).rows()}
    assert len(found) == 4
    assert found["naive", 8]["p_ours"] == 2 / 2**8
    assert found[OURS, 8]["p_ours"] is None
    assert found["naive", 4]["p_ours"] is None
    assert (found[OURS, 8]["schedule"], found["naive", 8]["schedule"]) == ("has", "constant")
    assert found[STALE, 8]["schedule"] is None
    json.dumps(list(found.values()))


def test_tables_and_plots_of_everything(tmp_path):
    cells = {
        cell(name, delay): rows(10, reaction_ns=200 * MS, switches=[0.1, 0.2], within=[0.1, 0.2])
        for name in (OURS, "naive", STALE)
        for delay in (0, 8)
    }
    cells[cell("naive")] = rows(2)
    cells |= {cell(OURS, 8, jitter=0.3): rows(3), Cell("whack", OURS, None, 8.0): rows(4)}
    report = Report(cells)
    titles = [str(table.title) for table in report.tables()]
    assert titles == [
        "whack: success at equal delay [steps]",
        "whack: success, each paying its own time, times x",
        "whack: success under jitter (sigma .3) around",
        "whack: motion at d = 8",
    ]
    success = report.tables()[0]
    assert [str(column.header) for column in success.columns] == ["strategy", "0", "8"]
    columns = [list(column.cells) for column in success.columns]
    assert columns[0] == ["[bold]onset[/bold]", "naive", STALE]
    assert columns[2][0].startswith("0.50 (")
    assert columns[2][1].endswith(" <")
    assert not columns[1][1].endswith("<")
    paths = report.plot(tmp_path)
    assert [path.name for path in paths] == ["success.png", "reaction.png", "switch.png"]
    assert all(Path(path).stat().st_size > 1000 for path in paths)
    assert Report({}).plot(tmp_path) == []
    assert np.isfinite(list(report.figures().values())).all()
