"""What client and executor share: the parts of one segment, and how a plan crosses.

::

    client    --- plan, words --->  executor  --- records, events --->  recorder
              <--- state ---------                (a segment of its own: controller/recorder.py)

Every part has one writer, but for the words that anybody may raise (``estop``, ``quit``,
``clear``): a person at another terminal is to be able to stop an arm whose client hangs. They are a
segment of their own, the same for every robot, so that it takes no more than its name.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from controller.plan import Plan
from controller.shared import LatestLayout, Segment, WordLayout, used_segments
from controller.types import RobotSpec

PLAN_ROWS = 128  # steps ahead that an executor knows; later ones follow as time goes on
WORDS = ("client_ns", "executor_ns", "stop")
STOP_WORDS = ("estop", "clear", "quit")
STOP_LAYOUT = {name: WordLayout() for name in STOP_WORDS}
_STOP_SUFFIX = ".stop"
_HEAD = struct.Struct("<8q")  # of a plan: the fields before its arrays


def plan_dtype(actions: int) -> np.dtype:
    """A plan in shared memory: row i is step ``first_step + i``; ``count`` rows are used."""
    return np.dtype(
        [
            ("episode", "<i8"),
            ("begin_ns", "<i8"),  # when step 0 of the episode began
            ("first_step", "<i8"),
            ("renewed_ns", "<i8"),
            ("version", "<i8"),
            ("placed", "<i8"),  # 1: the arm was put elsewhere before this episode
            ("round_trip_ns", "<i8"),
            ("count", "<i8"),
            ("observation_ids", "<i8", (PLAN_ROWS,)),
            ("actions", "<f4", (PLAN_ROWS, actions)),
        ]
    )


def state_dtype(actions: int, states: int) -> np.dtype:
    """What the executor says of itself after every tick."""
    return np.dtype(
        [
            ("tick", "<i8"),
            ("time_ns", "<i8"),  # when the tick was due
            ("episode", "<i8"),
            ("step", "<i8"),
            ("measured_ns", "<i8"),  # when the joints were read; -1 before
            ("missed", "<i8"),  # ticks that should have come and did not
            ("starved", "<i8"),  # steps of the episode that began without a usable action
            ("command", "<f8", (actions,)),
            ("velocity", "<f8", (actions,)),
            ("measured", "<f4", (states,)),
            ("mode", "<i4"),
            ("reason", "<i4"),
        ]
    )


def layout(spec: RobotSpec) -> dict[str, LatestLayout | WordLayout]:
    """The parts of a robot's segment.

    ``plan`` and ``client_ns`` are the client's, ``state`` and ``executor_ns`` the executor's;
    the two times are signs of life [ns], robot's clock.
    """
    actions, states = len(spec.action), len(spec.state)
    return {
        "plan": LatestLayout(plan_dtype(actions)),
        "state": LatestLayout(state_dtype(actions, states)),
        **{name: WordLayout() for name in WORDS},
    }


def recording_name(name: str) -> str:
    """The segment of a robot's recording."""
    return f"{name}.rec"


def stop_name(name: str) -> str:
    """The segment by which anybody stops a robot."""
    return f"{name}{_STOP_SUFFIX}"


def running_robots() -> list[str]:
    """The robots on this machine that somebody moves."""
    names = used_segments()
    return [n.removesuffix(_STOP_SUFFIX) for n in names if n.endswith(_STOP_SUFFIX)]


@dataclass(frozen=True)
class Sent:
    """A plan as the executor has it.

    Attributes:
        plan: The plan.
        episode: The episode that its steps count from.
        begin_ns: When step 0 of it began [ns], robot's clock.
        placed: Whether the arm was put elsewhere before this episode, as in simulation: the
            executor begins where it is measured then.
        round_trip_ns: Newest round trip [ns]; -1 where it is not known.
    """

    plan: Plan
    episode: int
    begin_ns: int
    placed: bool = False
    round_trip_ns: int = -1


class PlanWriter:
    """The client's end: publishes what changes."""

    def __init__(self, segment: Segment, spec: RobotSpec) -> None:
        self._latest = segment.latest("plan")
        self._record = np.zeros((), plan_dtype(len(spec.action)))

    def write(self, sent: Sent) -> None:
        """Publishes a plan; steps beyond ``PLAN_ROWS`` follow with a later one."""
        record, plan = self._record, sent.plan
        count = min(len(plan.observation_ids), PLAN_ROWS)
        record["episode"], record["begin_ns"] = sent.episode, sent.begin_ns
        record["first_step"], record["version"] = plan.first_step, plan.version
        record["renewed_ns"], record["round_trip_ns"] = plan.renewed_ns, sent.round_trip_ns
        record["placed"] = sent.placed
        record["count"] = count
        record["observation_ids"][:count] = plan.observation_ids[:count]
        if plan.actions.size:
            record["actions"][:count] = plan.actions[:count]
        self._latest.write(record)


class PlanReader:
    """The executor's end; never waits."""

    def __init__(self, segment: Segment) -> None:
        self._latest = segment.latest("plan")
        self._sent: Sent | None = None

    def read(self) -> Sent | None:
        """The newest plan; None before the first."""
        if self._latest.version != self._latest.read_version:
            record = self._latest.read()
            if record is not None:
                self._sent = _sent(record)
        return self._sent


def _sent(record: np.void) -> Sent:
    # At once, since it happens within a tick.
    head = _HEAD.unpack_from(record)
    episode, begin_ns, first_step, renewed_ns, version, placed, round_trip_ns, count = head
    actions, ids = record["actions"][:count], record["observation_ids"][:count]
    plan = Plan(first_step, actions, ids, renewed_ns, version)
    return Sent(plan, episode, begin_ns, bool(placed), round_trip_ns)
