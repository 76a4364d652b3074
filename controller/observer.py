"""Decides when an observation is due, puts it together, and measures its round trip."""

from __future__ import annotations

from controller.bounds import MAX_PROMPT_CHARS, check_text
from controller.frame_ring import FrameRing
from controller.latency import DelayEstimator
from controller.loop_types import LoopConfig
from controller.timeline import Timeline
from controller.types import ActionSlice, Observation, Reading, RobotSpec


class Observer:
    """Makes the observations of a control loop. Ids count up across episodes."""

    def __init__(self, spec: RobotSpec, config: LoopConfig, estimator: DelayEstimator) -> None:
        self.estimator = estimator
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

    def set_prompt(self, prompt: str) -> None:
        """Changes the instruction from the next observation on.

        Raises:
            OnsetError: The prompt is empty or too long.
        """
        self._new_prompt: str | None = check_text("prompt", prompt, MAX_PROMPT_CHARS)

    def observe(self, step: int, reading: Reading, timeline: Timeline) -> Observation | None:
        """Returns an observation when one is due, and commits the actions that it promises.

        ``"naive"`` promises none and announces no delay, whatever is measured.

        One is due ``execute_steps`` after the one before, and, where the configuration says so,
        at once when no action is ahead and no reply is on its way.

        Raises:
            OnsetError: A frame is missing or has a wrong shape; it stays due.
        """
        due = self._is_due(step, timeline)
        self._ring.push(step, reading.frames, needed_now=due)
        if not due:
            return None
        expected = self.delay()
        delay = expected if self._config.strategy == "prefix" else 0
        committed = timeline.commit(step, delay).reshape(-1, len(self._spec.action))
        dry_in_steps = max(timeline.ahead(step), expected, 1)
        observation = Observation(
            id=self._next_id,
            step=step,
            capture_ns=reading.capture_ns,
            state=reading.state,
            frames=self._ring.lagged(step),
            committed=committed,
            delay=delay,
            deadline_ns=dry_in_steps * self._spec.period_ns,
            prompt=self._new_prompt,
        )
        self._next_id += 1
        self._last_step = step
        return observation

    def sent(self, observation: Observation) -> None:
        """Notes that the link has taken an observation: its prompt need not be said again."""
        self._new_prompt = None
        self._unanswered[observation.id] = observation.capture_ns
        self._on_its_way.add(observation.id)

    def answered(self, piece: ActionSlice, now_ns: int) -> None:
        """Notes a slice and measures the round trip of an observation's first one.

        Older observations are no longer waited for.
        """
        answered = piece.observation_id
        complete_until = answered if piece.final else answered - 1
        self._on_its_way = {i for i in self._on_its_way if i > complete_until}
        capture_ns = self._unanswered.get(answered)
        if capture_ns is not None:
            self.estimator.observe(now_ns - capture_ns)
            self._unanswered = {i: t for i, t in self._unanswered.items() if i > answered}

    def delay(self) -> int:
        """Returns d: the fixed delay, or the measured one [steps]."""
        fixed = self._config.delay_steps
        return self.estimator.delay() if fixed is None else fixed

    @property
    def over_limit(self) -> bool:
        """Whether the measured delay is past what the policy was trained for."""
        return self._config.delay_steps is None and self.estimator.over_limit

    def _is_due(self, step: int, timeline: Timeline) -> bool:
        if self._last_step is None or step - self._last_step >= self._config.execute_steps:
            return True
        dry = timeline.ahead(step) == 0
        return self._config.observe_when_empty and dry and not self._on_its_way
