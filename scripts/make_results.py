"""Renders docs/results.md from the result files in docs/results.

The page depends on the files alone: the same files give the same page.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

ROOT = Path(__file__).resolve().parents[1]
KEYS = ("command", "commit", "machine", "figures", "rows")
LONG = 30  # rows; a longer table is folded


@dataclass(frozen=True)
class Summary:
    """A table with one row for each file that has the first of some figures.

    Attributes:
        title: Its heading.
        keys: Figures, in columns.
        text: What they mean.
    """

    title: str
    keys: tuple[str, ...]
    text: str


SUMMARIES = (
    Summary(
        "Policies against their experts",
        (
            "success_over_expert",
            "success",
            "expert_success",
            "kept_at_d8",
            "untrained_success",
            "swapped_instruction_other",
        ),
        "`kept_at_d8`: what naive execution keeps of the success at a delay of 8 steps;\n"
        "`swapped_instruction_other`: told to deal with the other thing, how often it does.\n",
    ),
    Summary(
        "Schedules at zero delay",
        ("success_has", "success", "success_one_step", "success_has_meanflow"),
        "`success` is the constant schedule's; the same seeds for all.\n",
    ),
    Summary(
        "Recorded times of prefix and expert step, injected x1, x4 and x8: success",
        tuple(f"success_x{n}{name}" for n in (8, 4, 1) for name in ("_has", "")),
        "`_has` is the horizon-aware schedule, without it the constant one; each observes as\n"
        "often as one server sustains. Intervals are in the rows below.\n",
    ),
    Summary(
        "The same: event-to-motion [ms]",
        tuple(f"motion_ms_x{n}{name}" for n in (8, 4, 1) for name in ("_has", "")),
        "From the event to the first control tick at which the arm moves otherwise than without\n"
        "the event.\n",
    ),
    Summary(
        "Token cache against all rows, seed by seed",
        (
            "success_difference_learned",
            "mcnemar_p_learned",
            "success",
            "success_learned",
            "success_pixel",
            "success_random",
            "success_periodic",
            "rows_computed_learned",
        ),
        "`rows_computed`: share of the image tokens. The controls compute as many rows as the\n"
        "learned selector beside them; files without controls have slack time and the predictor.\n"
        "In the files named flicker the light flickers on a part of the table.\n",
    ),
)
HEAD = """\
# Results

Made by `make results` from the files in docs/results; edit neither by hand.
"""


@dataclass(frozen=True)
class Args:
    """Render docs/results.md from docs/results/*.json."""

    check: bool = False
    """Write nothing; fail when the page is not what the files give."""
    source: Path = ROOT / "docs" / "results"
    """Folder of the result files."""
    page: Path = ROOT / "docs" / "results.md"
    """The page."""


def render(source: Path) -> str:
    """Return the page for every *.json in or below `source`, in the order of their names."""
    documents = {
        file.relative_to(source).with_suffix("").as_posix(): _load(file)
        for file in sorted(source.rglob("*.json"))
    }
    sections = [_section(name, document) for name, document in documents.items()]
    return "\n".join([HEAD, *_summaries(documents), *(sections or ["No results yet.\n"])])


def _summaries(documents: Mapping[str, dict]) -> list[str]:
    parts = []
    for summary in SUMMARIES:
        rows = [
            {"file": name, **{key: document["figures"].get(key) for key in summary.keys}}
            for name, document in documents.items()
            if summary.keys[0] in document["figures"]
        ]
        if rows:
            parts += [f"## {summary.title}\n", _table(rows), summary.text]
    return parts


def _load(file: Path) -> dict:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file.name} is not JSON: {error}") from error
    missing = [key for key in KEYS if not isinstance(document, dict) or key not in document]
    if missing:
        raise ValueError(f"{file.name} lacks {missing}; a result file has {list(KEYS)}")
    return document


def _section(name: str, document: Mapping) -> str:
    machine = document["machine"]
    libraries = ", ".join(f"{lib} {version}" for lib, version in machine["libraries"].items())
    place = [f"{machine['cores']} cores", machine["processor"]]
    place += [machine["gpu"]] if "gpu" in machine else []
    parts = [
        f"## {name}\n",
        f"```\n{document['command']}\n```\n",
        f"Commit `{document['commit']}`. {', '.join(place)}. "
        f"Python {machine['python']}, {libraries}.\n",
    ]
    if document["figures"]:
        figures = [{"figure": key, "value": value} for key, value in document["figures"].items()]
        parts.append(_table(figures))
    rows = document["rows"]
    if len(rows) > LONG:
        summary = f"<details><summary>{len(rows)} rows</summary>\n"
        parts.append(f"{summary}\n{_table(rows)}\n</details>\n")
    elif rows:
        parts.append(_table(rows))
    return "\n".join(parts)


def _table(rows: Sequence[Mapping[str, object]]) -> str:
    """A Markdown table whose columns stand in the order in which they first appear."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    numeric = [
        all(_is_number(row[column]) for row in rows if row.get(column) is not None)
        for column in columns
    ]
    lines = [
        columns,
        ["---:" if number else "---" for number in numeric],
        *([_cell(row.get(column)) for column in columns] for row in rows),
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else f"{value:.4g}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.replace("|", "\\|").replace("\n", " ")


def main(args: Args) -> int:
    """Write the page, or compare it; return the exit status."""
    page = render(args.source)
    if not args.check:
        args.page.write_text(page, encoding="utf-8")
        return 0
    if args.page.is_file() and args.page.read_text(encoding="utf-8") == page:
        return 0
    print("docs/results.md is not what docs/results gives: run `make results`", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args)))
