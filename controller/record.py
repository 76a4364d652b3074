"""What is recorded of every tick, and of the run as a whole.

The executor fills one record a tick and puts it into a ring in shared memory; the recorder process
drains the ring into a file. A record is a row of a numpy structured array, so that it crosses
memory as plain bytes. With A action and S state dimensions:

==============  ====  ======  =====================================================================
field           type  unit    meaning
==============  ====  ======  =====================================================================
tick            i8    1       counts up within a run
time_ns         i8    ns      robot's clock: when the tick was due
late_ns         i8    ns      start of the tick behind ``time_ns``
busy_ns         i8    ns      duration of the tick before, with all that it wrote; 0 at first
step            i8    1       policy step under way
episode         i8    1       counts up within a run
observation_id  i8    1       observation that the action answers; -1 where there is no action
age_ns          i8    ns      since the plan was last renewed; -1 where there was none yet
round_trip_ns   i8    ns      newest measured round trip; -1 where it is not known
desired         f8    action  the policy's action for this step as it came; NaN for none. Shape (A,)
target          f8    action  where the interpolation wanted to be at this tick. Shape (A,)
command         f8    action  written to the robot. Shape (A,)
velocity        f8    /s      first derivative of the command. Shape (A,)
acceleration    f8    /s^2    second derivative of the command. Shape (A,)
measured        f4    state   as the robot reported it. Shape (S,)
clamped         u4    bits    bit i: action dimension i was cut to its limits
mode            u1    code    rung of the watchdog's ladder, 0 is RUNNING
reason          u1    code    why the mode is not RUNNING
refused         u1    0, 1    1: the action was not finite, and was not used
==============  ====  ======  =====================================================================

An event is a line of text at a time, for what happens seldom: a change of mode, a lost session.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from enum import IntEnum
from importlib import metadata
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controller.bounds import check_range
from controller.errors import ErrorCode, OnsetError
from controller.types import RobotSpec

MAX_ACTIONS = 32  # the bits of ``clamped``
MAX_STATES = 256
NO_OBSERVATION = -1
UNKNOWN_NS = -1


class Level(IntEnum):
    """How much an event matters, numbered as in Foxglove's log schema."""

    DEBUG = 1
    INFO = 2
    WARNING = 3
    ERROR = 4
    FATAL = 5


EVENT_DTYPE = np.dtype([("time_ns", "<i8"), ("level", "u1"), ("text", "S240")])


def record_dtype(actions: int, states: int) -> np.dtype:
    """Returns the type of one record; its fields are in the table above.

    Args:
        actions: A, at most 32.
        states: S, at most 256.

    Raises:
        OnsetError: BAD_VALUE when a count is out of range.
    """
    check_range("actions", actions, 1, MAX_ACTIONS)
    check_range("states", states, 1, MAX_STATES)
    counts = (
        "tick", "time_ns", "late_ns", "busy_ns", "step", "episode", "observation_id", "age_ns",
        "round_trip_ns",
    )  # fmt: skip
    vectors = ("desired", "target", "command", "velocity", "acceleration")
    # Wide fields first: each stands on a multiple of its own size without padding.
    return np.dtype(
        [(name, "<i8") for name in counts]
        + [(name, "<f8", (actions,)) for name in vectors]
        + [("measured", "<f4", (states,)), ("clamped", "<u4")]
        + [(name, "u1") for name in ("mode", "reason", "refused")]
    )


def new_records(count: int, actions: int, states: int) -> NDArray[np.void]:
    """Returns records that say nothing yet: no observation, no times, NaN vectors. Shape (n,)."""
    records = np.zeros(count, record_dtype(actions, states))
    for name in ("desired", "target", "command", "velocity", "acceleration", "measured"):
        records[name] = np.nan
    records["observation_id"] = NO_OBSERVATION
    records["age_ns"] = records["round_trip_ns"] = UNKNOWN_NS
    return records


def new_event(time_ns: int, level: Level, text: str) -> NDArray[np.void]:
    """Returns one event, shape (1,); text beyond 240 bytes of UTF-8 is cut between characters."""
    width = EVENT_DTYPE["text"].itemsize
    kept = text.encode()[:width].decode(errors="ignore").encode()
    return np.array([(time_ns, int(level), kept)], EVENT_DTYPE)


