"""Plans for an arm that another process moves: cameras and policy on one side, a plan on the other.

::

    cameras --+
              +--> observation --> link --> slices --> timeline --> plan --> executor
    state   --+   (at each step's beginning)                        (when it has changed)

Everything here may be late without harm to the arm: the executor goes on along the plan that it
has, and stops in order at its end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from controller.clock import Clock
from controller.errors import ErrorCode, OnsetError
from controller.exchange import Sent
from controller.forecast import Forecaster
from controller.link import PolicyLink, WaitingLink
from controller.loop_types import Counters, LoopConfig
from controller.plan import EMPTY
from controller.planner import Planned, Planner
from controller.record import Level
from controller.robot import Cameras
from controller.runtime import Runtime
from controller.types import Float, Reading, RobotSpec
from controller.watchdog import Mode

_LONGEST_WAIT_NS = 5_000_000
_STOP_S = 5.0


@dataclass(frozen=True)
class ClientConfig:
    """Settings of a client, besides those of its loop.

    Attributes:
        frame_age_ns: Frames that are older show a camera that has stalled: the policy is not
            asked with them [ns].
    """

    frame_age_ns: int = 250_000_000


class RobotClient:
    """Observes, asks the policy and publishes the plan; one thread of its own."""

    def __init__(
        self,
        spec: RobotSpec,
        runtime: Runtime,
        cameras: Cameras,
        link: PolicyLink,
        loop: LoopConfig,
        prompt: str,
        clock: Clock,
        *,
        config: ClientConfig | None = None,
        forecaster: Forecaster | None = None,
        reopens: Callable[[], int] | None = None,
    ) -> None:
        """Args:
        spec: The robot.
        runtime: Its executor, started or attached to.
        cameras: Its cameras, connected.
        link: The path to the policy.
        loop: When to observe, and how chunks take over.
        prompt: The instruction of the first episode.
        clock: The robot's.
        config: Further settings.
        forecaster: Tells the state ahead; by default the strategy's.
        reopens: How often the link's session was lost and opened again: what was on its way then
            is asked anew at once, and not when the next observation would be due.
        """
        self._reopens, self._reopened = reopens, 0
        self._notes: deque[tuple[Level, str]] = deque()
        self._spec, self._runtime, self._cameras, self._link = spec, runtime, cameras, link
        self._clock, self._config = clock, config or ClientConfig()
        self._planner = Planner(spec, link, loop, prompt, forecaster=forecaster)
        self._seen = ("", 0)  # what was told last, and how often
        self._begin_ns = -1
        # After an earlier client: its episodes have been counted.
        self.episode = int(runtime.state()["episode"])

    @property
    def counters(self) -> Counters:
        """The episode's counts, as they stand."""
        return self._planner.counters

    def begin(self, prompt: str, *, placed: bool = False, tell: bool = True) -> None:
        """Begins an episode: step 0 is now.

        Args:
            prompt: Its instruction.
            placed: Whether the arm was put elsewhere meanwhile, as simulations do; it must have
                been stopped before.
            tell: Whether the link is told; the first episode of a link is told at its opening.

        Raises:
            OnsetError: The prompt is not allowed, or the link has ended.
        """
        if tell:
            self._planner.reset(prompt, str(self.episode + 1))
        else:
            self._planner.restart(prompt)
        self.episode += 1
        self._index, self._version = -1, -1
        self._begin_ns, self._placed = self._clock.now_ns(), placed
        self._publish()

    def stop(self) -> bool:
        """Stops the arm whatever the plan says; says whether it came to rest."""
        self._runtime.stop()
        held = self._runtime.wait(Mode.HOLDING, _STOP_S)
        return held or self._runtime.mode is Mode.FAULT

    def go(self) -> None:
        """Lets the arm follow the plan again."""
        self._runtime.stop(False)

    def step(self) -> Planned:
        """Takes what has arrived, observes at the beginning of a step, publishes what changed.

        Raises:
            OnsetError: NOT_OPEN before ``begin``.
        """
        if self._begin_ns < 0:
            raise OnsetError(ErrorCode.NOT_OPEN, "client", "no episode", "begin first")
        now_ns = self._clock.now_ns()
        self._runtime.beat(now_ns)
        index = (now_ns - self._begin_ns) // self._spec.period_ns
        boundary, self._index = index != self._index, index
        if self._reopens is not None and (reopened := self._reopens()) != self._reopened:
            self._reopened = reopened
            self._planner.forget()
        planned = self._planner.step(now_ns, index, self._read if boundary else None)
        if planned.error is not None:
            self._tell(str(planned.error))
        self._publish()
        while self._notes:
            level, text = self._notes.popleft()
            self._runtime.event(now_ns, level, text)
        return planned

    def note(self, level: Level, text: str) -> None:
        """Notes a line of text in the recording; for any thread, such as a link's callbacks."""
        self._notes.append((level, text))

    def run(self, until: Callable[[], bool]) -> OnsetError | None:
        """Goes on until told to end, or the link ends for good; returns what ended it.

        Args:
            until: Asked after every step; should be quick.
        """
        while True:
            planned = self.step()
            if planned.error is not None and planned.error.fatal:
                return planned.error
            if until():
                return None
            self._wait()

    def _wait(self) -> None:
        """Until something arrives, or the next step begins."""
        now_ns = self._clock.now_ns()
        next_ns = self._begin_ns + (self._index + 1) * self._spec.period_ns
        wait_ns = min(max(next_ns - now_ns, 0), _LONGEST_WAIT_NS)
        if isinstance(self._link, WaitingLink):
            self._link.wait(wait_ns * 1e-9)
        else:
            self._clock.sleep_until_ns(now_ns + wait_ns)

    def _publish(self) -> None:
        timeline, index = self._planner.timeline, max(self._index, 0)
        if timeline.version == self._version:
            return
        plan = self._planner.plan(index) if timeline.next_step else EMPTY
        round_trip_ns = self._planner.estimator.newest_ns
        self._runtime.publish(Sent(plan, self.episode, self._begin_ns, self._placed, round_trip_ns))
        self._version = timeline.version

    def _read(self) -> tuple[Reading, Float] | None:
        """The arm as its executor sees it, and new frames; None where a camera has stalled."""
        state = self._runtime.state()
        if int(state["measured_ns"]) < 0 or not np.isfinite(state["measured"]).all():
            self._tell("the joints cannot be read")
            return None
        try:
            capture_ns, frames = self._cameras.frames()
        except OnsetError as error:
            self._tell(str(error))
            return None
        age_ns = self._clock.now_ns() - capture_ns
        if age_ns > self._config.frame_age_ns:
            self._tell("a camera has stalled: its newest frame is too old")
            return None
        reading = Reading(int(state["measured_ns"]), state["measured"], frames)
        return reading, state["command"].astype(np.float32)

    def _tell(self, text: str) -> None:
        """Notes trouble in the recording; the same again only now and then."""
        before, count = self._seen
        count = count + 1 if text == before else 0
        self._seen = (text, count)
        if count & (count - 1) == 0:
            again = f" ({count + 1} times)" if count else ""
            self.note(Level.WARNING, text + again)
