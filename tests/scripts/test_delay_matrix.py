"""The delay matrix: which cells, how each is run, that a run goes on, and what it concludes."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from controller.errors import OnsetError
from controller.strategy import STRATEGIES
from scripts import delay_matrix
from scripts.delay_matrix import Args, main, make_cells
from scripts.delay_matrix_cells import (
    GUIDED_STEP,
    MAX_DELAY,
    OURS,
    RESERVE,
    SCENES,
    STALE,
    Cell,
    Job,
    make_way,
    run_job,
)
from scripts.delay_matrix_report import Report, paired, summary
from sim.collect import HORIZON
from sim.delay import Compute, Fixed
from sim.jitter import Jitter
from vla.schedule import make_schedule

MS = 1_000_000
PERIOD = 40 * MS
TIMES = (20.0 * MS, 10.0 * MS)  # prefix and expert step


# Cells


def kinds(cells: list[Cell]) -> Counter:
    def kind(cell: Cell) -> str:
        if cell.scale is not None:
            return "scaled"
        return "jittered" if cell.jitter else "faster" if cell.speedup > 1 else "plain"

    return Counter(kind(cell) for cell in cells)


def test_the_whole_matrix():
    cells = make_cells(Args())
    # 8 scenes, 7 delays, 10 strategies and the stale expert; 7 scenes have something that moves.
    assert kinds(cells) == {
        "plain": 8 * 7 * 11,
        "jittered": 7 * 2 * 10,
        "scaled": 3 * 7 * 9,  # the oracle pays for nothing
        "faster": 2 * 4,
    }
    assert len({cell.key for cell in cells}) == len(set(cells)) == len(cells)
    assert {cell.execute_steps for cell in cells} == {4}
    assert {cell.scene for cell in cells} == {scene.name for scene in SCENES}


def test_the_quick_one():
    cells = make_cells(Args(quick=True))
    assert kinds(cells) == {"plain": 4 * 3 * 6, "scaled": 3 * 5, "faster": 2 * 4}
    assert {c.delay for c in cells if c.scale is None} == {0, 4, 8}
    assert {c.scale for c in cells if c.delay is None} == {8.0}


def test_only_what_is_asked_for():
    args = Args(
        scenes=("whack",), strategies=("naive", STALE), delays=(0, 3), scales=(2.0,), jitters=(0.1,)
    )
    cells = make_cells(args)
    assert kinds(cells) == {"plain": 4, "jittered": 2, "scaled": 1}
    assert {c.strategy for c in cells if c.jitter or c.scale} == {"naive"}
    assert {c.execute_steps for c in make_cells(replace(args, execute_steps=6))} == {6}
    assert not kinds(make_cells(replace(args, scenes=("pick_place",))))["scaled"]


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("field", ["scenes", "strategies"])
def test_an_unknown_name_is_refused_with_those_that_there_are(field, quick):
    known = {"scenes": "whack easy", "strategies": STALE}[field]
    with pytest.raises(OnsetError, match=rf"{field}: given \['whale'\]; allowed: .*{known}"):
        make_cells(replace(Args(quick=quick), **{field: ("whale",)}))


def test_limits_are_those_of_a_robot_file_that_there_is():
    assert {c.robot for c in make_cells(Args())} == {"so101-sim"}
    assert {c.robot for c in make_cells(Args(limits=None))} == {None}
    with pytest.raises(OnsetError, match="so101-simm"):
        make_cells(Args(limits="so101-simm"))


def test_within_limits_the_arm_starts_more_softly():
    """Of the same expert on the same seed."""
    straight = Cell("pick_place", STALE, 0)
    rows = [
        run_job(Job(cell, SCENES[-1], 0, Path(), TIMES, reaction=False))
        for cell in (straight, replace(straight, robot="so101-sim"))
    ]
    assert all(row["success"] for row in rows)
    assert rows[1]["jerk"] < 0.8 * rows[0]["jerk"]


def test_a_name_for_files_tells_everything_that_a_cell_is():
    assert Cell("whack easy", "naive", 4).key == "whack_easy-naive-d4-k4-n5"
    other = Cell("whack", OURS, None, 8.0, 0.3, 2, 6, 10)
    assert other.key == "whack-onset-x8-k6-n10-j0.3-q2"
    assert replace(other, robot="so101-sim").key == "whack-onset-x8-k6-n10-j0.3-q2-so101-sim"
    assert replace(other, robot="arms/mine.yaml").key == "whack-onset-x8-k6-n10-j0.3-q2-mine"


# How a cell is run


@pytest.mark.parametrize("name", STRATEGIES)
def test_with_a_delay_it_is_known_unless_it_jitters(name):
    way = make_way(Cell("whack", name, 6), STRATEGIES[name], TIMES, PERIOD)
    assert (way.latency, way.executed) == (Fixed(6 * PERIOD), None)
    delayed = STRATEGIES[name].delayed
    assert way.config.delay_steps == (6 if delayed else None)
    assert (way.config.execute_steps, way.config.strategy) == (4, name)
    assert way.config.keep_velocity
    way = make_way(Cell("whack", name, 6, jitter=0.3), STRATEGIES[name], TIMES, PERIOD)
    assert way.latency == Jitter(Fixed(6 * PERIOD), 0.3)
    assert (way.config.delay_steps, way.config.max_delay) == (None, MAX_DELAY)


# Ten expert steps: (20 + 10 * 10) ms = 3 periods; four times and eight times as much 12 and 24.
@pytest.mark.parametrize(
    ("name", "scale", "execute_steps"),
    [
        ("naive", 1.0, 4),  # never less than the cell's
        ("naive", 2.0, 6),
        ("naive", 4.0, 12),
        ("naive", 8.0, 24),
        ("sync", 4.0, 12),
        ("forecast", 8.0, 24),
        ("rtc", 1.0, 8),  # (20 + 10 * 29) ms = 7.75 periods
        ("rtc_identity", 2.0, 16),
    ],
)
def test_an_observation_is_due_when_the_server_is_free(name, scale, execute_steps):
    cell = Cell("whack", name, None, scale, expert_steps=10)
    way = make_way(cell, STRATEGIES[name], TIMES, PERIOD)
    assert (way.config.execute_steps, way.executed) == (execute_steps, None)
    step_ns = scale * 10 * MS * (GUIDED_STEP if name.startswith("rtc") else 1)
    assert way.latency == Compute(round(scale * 20 * MS), round(step_ns))
    assert way.config.delay_steps is None
    assert way.config.margin_ns == -PERIOD // 4


@pytest.mark.parametrize("scale", [1.0, 4.0, 8.0])
def test_ours_stops_behind_what_is_executed(scale):
    cell = Cell("whack", OURS, None, scale, expert_steps=10)
    way = make_way(cell, STRATEGIES[OURS], TIMES, PERIOD)
    # Where it catches up, after the longest delay: one step to judge by, and the rest.
    table = make_schedule("has", HORIZON, 0, 10, unused=MAX_DELAY)

    def fits(execute_steps: int) -> bool:
        steps = 1 + table.steps_for(min(HORIZON, execute_steps + RESERVE + MAX_DELAY))
        return scale * (20 + steps * 10) <= execute_steps * 40

    found = next(k for k in range(4, 99) if fits(k))
    assert (way.config.execute_steps, way.executed) == (found, found + RESERVE)


# A run


class Pool:
    """Runs everything here, and notes what."""

    def __init__(self, *_, initializer) -> None:
        self.seeds: list[int] = []

    def __enter__(self) -> Pool:
        ran.append(self.seeds)
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def imap(self, function, jobs, chunksize: int):
        for job in jobs:
            self.seeds.append(job.seed)
            yield function(job)


ran: list[list[int]] = []


def test_a_run_goes_on_where_it_was(tmp_path, monkeypatch):
    ran.clear()
    monkeypatch.setattr(delay_matrix.multiprocessing, "get_context", lambda _: _Context)
    monkeypatch.setattr(delay_matrix, "code_commit", lambda: "abc")
    found = tmp_path / "found.json"
    args = Args(
        scenes=("intercept",),
        strategies=(STALE,),
        delays=(0, 8),
        jitters=(),
        scales=(),
        episodes=2,
        out=tmp_path,
        plots=tmp_path,
        json=found,
    )
    main(args)
    assert ran == [[0, 0, 1, 1]]
    files = sorted((tmp_path / "abc").glob("*.jsonl"))
    assert [file.name for file in files] == [
        "intercept-stale_expert-d0-k4-n5-so101-sim.jsonl",
        "intercept-stale_expert-d8-k4-n5-so101-sim.jsonl",
    ]
    texts = [file.read_text() for file in files]
    assert [[json.loads(line)["seed"] for line in text.splitlines()] for text in texts] == [
        [0, 1],
        [0, 1],
    ]
    document = json.loads(found.read_text())
    assert [(row["delay"], row["episodes"]) for row in document["rows"]] == [(0, 2), (8, 2)]
    # All is there.
    main(args)
    assert ran[1:] == [[]]
    # The last line was cut short, and one more is asked for; a third run still reads it all.
    files[1].write_text(texts[1][:-20])
    main(replace(args, episodes=3))
    assert ran[2:] == [[1, 2, 2]]
    main(replace(args, episodes=3))
    assert ran[3:] == [[]]
    assert files[1].read_text().startswith(texts[1])
    # Fewer episodes: the others are not counted.
    main(replace(args, episodes=1))
    document = json.loads(found.read_text())
    assert [row["episodes"] for row in document["rows"]] == [1, 1]
    # Other code begins anew.
    monkeypatch.setattr(delay_matrix, "code_commit", lambda: "abd")
    main(replace(args, episodes=1, delays=(0,)))
    assert ran[-1] == [0]


class _Context:
    Pool = Pool


# What it concludes


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
