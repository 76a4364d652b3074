"""Decides when an observation is due, puts it together, and measures its round trip."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from controller.bounds import MAX_HORIZON, MAX_PROMPT_CHARS, check_text
from controller.forecast import Forecaster
from controller.frame_ring import FrameRing
from controller.latency import DelayEstimator
from controller.loop_types import LoopConfig
from controller.timeline import Timeline
from controller.types import ActionSlice, Float, Observation, Reading, RobotSpec


class Observer:
    """Makes the observations of a control loop. Ids count up across episodes."""

    def __init__(
        self,
        spec: RobotSpec,
        config: LoopConfig,
        estimator: DelayEstimator,
        forecaster: Forecaster | None = None,
    ) -> None:
        """Args:
        spec: The robot.
        config: Settings.
        estimator: Measures the delay.
        forecaster: Tells the state ahead, for a strategy whose chunks begin later.
        """
        self.estimator = estimator
        self._forecaster, self._way = forecaster, config.way
        self._spec = spec
        self._config = config
        self._ring = FrameRing(spec.cameras)
        self._next_id = 0

    @property
    def next_id(self) -> int:
        """The id of the next observation."""
        return self._next_id

    def reset(self, prompt: str) -> None:
        """Begins a new episode; its first observation carries the prompt.

        Raises:
            OnsetError: The prompt is empty or too long.
        """
        self.set_prompt(prompt)
        self._ring.clear()
        self._last_step: int | None = None
        self._unanswered: dict[int, int] = {}  # id to capture time [ns]
        self._on_its_way: set[int] = set()  # ids whose chunk is not complete
        self._forecasts: dict[int, Float] = {}  # by the step that they are about
        self._begins: dict[int, int] = {}  # step at which a reply takes over, by observation
        self._continued: dict[int, int] = {}  # actions that a chunk continues, by observation
        self._began: int | None = None  # by how many steps the chunk under way is shifted

    def set_prompt(self, prompt: str) -> None:
        """Changes the instruction from the next observation on.

        Raises:
            OnsetError: The prompt is empty or too long.
        """
        self._new_prompt: str | None = check_text("prompt", prompt, MAX_PROMPT_CHARS)

    def observe(
        self, step: int, reading: Reading, set_point: Float, timeline: Timeline
    ) -> Observation | None:
        """Returns an observation when one is due, and commits the actions that it counts on.

        One is due ``execute_steps`` after the one before, and, where the configuration says so,
        at once when no action is ahead and no reply is on its way. A strategy that waits counts
        from the beginning of its chunk instead, and lets go of what is ahead.

        Args:
            step: The present step.
            reading: The robot, now.
            set_point: The command that stands now. Shape (A,).
            timeline: The actions ahead.

        Raises:
            OnsetError: A frame is missing or has a wrong shape; it stays due.
        """
        due = self._is_due(step, timeline)
        self._ring.push(step, reading.frames, needed_now=due)
        if not due:
            return None
        expected, merged = self.delay(), self._config.speedup > 1
        delay = expected if self._way.delayed else 0
        frames = self._ring.lagged(step)
        committed, planned = self._count_on(step, delay, timeline)
        observation = Observation(
            id=self._next_id,
            step=step,
            capture_ns=reading.capture_ns,
            state=reading.state,
            frames=frames,
            committed=committed,
            planned=planned,
            delay=delay,
            deadline_ns=max(timeline.ahead(step), expected, 1) * self._spec.period_ns,
            forecast=self._forecast(step, delay, reading.state, set_point, committed),
            # Merged actions are not what the server has sent: it is to count on these alone.
            set_point=None if merged else np.array(set_point, dtype=np.float32),
            prompt=self._new_prompt,
        )
        if self._way.waits:
            timeline.drop(step)
        self._next_id += 1
        self._last_step, self._began = step, None
        return observation

    def _count_on(self, step: int, delay: int, timeline: Timeline) -> tuple[Float, Float]:
        """The actions of the delay, and where the strategy asks for them those behind."""
        width = len(self._spec.action)
        # Where a reply under way begins before the delay is over, its actions take over there.
        # The server knows them, and counts on them in place of the ones sent.
        timeline.commit(step, min(delay, self._undisturbed(step)))
        committed = timeline.planned(step, delay).reshape(-1, width)
        # One more chunk's worth: drawn towards more of the old chunk, by RTC's weights, a chunk
        # that is replaced every few steps would never leave it.
        ahead = self._config.execute_steps if self._way.guided else 0
        if self._way.catch_up:
            ahead = delay  # what the new chunk is compared with
        return committed, timeline.planned(step + len(committed), ahead).reshape(-1, width)

    def _undisturbed(self, step: int) -> int:
        """Steps until a reply under way takes over; a late one does as soon as it is there."""
        begins = [at for i, at in self._begins.items() if i in self._on_its_way]
        return max(0, min(begins, default=step + MAX_HORIZON) - step)

    def _forecast(
        self, step: int, delay: int, state: Float, set_point: Float, committed: Float
    ) -> Float | None:
        """The state at the chunk's beginning; None where it is the measured one."""
        start = self._way.start(delay)
        if self._forecaster is None or start == 0:
            return None
        # Past the end of the old chunk the robot holds.
        last = committed[-1:] if len(committed) else np.asarray(set_point)[None]
        actions = np.concatenate([committed[:start], np.repeat(last, start, axis=0)])[:start]
        forecast = self._forecaster.forecast(state, set_point, actions)
        if start <= self._undisturbed(step):  # else the server knows better
            self._forecasts[step + start] = forecast
        return forecast

    def forecast_error(self, step: int, state: Float) -> Float | None:
        """Measured minus forecast state where this step was forecast. Shape (S,)."""
        forecast = self._forecasts.pop(step, None)
        self._forecasts = {at: f for at, f in self._forecasts.items() if at > step}
        return None if forecast is None else state - forecast

    def continued(self, observation_id: int) -> int:
        """How many actions the chunk of an observation continues."""
        return self._continued.get(observation_id, 0)

    def align(self, piece: ActionSlice, now_step: int) -> ActionSlice | None:
        """The slice on the robot's steps: a strategy that waits begins a chunk when it comes.

        None where it answers an observation that is no longer waited for.
        """
        if not self._way.waits:
            return piece
        if piece.observation_id != self._next_id - 1:
            return None
        if self._began is None:
            self._began = now_step - piece.start_step
            self._last_step = now_step
        return replace(
            piece,
            start_step=piece.start_step + self._began,
            steps=piece.steps + self._began,
        )

    def sent(self, observation: Observation) -> None:
        """Notes that the link has taken an observation: its prompt need not be said again."""
        self._new_prompt = None
        self._unanswered[observation.id] = observation.capture_ns
        self._begins[observation.id] = observation.step + observation.delay
        if self._way.committed:
            self._continued[observation.id] = len(observation.committed)
        self._on_its_way.add(observation.id)

    def answered(self, piece: ActionSlice, now_ns: int) -> None:
        """Notes a slice and measures the round trip of an observation's first one.

        Older observations are no longer waited for.
        """
        answered = piece.observation_id
        complete_until = answered if piece.final else answered - 1
        self._on_its_way = {i for i in self._on_its_way if i > complete_until}
        capture_ns = self._unanswered.pop(answered, None)
        if capture_ns is not None:
            self.estimator.observe(now_ns - capture_ns)
        # One that was overtaken may still come, and is measured then; not for ever.
        patience = self._config.max_delay + self._config.execute_steps
        given_up_ns = now_ns - patience * self._spec.period_ns
        self._continued = {i: n for i, n in self._continued.items() if i >= answered}
        self._begins = {i: at for i, at in self._begins.items() if i > complete_until}
        for older in [i for i, t in self._unanswered.items() if t < given_up_ns]:
            del self._unanswered[older]
            self.estimator.lose()

    def forget(self) -> None:
        """Nothing that is on its way will be answered: an observation is due at once."""
        self._on_its_way.clear()
        self._begins.clear()
        self._last_step = None

    def delay(self) -> int:
        """Returns d: the fixed delay, or the measured one [steps]."""
        fixed = self._config.delay_steps
        return self.estimator.delay() if fixed is None else fixed

    @property
    def over_limit(self) -> bool:
        """Whether the measured delay is past what the policy was trained for."""
        return self._config.delay_steps is None and self.estimator.over_limit

    def _is_due(self, step: int, timeline: Timeline) -> bool:
        if self._last_step is None:
            return True
        since = step - self._last_step
        if self._way.waits and self._next_id - 1 in self._unanswered:
            # A reply may be lost: it is asked for again after the longest delay there may be.
            return since > self._config.max_delay
        if since >= self._config.execute_steps:
            return True
        # A chunk that begins later is ahead, too.
        last = timeline.last_step
        dry = last is None or last < step
        return self._config.observe_when_empty and dry and not self._on_its_way
