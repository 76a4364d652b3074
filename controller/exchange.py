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
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from controller.plan import Ahead, Plan
from controller.shared import LatestLayout, Segment, WordLayout, used_segments
from controller.types import RobotSpec

PLAN_ROWS = 128  # steps ahead that an executor knows; later ones follow as time goes on
WORDS = ("client_ns", "executor_ns", "stop")
STOP_WORDS = ("estop", "clear", "quit")
STOP_LAYOUT = {name: WordLayout() for name in STOP_WORDS}
_STOP_SUFFIX = ".stop"
_HEAD = struct.Struct("<8q")  # of a plan: the fields before its arrays


@cache
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


class Sent[P: Ahead](NamedTuple):
    """A plan on its way to the executor, or arrived.

    Attributes:
        plan: The plan.
        episode: The episode that its steps count from.
        begin_ns: When step 0 of it began [ns], robot's clock.
        placed: Whether the arm was put elsewhere before this episode, as in simulation: the
            executor begins where it is measured then.
        round_trip_ns: Newest round trip [ns]; -1 where it is not known.
    """

    plan: P
    episode: int
    begin_ns: int
    placed: bool = False
    round_trip_ns: int = -1


def packed(sent: Sent[Plan], spec: RobotSpec) -> NDArray[np.void]:
    """A plan as its record; steps beyond ``PLAN_ROWS`` are left out. Shape ()."""
    record, plan = np.zeros((), plan_dtype(len(spec.action))), sent.plan
    count = min(len(plan.observation_ids), PLAN_ROWS)
    record["episode"], record["begin_ns"] = sent.episode, sent.begin_ns
    record["first_step"], record["version"] = plan.first_step, plan.version
    record["renewed_ns"], record["round_trip_ns"] = plan.renewed_ns, sent.round_trip_ns
    record["placed"] = sent.placed
    record["count"] = count
    record["observation_ids"][:count] = plan.observation_ids[:count]
    if plan.actions.size:
        record["actions"][:count] = plan.actions[:count]
    return record


class PlanWriter:
    """The client's end: publishes what changes."""

    def __init__(self, segment: Segment, spec: RobotSpec) -> None:
        self._latest, self._spec = segment.latest("plan"), spec

    def write(self, sent: Sent[Plan]) -> None:
        """Publishes a plan; steps beyond ``PLAN_ROWS`` follow with a later one."""
        self._latest.write(packed(sent, self._spec))


class ArrivedPlan:
    """A plan as its record's bytes, of which a tick unpacks what it needs.

    Attributes:
        first_step: Step of the first row.
        renewed_ns: When an action was last taken into the plan [ns], robot's clock; -1 before.
        version: Grows with every change.
    """

    # Plain numbers out of bytes: in a tick, which finds its caches cold, array operations and
    # the fields of a record take several times longer.

    def __init__(
        self,
        first_step: int,
        renewed_ns: int,
        version: int,
        ids: memoryview[int],
        actions: memoryview[float],
    ) -> None:
        """Makes it of its numbers.

        Args:
            first_step: Step of the first row.
            renewed_ns: When an action was last taken into the plan [ns].
            version: Of the plan.
            ids: The observation that each row answers; -1 where no action stands. Length n.
            actions: Row after row. Length n x A.
        """
        self.first_step, self.renewed_ns, self.version = first_step, renewed_ns, version
        self._ids, self._actions = ids, actions
        self._width = len(actions) // max(len(ids), 1)

    def __len__(self) -> int:
        return len(self._ids)

    def rows(self, step: int, count: int) -> list[list[float]]:
        """As ``Plan.rows``."""
        row, width, rows = step - self.first_step, self._width, []
        if row < 0:
            return rows
        for at in range(row, min(row + count, len(self._ids))):
            if self._ids[at] < 0:
                break
            rows.append(self._actions[at * width : (at + 1) * width].tolist())
        return rows

    def observation_id(self, step: int) -> int:
        """As ``Plan.observation_id``."""
        row = step - self.first_step
        return self._ids[row] if 0 <= row < len(self._ids) else -1


class PlanReader:
    """The executor's end; never waits."""

    def __init__(self, segment: Segment, spec: RobotSpec) -> None:
        self._latest = segment.latest("plan")
        self._row = 4 * len(spec.action)
        fields = plan_dtype(len(spec.action)).fields or {}
        self._ids_at, self._actions_at = fields["observation_ids"][1], fields["actions"][1]
        self._sent: Sent[ArrivedPlan] | None = None

    def read(self) -> Sent[ArrivedPlan] | None:
        """The newest plan; None before the first."""
        if self._latest.version != self._latest.read_version:
            data = self._latest.read_bytes()
            if data is not None:
                self._sent = self._unpack(data)
        return self._sent

    def _unpack(self, data: bytes) -> Sent[ArrivedPlan]:
        head = _HEAD.unpack_from(data)
        episode, begin_ns, first_step, renewed_ns, version, placed, round_trip_ns, count = head
        view = memoryview(data)
        ids = view[self._ids_at : self._ids_at + 8 * count].cast("q")
        actions = view[self._actions_at : self._actions_at + self._row * count].cast("f")
        plan = ArrivedPlan(first_step, renewed_ns, version, ids, actions)
        return Sent(plan, episode, begin_ns, bool(placed), round_trip_ns)
