"""Turns a recording into a Rerun file: ``rerun out.rrd`` shows it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro
from numpy.typing import NDArray

from controller.errors import ErrorCode, OnsetError
from controller.record import Level
from controller.recorder_read import Recording, read_recording

if TYPE_CHECKING:
    import rerun

TIMELINE = "robot_time"
SOURCES = ("desired", "command", "measured")
COLOURS = {"desired": (130, 130, 130), "command": (40, 110, 220), "measured": (220, 60, 50)}
TIMES = ("late_ns", "busy_ns", "age_ns", "round_trip_ns")
CODES = ("mode", "reason")
LEVELS = {
    Level.DEBUG: "DEBUG",
    Level.INFO: "INFO",
    Level.WARNING: "WARN",
    Level.ERROR: "ERROR",
    Level.FATAL: "CRITICAL",
}


@dataclass(frozen=True)
class Args:
    """Turns a recording into a Rerun file, to look at with ``rerun FILE``.

    Each joint has a plot of its desired, commanded and measured position; the times of the ticks,
    the mode and the events stand below. The timeline is the robot's clock from the first record
    on. Needs the extra ``view``, and no viewer.

    Attributes:
        file: The recording, an MCAP file; a cut one is exported as far as it goes.
        output: The file to write; by default it stands beside the recording, and ends in .rrd.
    """

    file: Annotated[Path, tyro.conf.Positional]
    output: Path | None = None


def main(args: Args) -> None:
    recording = read_recording(args.file)
    for remark in recording.remarks():
        print(f"remark: {remark}")
    output = args.output or args.file.with_suffix(".rrd")
    export(recording, output)
    print(f"wrote {output}: {len(recording.records)} records, {len(recording.events)} events")


def export(recording: Recording, output: Path) -> None:
    """Writes a Rerun file.

    Args:
        recording: What to write.
        output: The file; its folder is made.

    Raises:
        OnsetError: UNAVAILABLE when the Rerun SDK is not installed.
    """
    rr = _rerun()
    meta, records = recording.meta, recording.records
    output.parent.mkdir(parents=True, exist_ok=True)
    stream = rr.RecordingStream(f"onset {meta.robot}", recording_id=recording.path.stem)
    stream.save(output, default_blueprint=_blueprint(recording))
    origin = int(records["time_ns"][0]) if len(records) else meta.started_ns
    index = _index(rr, records["time_ns"] - origin)
    for i, name in enumerate(meta.action_names):
        for source in SOURCES[:2]:
            _scalars(rr, stream, f"joints/{name}/{source}", index, records[source][:, i])
    for i, name in enumerate(meta.state_names):
        root = "joints" if name in meta.action_names else "state"
        _scalars(rr, stream, f"{root}/{name}/measured", index, records["measured"][:, i])
    for name in TIMES:
        values = records[name].astype(np.float64)
        # -1 is not a duration, but none. A tick may begin early.
        values[(values == -1) & (name != "late_ns")] = np.nan
        _scalars(rr, stream, f"times_ms/{name.removesuffix('_ns')}", index, values * 1e-6)
    for name in CODES:
        _scalars(rr, stream, name, index, records[name])
        _changes(rr, stream, recording, name, origin)
    _events(rr, stream, recording, origin)
    stream.flush()
    stream.disconnect()


def _rerun() -> ModuleType:
    try:
        import rerun
    except ImportError as error:
        raise OnsetError(
            ErrorCode.UNAVAILABLE,
            "rerun",
            f"no Rerun SDK ({error})",
            "an installation with the extra: pip install 'onset[view]'",
        ) from error
    return rerun


def _index(rr: ModuleType, times_ns: NDArray[np.int64]) -> Any:
    return rr.TimeColumn(TIMELINE, duration=times_ns.astype("timedelta64[ns]"))


def _scalars(
    rr: ModuleType, stream: rerun.RecordingStream, path: str, index: Any, values: NDArray
) -> None:
    source = path.rsplit("/", 1)[-1]
    look = rr.SeriesLines(names=source, colors=COLOURS.get(source))
    rr.log(path, look, static=True, recording=stream)
    columns = rr.Scalars.columns(scalars=values.astype(np.float64))
    rr.send_columns(path, [index], columns, recording=stream)


def _changes(
    rr: ModuleType, stream: rerun.RecordingStream, recording: Recording, name: str, origin: int
) -> None:
    """One line of text wherever a code changes."""
    codes = recording.records[name]
    if not len(codes):
        return
    at = np.flatnonzero(np.diff(codes, prepend=int(codes[0]) + 1))
    names = {"mode": recording.meta.mode_names, "reason": recording.meta.reason_names}[name]
    texts = [names.get(int(code), f"{name} {code}") for code in codes[at]]
    index = _index(rr, recording.records["time_ns"][at] - origin)
    columns = rr.TextLog.columns(text=texts, level=["INFO"] * len(texts))
    rr.send_columns(f"log/{name}", [index], columns, recording=stream)


def _events(
    rr: ModuleType, stream: rerun.RecordingStream, recording: Recording, origin: int
) -> None:
    if not recording.events:
        return
    index = _index(rr, np.array([e.time_ns for e in recording.events], np.int64) - origin)
    columns = rr.TextLog.columns(
        text=[event.text for event in recording.events],
        level=[LEVELS[event.level] for event in recording.events],
    )
    rr.send_columns("log/event", [index], columns, recording=stream)


def _blueprint(recording: Recording) -> Any:
    """A plot a joint; below them times, mode and events."""
    import rerun.blueprint as rrb

    joints = [
        rrb.TimeSeriesView(origin=f"/joints/{name}", name=f"{name} [{unit}]")
        for name, unit in zip(recording.meta.action_names, recording.meta.action_units, strict=True)
    ]
    below = rrb.Horizontal(
        rrb.TimeSeriesView(origin="/times_ms", name="times of the tick [ms]"),
        rrb.TimeSeriesView(origin="/mode", name="mode"),
        rrb.TextLogView(origin="/log", name="events"),
    )
    return rrb.Blueprint(rrb.Vertical(rrb.Grid(*joints), below, row_shares=[3, 1]))


if __name__ == "__main__":
    try:
        main(tyro.cli(Args))
    except (OnsetError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
