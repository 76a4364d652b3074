"""What benchmarks/ttfa.py times: whole replies, and the parts that they cannot do without."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from controller.client import GrpcLink
from controller.codec import (
    decode_client,
    decode_frames,
    decode_server,
    encode_client,
    encode_server,
)
from controller.types import ActionSlice, Observation
from vla.cache.asked import Asked, Beginning, Whose
from vla.checkpoint import Checkpoint
from vla.chunking import Condition
from vla.engine import Engine
from vla.finished import Finished
from vla.models.expert_graph import ExpertGraph
from vla.policy import Context
from vla.sampler import Sampler
from vla.serve.runner import blank_observation

_REPLY_S = 5.0  # longest wait for a slice
_WHOSE = Whose("parts", "")


@dataclass
class Clocks:
    """Times of one schedule [ms], one entry a reply.

    Attributes:
        first: TTFA.
        executed: T_s.
        whole: T_H.
        encode: Inputs and prefix, as the engine says.
        expert: Expert steps until the first action, as the engine says.
    """

    first: list[float] = field(default_factory=list)
    executed: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    encode: list[float] = field(default_factory=list)
    expert: list[float] = field(default_factory=list)

    def note(self, pieces: Iterable[ActionSlice | Finished], executed: int, began_ns: int) -> None:
        """Takes the times at which the pieces of one chunk come.

        Raises:
            RuntimeError: The chunk ends before the actions to be executed.
        """
        there: set[int] = set()
        executed_ms = now_ms = None
        for piece in pieces:
            now_ms = (time.perf_counter_ns() - began_ns) * 1e-6
            if not there:
                timing = piece.timing if isinstance(piece, ActionSlice) else piece
                self.first.append(now_ms)
                self.encode.append(timing.encode_ns * 1e-6)
                self.expert.append(timing.expert_ns * 1e-6)
            there.update(piece.steps.tolist())
            # A chunk's first step is among its first finished ones, whatever the schedule.
            if executed_ms is None and there >= set(range(min(there), min(there) + executed)):
                executed_ms = now_ms
        if now_ms is None or executed_ms is None:
            raise RuntimeError(f"a chunk of {len(there)} actions; {executed} are to be executed")
        self.executed.append(executed_ms)
        self.whole.append(now_ms)


def arriving(link: GrpcLink) -> Iterator[ActionSlice]:
    """The slices of one chunk as they come.

    Raises:
        RuntimeError: Nothing comes any more.
    """
    while True:
        link.wait(_REPLY_S)
        pieces = link.poll(time.monotonic_ns())
        if not pieces:
            raise RuntimeError(f"no slice within {_REPLY_S} s")
        for piece in pieces:
            yield piece
            if piece.final:
                return


class Parts:
    """The work that no reply can do without, apart from everything around it."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._robot = checkpoint.meta.robot
        self._expert = ExpertGraph(checkpoint.model)
        engine = Engine(checkpoint, expert=self._expert)
        self._schedule, self._encoder = engine.schedule, engine.encoder
        self._blank = blank_observation(self._robot)
        prompt = checkpoint.meta.prompts[0]
        inputs = engine.inputs(self._blank, prompt, Condition(0, self._blank.state))
        self._asked = Asked(self._blank, prompt, Beginning(inputs.state, inputs.start))
        self._model, self._inputs = checkpoint.model, inputs
        shape = checkpoint.model.horizon, checkpoint.model.action_dim
        self._actions = np.zeros(shape, np.float32)
        self._noise, self._tau = torch.randn(1, *shape), torch.ones(1, shape[0])

    def _encode(self) -> Context:
        return self._encoder.encode(_WHOSE, self._asked)[0]

    def model_ms(self) -> tuple[float, float]:
        """One prefix, and then one expert step [ms]: the code that serves them, and no more."""
        with torch.inference_mode():
            began = time.perf_counter_ns()
            context = self._encode()
            encoded = time.perf_counter_ns()
            self._expert.velocity(self._noise, self._tau, context)
            return (encoded - began) * 1e-6, (time.perf_counter_ns() - encoded) * 1e-6

    def messages(self) -> None:
        """Encoding and decoding of an observation and of its first action, on both sides."""
        up = encode_client(self._blank, self._robot)
        there = type(up).FromString(up.SerializeToString())
        decode_client(there, self._robot)
        decode_frames(there.observation, self._robot)
        reply = ActionSlice(0, 0, np.arange(1), self._actions[:1], False)
        down = encode_server(reply, self._robot)
        decode_server(type(down).FromString(down.SerializeToString()), self._robot)

    def tight_ms(self, count: int) -> dict[str, list[float]]:
        """Each part in a loop of its own, where all of it stays in the processor's caches [ms]."""
        with torch.inference_mode():
            context = self._encode()

            def step() -> None:
                self._expert.velocity(self._noise, self._tau, context)

            def model_step() -> None:
                self._model.velocity(self._noise, self._tau, context)

            return {
                "prefix": timed_ms(self._encode, count),
                "expert step": timed_ms(step, count),
                "messages": timed_ms(self.messages, count),
                # The model as it is trained, which the engine runs on other devices.
                "prefix in torch": timed_ms(lambda: self._model.encode(self._inputs), count),
                "expert step in torch": timed_ms(model_step, count),
            }

    def sampler_ms(self, count: int) -> dict[str, list[float]]:
        """The sampler's loop and as many bare expert steps, in turns [ms]."""
        sampler = Sampler(self._expert, self._schedule)
        rows: dict[str, list[float]] = {"sampler": [], "bare expert": []}
        with torch.inference_mode():
            context = self._encode()

        def bare() -> None:
            with torch.inference_mode():
                for _ in range(self._schedule.steps):
                    self._expert.velocity(self._noise, self._tau, context)

        for _ in range(count):
            rows["sampler"] += timed_ms(lambda: list(sampler.run(context, self._noise)), 1)
            rows["bare expert"] += timed_ms(bare, 1)
        return rows


def timed_ms(function: Callable[[], object], count: int) -> list[float]:
    """Runs a function so many times; how long each took [ms]."""
    times = []
    for _ in range(count):
        began = time.perf_counter_ns()
        function()
        times.append((time.perf_counter_ns() - began) * 1e-6)
    return times


def observation_of(blank: Observation, number: int) -> Observation:
    """The same observation again, with another id and step."""
    return replace(blank, id=number, step=number)
