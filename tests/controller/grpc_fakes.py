"""A small policy server for tests, run on a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future

import grpc
import grpc.aio
import numpy as np

from controller.codec import decode_client, encode_description, encode_server
from controller.errors import OnsetError
from controller.messages import Close, Description, Open, Opened
from controller.transport import SERVER_OPTIONS
from controller.types import ActionSlice, Observation, RobotSpec
from onset.v1 import policy_pb2 as pb

Reply = Callable[[Observation, "Context"], Awaitable[None]]


def answer(observation: Observation, width: int, horizon: int = 8) -> ActionSlice:
    """A chunk whose actions all equal the observation's id."""
    return ActionSlice(
        observation_id=observation.id,
        start_step=observation.step,
        steps=np.arange(observation.step, observation.step + horizon),
        actions=np.full((horizon, width), observation.id, np.float32),
        final=True,
    )


class Context:
    """One session at the server."""

    def __init__(self, context: grpc.aio.ServicerContext, robot: RobotSpec) -> None:
        self.context = context
        self.robot = robot

    async def send(self, message: object) -> None:
        await self.context.write(encode_server(message, self.robot))  # type: ignore[arg-type]


async def answer_at_once(observation: Observation, context: Context) -> None:
    await context.send(answer(observation, len(context.robot.action)))


class Servicer:
    def __init__(self, description: Description, reply: Reply) -> None:
        self.description = description
        self.reply = reply
        self.refusal: OnsetError | None = None
        self.received: list[object] = []

    async def Describe(self, request, context):
        return encode_description(self.description)

    async def Session(self, request_iterator, context):
        robot: RobotSpec | None = None
        session: Context | None = None
        async for wire in request_iterator:
            message = decode_client(wire, robot)
            self.received.append(message)
            if isinstance(message, Open):
                if self.refusal is not None:
                    await context.write(encode_server(self.refusal, None))
                    return
                robot = message.robot
                session = Context(context, robot)
                await session.send(self.opened(message))
            elif isinstance(message, Observation) and session is not None:
                await self.reply(message, session)
            elif isinstance(message, Close):
                return

    def opened(self, opening: Open) -> Opened:
        d = self.description
        return Opened(
            strategy=opening.strategy,
            prompt=opening.prompt,
            state_names=opening.robot.state_names,
            action_names=opening.robot.action_names,
            camera_names=tuple(c.name for c in opening.robot.cameras),
            model=d.model,
            model_hash=d.model_hash,
            horizon=d.horizon,
            period_ns=opening.robot.period_ns,
            expert_steps=d.expert_steps,
            min_delay=d.min_delay,
            max_delay=d.max_delay,
        )


def _serialise(message) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()


class FakeServer:
    """Serves until ``kill``; may be started again on the same port."""

    def __init__(self, servicer: Servicer, port: int = 0) -> None:
        self.servicer = servicer
        self.port = port
        self._loop = asyncio.new_event_loop()
        self._ready: Future[int] = Future()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def address(self) -> str:
        return f"localhost:{self.port}"

    def __enter__(self) -> FakeServer:
        self._thread.start()
        self.port = self._ready.result(timeout=5)
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(timeout=5)

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    def _handlers(self) -> grpc.GenericRpcHandler:
        """As the generated ones, but bytes are written as they are."""
        return grpc.method_handlers_generic_handler(
            "onset.v1.PolicyService",
            {
                "Describe": grpc.unary_unary_rpc_method_handler(
                    self.servicer.Describe, pb.DescribeRequest.FromString, _serialise
                ),
                "Session": grpc.stream_stream_rpc_method_handler(
                    self.servicer.Session, pb.ClientMessage.FromString, _serialise
                ),
            },
        )

    async def _serve(self) -> None:
        server = grpc.aio.server(options=SERVER_OPTIONS)
        server.add_generic_rpc_handlers((self._handlers(),))
        self._ready.set_result(server.add_insecure_port(f"localhost:{self.port}"))
        await server.start()
        await self._stop.wait()
        await server.stop(grace=0)
        # gRPC's own tasks of the calls ended complain when the loop goes before they do.
        if rest := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(rest, timeout=0.5)


def pb_slice(piece: ActionSlice) -> pb.ServerMessage:
    """A slice on the wire without any check."""
    return pb.ServerMessage(
        slice=pb.ActionSlice(
            observation_id=piece.observation_id,
            start_step=piece.start_step,
            steps=piece.steps.tolist(),
            actions=piece.actions.ravel().tolist(),
            final=piece.final,
        )
    )