@dataclass(frozen=True)
class RecordMeta:
    """What a file of records must say to be read on its own.

    Attributes:
        robot: Robot model, as in its spec.
        state_names: Length S.
        state_units: Length S.
        action_names: Length A.
        action_units: Length A.
        period_ns: Policy period [ns].
        control_period_ns: Control period [ns].
        strategy: How chunks take over from each other.
        prompt: The instruction at the start.
        server: host:port of the policy server; empty where it is not known.
        model: The policy; empty where it is not known.
        mode_names: What the codes in ``mode`` are called.
        reason_names: What the codes in ``reason`` are called.
        extra: Whatever else the run wants to keep, e.g. ``task`` and ``seed`` of a simulated one.
        started: Wall time at the start, ISO 8601 with its zone.
        started_ns: Robot's clock at the same instant [ns].
        version: Onset's version.
    """

    robot: str
    state_names: tuple[str, ...]
    state_units: tuple[str, ...]
    action_names: tuple[str, ...]
    action_units: tuple[str, ...]
    period_ns: int
    control_period_ns: int
    strategy: str = ""
    prompt: str = ""
    server: str = ""
    model: str = ""
    mode_names: Mapping[int, str] = field(default_factory=dict)
    reason_names: Mapping[int, str] = field(default_factory=dict)
    extra: Mapping[str, str] = field(default_factory=dict)
    started: str = ""
    started_ns: int = 0
    version: str = ""

    def __post_init__(self) -> None:
        for kind, names, units in (
            ("state", self.state_names, self.state_units),
            ("action", self.action_names, self.action_units),
        ):
            if not names or len(names) != len(units):
                raise OnsetError(
                    ErrorCode.BAD_SHAPE,
                    f"record_meta.{kind}_units",
                    f"{len(units)} units for {len(names)} names",
                    "one or more names, and a unit for each",
                )

    @property
    def dtype(self) -> np.dtype:
        """Type of this run's records."""
        return record_dtype(len(self.action_names), len(self.state_names))

    def to_dict(self) -> dict[str, Any]:
        """Returns plain types that JSON can carry."""
        return asdict(self) | {
            name: {str(code): text for code, text in getattr(self, name).items()}
            for name in ("mode_names", "reason_names")
        }

    @staticmethod
    def from_dict(given: Mapping[str, Any]) -> RecordMeta:
        """Reads what ``to_dict`` made; fields of a later version are passed over.

        Raises:
            OnsetError: BAD_VALUE when something is missing or of another kind.
        """
        known = {f.name: given[f.name] for f in fields(RecordMeta) if f.name in given}
        try:
            for name in ("state_names", "state_units", "action_names", "action_units"):
                known[name] = tuple(str(item) for item in known[name])
            for name in ("mode_names", "reason_names"):
                known[name] = {int(code): str(text) for code, text in known.get(name, {}).items()}
            return RecordMeta(**known)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise OnsetError(
                ErrorCode.BAD_VALUE, "record_meta", error, "the fields of RecordMeta"
            ) from error


def describe_run(
    spec: RobotSpec,
    control_period_ns: int,
    started_ns: int,
    *,
    modes: type[IntEnum] | None = None,
    reasons: type[IntEnum] | None = None,
    **settings: Any,
) -> RecordMeta:
    """Makes the description of a run that starts now.

    Args:
        spec: The robot.
        control_period_ns: Control period [ns].
        started_ns: Robot's clock now [ns].
        modes: Names the codes in ``mode``.
        reasons: Names the codes in ``reason``.
        settings: Further fields of ``RecordMeta``: strategy, prompt, server, model, extra.
    """
    return RecordMeta(
        robot=spec.name,
        state_names=spec.state_names,
        state_units=tuple(d.unit for d in spec.state),
        action_names=spec.action_names,
        action_units=tuple(d.unit for d in spec.action),
        period_ns=spec.period_ns,
        control_period_ns=control_period_ns,
        mode_names={int(m): m.name for m in modes or ()},
        reason_names={int(r): r.name for r in reasons or ()},
        started=datetime.now().astimezone().isoformat(),
        started_ns=started_ns,
        version=_version(),
        **settings,
    )


def _version() -> str:
    try:
        return metadata.version("onset")
    except metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return ""
