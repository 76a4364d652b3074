"""A checkpoint at work: one observation in, finished actions out as they ripen.

The server and in-process rollouts run the same engine, so that a figure measured in virtual time
is about the policy that is served.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from controller.errors import ErrorCode, OnsetError
from controller.strategy import STRATEGIES, Strategy
from controller.types import Observation
from vla.cache.asked import Asked, Beginning, Whose
from vla.cache.config import CacheConfig
from vla.cache.encoder import CachedEncoder
from vla.cache.prefix import PrefixEncoder
from vla.cache.selector import Selector
from vla.catch_up import Paced, at_once, brought_to, can_catch_up, turns
from vla.checkpoint import Checkpoint
from vla.chunking import ChunkMemory, Condition, make_condition
from vla.finished import Encoding, Finished, NonFinite, finish
from vla.models.expert_graph import ExpertGraph
from vla.policy import Context, PolicyInput
from vla.sampler import Ripe, Sampler
from vla.schedule import AVERAGE, Schedule, make_schedule
from vla.transforms import frames_to_tensor

NAIVE = STRATEGIES["naive"]


class Engine:
    """Runs a checkpoint on one device. Not thread-safe: one thread owns it."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        schedule: str = "constant",
        expert_steps: int | None = None,
        executed: int | None = None,
        seed: int = 0,
        device: torch.device | None = None,
        cache: CacheConfig | None = None,
        selector: Selector | None = None,
        prefix: PrefixEncoder | None = None,
        expert: ExpertGraph | None = None,
    ) -> None:
        """Args:
        checkpoint: The policy.
        schedule: One of ``vla.schedule.SCHEDULES`` that the checkpoint offers.
        expert_steps: Steps of the schedule; the checkpoint's own by default.
        executed: Actions behind the committed ones that will be executed: the expert stops when
            they are finished, and what is unfinished is not sent. All by default.
        seed: Seeds the noise, with the observation's id.
        device: The CPU by default.
        cache: Which image tokens are reused; none by default.
        selector: Chooses them in the learned mode.
        prefix: Of this checkpoint's model on this device, where another engine has one already.
        expert: The same, on the CPU.

        Raises:
            OnsetError: The checkpoint does not offer the schedule, a value is out of range, or the
                selector is another policy's.
        """
        meta = checkpoint.meta
        if schedule not in meta.schedules:
            raise OnsetError(
                ErrorCode.BAD_VALUE,
                "schedule",
                schedule,
                f"what {meta.name} offers: {list(meta.schedules)}",
            )
        self.checkpoint = checkpoint
        self.device = device or torch.device("cpu")
        model = checkpoint.model.to(self.device).eval()
        self._model = (expert or ExpertGraph(model)) if self.device.type == "cpu" else model
        self._encoder = CachedEncoder(checkpoint, cache or CacheConfig(), selector, seed, prefix)
        self._unsettled: list[Whose] = []
        self._seed, self._executed = seed, executed
        self._generator = torch.Generator()
        starts = range(meta.max_delay + 1)  # made once: a robot waits for each call of torch
        self._starts = [torch.tensor([start], device=self.device) for start in starts]
        self._name = schedule
        self._steps = meta.expert_steps if expert_steps is None else expert_steps
        self._samplers: dict[tuple[int, int], Sampler] = {}
        self._sampler(0, 0)  # now, so that a bad value is told at the start

    @property
    def schedule(self) -> Schedule:
        """The schedule of a chunk without committed actions."""
        return self._schedule(0)

    def _schedule(self, delay: int, unused: int = 0) -> Schedule:
        return make_schedule(self._name, self._model.horizon, delay, self._steps, unused)

    def _sampler(self, delay: int, unused: int) -> Sampler:
        """Walks the schedule behind so many committed actions; made once.

        Args:
            delay: Committed actions.
            unused: Free actions behind them whose steps are over.
        """
        key = (delay, unused)
        if key not in self._samplers:
            schedule = self._schedule(delay, unused)
            executed = self._executed
            if executed is not None and unused:
                executed = min(executed + unused, schedule.horizon - delay)
            self._samplers[key] = Sampler(self._model, schedule, executed, self.device)
        return self._samplers[key]

    def inputs(self, observation: Observation, prompt: str, condition: Condition) -> PolicyInput:
        """A batch of one for the model."""
        images = {n: frames_to_tensor(f) for n, f in observation.frames.items()}
        tokens = self.checkpoint.tokeniser.encode(prompt)[None]
        state = torch.from_numpy(np.array(condition.state, dtype=np.float32))[None]
        start = torch.tensor([condition.start])
        return PolicyInput(images, self.checkpoint.normaliser.state(state), tokens, start)

    def stream(
        self,
        observation: Observation,
        prompt: str,
        strategy: Strategy = NAIVE,
        memory: ChunkMemory | None = None,
        whose: Whose | None = None,
    ) -> Iterator[Finished]:
        """Runs one inference; yields actions as they ripen.

        Args:
            observation: What the robot sees.
            prompt: The instruction.
            strategy: What the chunk is conditioned on and when it begins. Committed actions that
                the chunk continues are not yielded.
            memory: Of the robot's session: what it was told before. The chunk is noted in it.
            whose: Whose cache of image tokens to use; nothing is kept when None.

        Raises:
            OnsetError: The instruction is unknown, an action came out non-finite, or the delay is
                more than the policy was trained for.
        """
        began = time.perf_counter_ns()
        scales, meta = self.checkpoint.normaliser, self.checkpoint.meta
        if memory is not None:
            observation = memory.amend(observation, strategy.start(observation.delay))
        condition = make_condition(strategy, observation, scales, meta.max_delay)
        asked = Asked(observation, prompt, self._beginning(condition))
        with torch.inference_mode():
            context, figures = self._encoder.encode(whose, asked)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)  # so that its time is its own
        encoded = time.perf_counter_ns()
        generator = self._generator.manual_seed(self._seed * 1_000_003 + observation.id)
        shape = (1, self._model.horizon, self._model.action_dim)
        noise = (meta.noise_scale * torch.randn(shape, generator=generator)).to(self.device)
        if strategy.catch_up and can_catch_up(observation, self._model.horizon):
            condition, ripening = self._catching_up(observation, condition, context, noise)
        else:
            ripening = self._ripening(condition, context, noise)
        state = np.asarray(condition.state, dtype=np.float32)
        paced = None
        if strategy.catch_up and condition.unused and meta.pace is not None:
            paced = Paced(brought_to(observation), meta.robot, meta.pace)

        def actions(ripe: Ripe) -> NDArray[np.float32]:
            return scales.actions(ripe.values[0].cpu().numpy(), state, ripe.indices)

        encoding = Encoding(began, encoded, context.image_rows, figures)
        try:
            yield from finish(ripening, actions, observation, condition, encoding, memory, paced)
        except NonFinite:
            if whose is not None:
                self._encoder.distrust(whose)
            raise
        if whose is not None:
            self._unsettled = [w for w in self._unsettled if w.session != whose.session] + [whose]

    def _beginning(self, condition: Condition) -> Beginning:
        state = self.checkpoint.normaliser.one_state(np.asarray(condition.state, dtype=np.float32))
        return Beginning(torch.from_numpy(state).to(self.device), self._starts[condition.start])

    def _ripening(
        self,
        condition: Condition,
        context: Context,
        noise: Tensor,
        velocity: Tensor | None = None,
    ) -> Iterator[Ripe]:
        prefix, guide = condition.prefix, condition.guide
        return self._sampler(condition.prefix_length, condition.unused).run(
            context,
            noise,
            None if prefix is None else prefix.to(self.device),
            None if guide is None else guide.to(self.device),
            velocity,
        )

    def _catching_up(
        self, observation: Observation, late: Condition, context: Context, noise: Tensor
    ) -> tuple[Condition, Iterator[Ripe]]:
        """The late chunk, or where it turns elsewhere the one that begins with its observation.

        It is judged by the first expert step, which the late chunk goes on from.
        """
        with torch.inference_mode():
            velocity = self._model.velocity(noise, noise.new_ones(noise.shape[:2]), context)
        if not turns(noise - velocity, observation, late.state, self.checkpoint.normaliser):
            if self._name not in AVERAGE:
                return late, self._ripening(late, context, noise, velocity)
            condition = late
        else:
            condition = at_once(observation)
            with torch.inference_mode():
                context = self._encoder.begin_elsewhere(self._beginning(condition))
        ripening = self._ripening(condition, context, noise)
        return condition, (replace(ripe, step=ripe.step + 1) for ripe in ripening)

    def using(self, whose: Whose) -> SessionEngine:
        """The engine with one session's cache."""
        return SessionEngine(self, whose)

    @property
    def encoder(self) -> CachedEncoder:
        """What encodes, with the sessions' caches."""
        return self._encoder

    def settle(self, cancelled: Callable[[], bool] | None = None) -> None:
        """Slack time: readies the caches of the sessions that were answered since, newest last.

        Args:
            cancelled: Whether something more urgent has come; what is left is done next time.
        """
        while self._unsettled and not (cancelled is not None and cancelled()):
            with torch.inference_mode():
                if self._encoder.settle(self._unsettled[0], cancelled):
                    self._unsettled.pop(0)

    def forget(self, session: Hashable) -> None:
        """Drops what is kept of a session that has ended."""
        self._unsettled = [w for w in self._unsettled if w.session != session]
        self._encoder.forget(session)

    def chunk(self, observation: Observation, prompt: str) -> NDArray[np.float32]:
        """Everything that is free of a chunk, at once. Shape (n, A), in the robot's units."""
        parts = list(self.stream(observation, prompt))
        order = np.argsort(np.concatenate([p.steps for p in parts]))
        return np.concatenate([p.actions for p in parts])[order]


@dataclass(frozen=True)
class SessionEngine:
    """An engine with one session's cache.

    Attributes:
        engine: The engine.
        whose: Whose cache.
    """

    engine: Engine
    whose: Whose

    def stream(
        self,
        observation: Observation,
        prompt: str,
        strategy: Strategy = NAIVE,
        memory: ChunkMemory | None = None,
    ) -> Iterator[Finished]:
        """As ``Engine.stream``."""
        return self.engine.stream(observation, prompt, strategy, memory, self.whose)
