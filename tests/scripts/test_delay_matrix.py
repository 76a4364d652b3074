"""The delay matrix: which cells, how each is run, and that a run goes on."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

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
from sim.collect import HORIZON
from sim.delay import Compute, Fixed
from sim.jitter import Jitter
from vla.checkpoint import WEIGHTS
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
        run_job(Job(cell, SCENES[-1], 0, WEIGHTS, TIMES, reaction=False))
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
