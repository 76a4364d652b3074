"""A LeRobot policy at work: one observation in, finished actions out as they ripen."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from controller.errors import ErrorCode, OnsetError
from controller.strategy import STRATEGIES, Strategy
from controller.types import Float, Observation
from vla.adapters.dense import speed_up
from vla.adapters.load import LeRobotPolicy
from vla.adapters.rows import RowEncoder
from vla.adapters.session import AdapterSession, in_order
from vla.cache.asked import Whose
from vla.cache.config import CacheConfig, CacheMode
from vla.cache.selector import Selector
from vla.chunking import ChunkMemory, Condition, make_condition
from vla.finished import Encoding, Finished, NonFinite, finish
from vla.guidance import Guide
from vla.policy import FlowPolicy
from vla.sampler import Ripe, Sampler
from vla.schedule import Schedule, make_schedule

NAIVE = STRATEGIES["naive"]


class LeRobotEngine:
    """Runs a LeRobot policy on one device. Not thread-safe: one thread owns it.

    The weights are there once, whatever the number of sessions.
    """

    def __init__(
        self,
        policy: LeRobotPolicy,
        cameras: Mapping[str, str],
        *,
        schedule: str = "constant",
        expert_steps: int | None = None,
        executed: int | None = None,
        seed: int = 0,
        device: torch.device | None = None,
        max_sessions: int = 64,
        cache: CacheConfig | None = None,
        selector: Selector | None = None,
    ) -> None:
        """Args:
        policy: The policy.
        cameras: Robot's camera to the key that the preprocessor takes.
        schedule: One of ``vla.schedule.SCHEDULES`` that the adapter supports.
        expert_steps: Steps of the schedule; the checkpoint's own by default.
        executed: Free actions that will be executed; all by default.
        seed: Seeds the noise, with the observation's id.
        device: Where the policy is; the CPU by default.
        max_sessions: Sessions that are remembered; the one unused for longest is forgotten.
        cache: Which image tokens are reused; none by default.
        selector: Chooses them in the learned mode.

        Raises:
            OnsetError: The adapter does not support the schedule or the cache, or a value is out of
                range.
        """
        policy.adapter.capabilities.check_schedule(policy.name, schedule)
        self.policy = policy
        self._cameras, self._max_sessions = in_order(policy, cameras), max_sessions
        self.rows: RowEncoder | None = None
        if cache is not None and cache.mode is not CacheMode.OFF:
            self.rows = RowEncoder(policy, self._cameras, cache, selector, seed)
        self._name, self._seed, self._executed = schedule, seed, executed
        self._steps = policy.adapter.expert_steps if expert_steps is None else expert_steps
        self._device = device or torch.device("cpu")
        self._sessions: OrderedDict[Hashable, AdapterSession] = OrderedDict()
        self._unsettled: list[Whose] = []
        self._samplers: dict[int, Sampler] = {}
        speed_up(policy.adapter.prefix_modules)
        self._sampler(0)  # now, so that a bad value is told at the start

    def using(self, whose: Whose) -> SessionEngine:
        """The engine for one session; what is kept of it is made when it is first asked for."""
        session = whose.session
        if session not in self._sessions:
            self._sessions[session] = AdapterSession(self.policy, self._cameras)
            if len(self._sessions) > self._max_sessions:
                self.forget(next(iter(self._sessions)))
        self._sessions.move_to_end(session)
        return SessionEngine(self, self._sessions[session], whose)

    def settle(self, cancelled: Callable[[], bool] = lambda: False) -> None:
        """Slack time: readies the rows of the sessions that were answered since, newest last.

        Args:
            cancelled: Whether something more urgent has come; what is left is done next time.
        """
        while self.rows is not None and self._unsettled and not cancelled():
            with torch.inference_mode():
                if self.rows.settle(self._unsettled[0], cancelled):
                    self._unsettled.pop(0)

    def answered(self, whose: Whose) -> None:
        """Notes that a session has its chunk."""
        self._unsettled = [w for w in self._unsettled if w.session != whose.session] + [whose]

    def forget(self, session: Hashable) -> None:
        """Drops what is kept of a session that has ended."""
        self._sessions.pop(session, None)
        self._unsettled = [w for w in self._unsettled if w.session != session]
        if self.rows is not None:
            self.rows.forget(session)

    def stream(
        self,
        observation: Observation,
        prompt: str,
        strategy: Strategy = NAIVE,
        memory: ChunkMemory | None = None,
    ) -> Iterator[Finished]:
        """As ``SessionEngine.stream``, with nothing kept of a session."""
        session = AdapterSession(self.policy, self._cameras)
        return SessionEngine(self, session).stream(observation, prompt, strategy, memory)

    @property
    def device(self) -> torch.device:
        return self._device

    def noise(self, observation_id: int) -> Tensor:
        """The noise of an observation's chunk. Shape (1, H, D)."""
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + observation_id)
        shape = (1, self.policy.adapter.horizon, self.policy.adapter.action_dim)
        return torch.randn(shape, generator=generator).to(self._device)

    def run(self, context: Any, noise: Tensor, condition: Condition) -> Iterator[Ripe]:
        """Walks the schedule behind the condition's prefix."""
        prefix, guide = condition.prefix, condition.guide
        sampler = self._sampler(condition.prefix_length)
        context = self.policy.adapter.begin(context, noise)
        prefix = None if prefix is None else prefix.to(self._device)
        return sampler.run(context, noise, prefix, _moved(guide, self._device))

    def _sampler(self, delay: int) -> Sampler:
        if delay not in self._samplers:
            adapter = self.policy.adapter
            schedule = walked(self._name, adapter.horizon, delay, self._steps, adapter.average)
            # It has all that a sampler calls; its context is its own.
            flow = cast(FlowPolicy, adapter)
            self._samplers[delay] = Sampler(flow, schedule, self._executed, self._device)
        return self._samplers[delay]


