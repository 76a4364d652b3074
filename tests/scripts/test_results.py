import json
import subprocess

import numpy as np
import pytest

from scripts import make_results, results


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["scripts/evaluate.py", "--task", "whack"], "scripts/evaluate.py --task whack"),
        ([str(results.ROOT / "scripts/evaluate.py")], "scripts/evaluate.py"),
        (["a.py", f"--json={results.ROOT}/docs/results/a.json"], "a.py --json=docs/results/a.json"),
        (["a.py", "--json", "/somewhere/else/b.json"], "a.py --json b.json"),
        (["a.py", "--prompt", "hit the red mole"], "a.py --prompt 'hit the red mole'"),
    ],
)
def test_the_command_names_no_place_on_the_machine(argv, line):
    assert results.command_line(argv) == line


def test_a_file_holds_what_the_run_found(tmp_path):
    path = tmp_path / "deep" / "a.json"
    rows = [{"seed": np.int64(3), "success": np.bool_(True), "error": np.float32(0.5), "hit": None}]
    results.write_results(path, {"success": np.float64(0.75)}, rows, commit="abc")
    document = json.loads(path.read_text())
    assert list(document) == list(make_results.KEYS)
    assert document["commit"] == "abc"
    assert document["figures"] == {"success": 0.75}
    assert document["rows"] == [{"seed": 3, "success": True, "error": 0.5, "hit": None}]
    assert document["machine"]["cores"] >= 1
    assert document["machine"]["libraries"]["numpy"] == np.__version__
    assert [file.name for file in path.parent.iterdir()] == ["a.json"]


@pytest.mark.parametrize("figure", [float("nan"), float("inf")])
def test_a_figure_that_is_not_finite_is_refused_by_name(tmp_path, figure):
    with pytest.raises(ValueError, match="'success'"):
        results.write_results(tmp_path / "a.json", {"success": figure}, [])
    assert not (tmp_path / "a.json").exists()


def test_the_commit_tells_of_local_changes(tmp_path, monkeypatch):
    def git(*arguments):
        author = ("-c", "user.name=a", "-c", "user.email=a@b")
        done = subprocess.run(
            ["git", *author, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    monkeypatch.setattr(results, "ROOT", tmp_path)
    git("init")
    (tmp_path / "code.py").write_text("1")
    git("add", "code.py")
    git("commit", "-m", "first")
    head = git("rev-parse", "HEAD")
    assert results.code_commit() == head
    (tmp_path / "docs/results").mkdir(parents=True)
    (tmp_path / "docs/results/a.json").write_text("{}")
    assert results.code_commit() == head
    (tmp_path / "code.py").write_text("2")
    assert results.code_commit() == f"{head}-dirty"


def test_the_page_shows_the_command_the_figures_and_the_rows(tmp_path):
    rows = [{"seed": 0, "success": True}, {"seed": 1, "success": False, "note": "a|b"}]
    results.write_results(tmp_path / "b.json", {"success": 0.5}, rows, commit="abc")
    results.write_results(tmp_path / "a.json", {}, [{"seed": n} for n in range(50)], commit="abc")
    page = make_results.render(tmp_path)
    assert page == make_results.render(tmp_path)
    assert page.index("## a\n") < page.index("## b\n")
    assert f"```\n{results.command_line()}\n```" in page
    assert "| success | 0.5 |" in page
    assert "| seed | success | note |\n| ---: | --- | --- |\n| 0 | yes |  |\n" in page
    assert "| 1 | no | a\\|b |" in page
    assert "<details><summary>50 rows</summary>\n\n| seed |" in page


def test_check_fails_until_the_page_is_made(tmp_path):
    page = tmp_path / "results.md"
    check = make_results.Args(check=True, source=tmp_path / "results", page=page)
    assert make_results.main(check) == 1
    assert make_results.main(make_results.Args(source=check.source, page=page)) == 0
    assert make_results.main(check) == 0
    results.write_results(check.source / "a.json", {"success": 1.0}, [])
    assert make_results.main(check) == 1


def test_a_file_that_lacks_a_part_is_refused_by_name(tmp_path):
    (tmp_path / "a.json").write_text('{"command": "x"}')
    with pytest.raises(ValueError, match=r"a\.json lacks .*'commit'"):
        make_results.render(tmp_path)
