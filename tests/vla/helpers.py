"""A tiny policy with random weights, and a server for it on a thread of its own."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from controller.client import GrpcLink
from controller.client_session import LinkConfig
from controller.codec import encode_client
from controller.errors import OnsetError
from controller.messages import ClientMessage, Open
from controller.strategy import Strategy
from controller.transport import CLIENT_OPTIONS
from controller.types import (
    ActionSlice,
    CameraSpec,
    Dimension,
    FrameEncoding,
    Observation,
    RobotSpec,
)
from onset.v1 import policy_pb2 as pb
from vla.checkpoint import Checkpoint, PolicyMeta, load_checkpoint, save_checkpoint
from vla.chunking import ChunkMemory, Condition
from vla.engine import Engine
from vla.models.small import SmallVLA, SmallVLAConfig
from vla.policy import PolicyInput
from vla.schedule import horizon_aware
from vla.serve.config import ServeConfig
from vla.serve.server import PolicyServer
from vla.transforms import Normaliser, Tokeniser

MS = 1_000_000
PROMPTS = ("hit the red mole", "hit the blue mole")
HORIZON = 8
# Horizon-aware schedules of any horizon, delay, steps and exponent.
TABLES = st.tuples(
    st.integers(1, 60), st.floats(0, 0.99), st.integers(1, 20), st.floats(0.1, 3.0)
).map(lambda t: horizon_aware(t[0], int(t[1] * t[0]), t[2], t[3]))
PATIENT = LinkConfig(reply_deadline_s=5.0, open_timeout_s=10.0, min_backoff_s=0.02)
ROBOT = RobotSpec(
    name="two",
    state=(
        Dimension("pan.pos", "rad", -2.0, 2.0),
        Dimension("grip.pos", "1", 0.0, 1.0),
        Dimension("pan.vel", "rad/s", -9.0, 9.0),
    ),
    action=(Dimension("pan.pos", "rad", -2.0, 2.0), Dimension("grip.pos", "1", 0.0, 1.0)),
    cameras=(
        CameraSpec("front", 24, 24, FrameEncoding.PNG, (0, 2)),
        CameraSpec("wrist", 24, 24, FrameEncoding.RAW),
    ),
    period_ns=40 * MS,
)


def tiny_meta(**changes) -> PolicyMeta:
    tokens = Tokeniser.of(PROMPTS)
    config = SmallVLAConfig(
        cameras=("front", "wrist"),
        lags=(2, 1),
        image_size=24,
        patch=12,
        width=32,
        depth=2,
        horizon=HORIZON,
        state_dim=3,
        action_dim=2,
        words=len(tokens.vocabulary) + 1,
        max_words=tokens.max_words,
    )
    return replace(PolicyMeta("tiny", config, PROMPTS, ROBOT, expert_steps=4), **changes)


def tiny_normaliser() -> Normaliser:
    generator = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator)

    return Normaliser(
        draw(3), 0.5 + draw(3), draw(HORIZON, 2), 0.5 + draw(HORIZON, 2), torch.tensor([1.0, 0.0])
    )


def write_tiny(folder: Path, seed: int = 0) -> Path:
    """Writes the tiny policy; returns its path."""
    torch.manual_seed(seed)
    meta = tiny_meta()
    path = folder / "tiny.safetensors"
    save_checkpoint(path, meta, SmallVLA(meta.model), tiny_normaliser())
    return path


def tiny_checkpoint(folder: Path, seed: int = 0) -> Checkpoint:
    return load_checkpoint(write_tiny(folder, seed))


def robot_with(encoding: FrameEncoding) -> RobotSpec:
    return replace(ROBOT, cameras=tuple(replace(c, encoding=encoding) for c in ROBOT.cameras))


def observation(id: int = 0, seed: int | None = None, **changes) -> Observation:
    rng = np.random.default_rng(id if seed is None else seed)
    # Smooth pictures, which JPEG hardly changes.
    frames = {
        c.name: np.repeat(
            rng.integers(0, 256, (len(c.lags), 1, 1, 3), dtype=np.uint8).repeat(24, 1), 24, 2
        )
        for c in ROBOT.cameras
    }
    base = Observation(
        id=id,
        step=2 * id,
        capture_ns=11,
        state=rng.uniform(0, 1, 3).astype(np.float32),
        frames=frames,
        committed=np.zeros((0, 2), np.float32),
        planned=np.zeros((0, 2), np.float32),
        delay=0,
        deadline_ns=120 * MS,
    )
    return replace(base, **changes)


def inputs_of(engine: Engine, observation: Observation, prompt: str = PROMPTS[0]) -> PolicyInput:
    """What the model takes where the chunk begins with its pictures."""
    return engine.inputs(observation, prompt, Condition(0, observation.state))


class LocalServer:
    """The real server on a thread that runs an event loop."""

    def __init__(self, checkpoint: Checkpoint, make_engine=None, **settings) -> None:
        self.server: PolicyServer
        self.port = 0
        self._checkpoint = checkpoint
        self._make_engine = make_engine
        self._config = ServeConfig(**settings)
        self._ready: Future[int] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), daemon=True)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def metrics(self):
        return self.server.metrics

    def __enter__(self) -> LocalServer:
        self._thread.start()
        self.port = self._ready.result(timeout=20)
        return self

    def __exit__(self, *_: object) -> None:
        self.call(self._stop.set)
        self._thread.join(timeout=10)

    def call(self, function: Callable[[], object]) -> None:
        """Runs a function in the server's event loop."""
        self.loop.call_soon_threadsafe(function)

    def drain(self) -> Future[None]:
        return asyncio.run_coroutine_threadsafe(self.server.drain(), self.loop)

    async def _main(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self.server = PolicyServer(self._checkpoint, self._config, self._make_engine)
        try:
            self._ready.set_result(await self.server.start())
        except (OnsetError, RuntimeError) as error:
            self._ready.set_exception(error)
            return
        await self._stop.wait()
        await self.server.stop()


class Gate:
    """An engine around another one that waits, once past the warm-up, to be let go."""

    def __init__(self, engine) -> None:
        self.engine = engine
        self.warm = False
        self.begun: list[int] = []
        self.permits = threading.Semaphore(0)

    def stream(
        self,
        observation: Observation,
        prompt: str,
        strategy: Strategy,
        memory: ChunkMemory | None = None,
    ) -> Iterator:
        if self.warm:
            self.begun.append(observation.id)
            if not self.permits.acquire(timeout=20):
                pytest.fail("the gate was never opened")
        self.warm = True
        yield from self.engine.stream(observation, prompt, strategy, memory)


def link_to(server, robot: RobotSpec = ROBOT, **changes) -> GrpcLink:
    settings = {"robot_id": "arm-1", "prompt": PROMPTS[0], "config": PATIENT} | changes
    settings.setdefault("on_event", lambda event: None)
    address = server if isinstance(server, str) else server.address
    return GrpcLink(address, robot, **settings)


def until[T](condition: Callable[[], T], timeout_s: float = 10.0) -> T:
    """Waits for a condition and returns its value."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.003)
    pytest.fail("the condition did not come true in time")


def chunk_of(link: GrpcLink) -> ActionSlice:
    """Waits for the one slice of a constant schedule."""
    return until(lambda: link.poll(0))[0]


class Wire:
    """The stream itself, for what ``GrpcLink`` would never send."""

    def __init__(self, address: str, robot: RobotSpec = ROBOT) -> None:
        self.robot = robot
        self._channel = grpc.insecure_channel(address, options=CLIENT_OPTIONS)
        # Bytes go out as they are.
        self._call = self._channel.stream_stream(
            "/onset.v1.PolicyService/Session",
            request_serializer=bytes,
            response_deserializer=pb.ServerMessage.FromString,
        )
        self._queue: list[bytes | None] = []
        self._changed = threading.Condition()
        self.replies = self._call(self._requests())

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.replies.cancel()
        self._channel.close()

    def _requests(self) -> Iterator[bytes]:
        while True:
            with self._changed:
                while not self._queue:
                    self._changed.wait()
                data = self._queue.pop(0)
            if data is None:
                return
            yield data

    def send(self, message: bytes | pb.ClientMessage | ClientMessage | None) -> None:
        """Sends a message, or bytes, or with None ends this side of the stream."""
        if message is not None and not isinstance(message, bytes):
            if not isinstance(message, pb.ClientMessage):
                message = encode_client(message, self.robot)
            message = message.SerializeToString()
        with self._changed:
            self._queue.append(message)
            self._changed.notify()

    def open(self, **changes) -> pb.ServerMessage:
        opening = Open("arm-1", self.robot, PROMPTS[0], "e0", "naive")
        self.send(replace(opening, **changes))
        return self.next()

    def next(self) -> pb.ServerMessage:
        return next(self.replies)

    def error(self) -> pb.Error:
        """The next message, which must be an error."""
        reply = self.next()
        assert reply.WhichOneof("message") == "error", reply
        return reply.error

    def ended(self) -> bool:
        """Whether the stream is at its end, in good order."""
        rest = list(self.replies)
        return not rest and self.replies.code() is grpc.StatusCode.OK