@dataclass(frozen=True)
class SessionEngine:
    """The engine as one session sees it.

    Attributes:
        engine: The engine.
        session: What is kept of the session.
        whose: Whose prefix rows to use; none are kept when None.
    """

    engine: LeRobotEngine
    session: AdapterSession
    whose: Whose | None = None

    def stream(
        self,
        observation: Observation,
        prompt: str,
        strategy: Strategy = NAIVE,
        memory: ChunkMemory | None = None,
    ) -> Iterator[Finished]:
        """Runs one inference; yields actions as they ripen. As ``vla.engine.Engine.stream``.

        Raises:
            OnsetError: An action came out non-finite, or the delay is more than the policy was
                tuned for.
        """
        engine, session, whose, figures = self.engine, self.session, self.whose, None
        policy, device = engine.policy, engine.device
        began = time.perf_counter_ns()
        tuning = policy.tuning
        most = tuning.max_start if strategy.late else tuning.max_delay
        if memory is not None:
            observation = memory.amend(observation, strategy.start(observation.delay))
        condition = make_condition(strategy, observation, session, most)
        try:
            batch, slots = session.batch(observation, condition.state, prompt, device)
            with torch.inference_mode():
                if engine.rows is None or whose is None:
                    context = policy.adapter.encode(batch, slots)
                else:
                    context, figures = engine.rows.encode(whose, observation, prompt, batch, slots)
            if device.type == "cuda":
                torch.cuda.synchronize(device)  # so that its time is its own
        except (KeyError, TypeError, ValueError) as error:
            # LeRobot's code says so of inputs; one robot's must not end the model's thread.
            session.forget_frames()
            raise OnsetError(
                ErrorCode.INTERNAL, "policy", repr(error), "an observation that LeRobot takes"
            ) from error
        encoded = time.perf_counter_ns()
        ripening = engine.run(context, engine.noise(observation.id), condition)
        encoding = Encoding(began, encoded, context.image_rows, figures)

        def actions(ripe: Ripe) -> Float:
            return session.actions(ripe.values[0])

        try:
            yield from finish(ripening, actions, observation, condition, encoding, memory)
        except NonFinite:
            if engine.rows is not None and whose is not None:
                engine.rows.distrust(whose)
            raise
        if whose is not None:
            engine.answered(whose)


def walked(name: str, horizon: int, delay: int, steps: int, average: bool) -> Schedule:
    """A schedule's table, for a sampler that knows where a step ends where ``average`` is set."""
    schedule = make_schedule(name, horizon, delay, steps)
    return replace(schedule, average=True) if average else schedule


def _moved(guide: Guide | None, device: torch.device) -> Guide | None:
    return None if guide is None else guide.to(device)
