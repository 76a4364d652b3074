"""The robot's side of LeRobot's own asynchronous inference: what its RobotClient does on the wire.

RobotClient itself wants a robot to connect to. The calls, their order and their threads are its:
an observation is pickled and streamed up in pieces, while a thread asks for actions over and over.
"""

from __future__ import annotations

import pickle
import queue
import threading
import time
from typing import Any

import grpc
from lerobot.async_inference.helpers import RemotePolicyConfig, TimedAction, TimedObservation
from lerobot.transport import services_pb2, services_pb2_grpc
from lerobot.transport.utils import grpc_channel_options, send_bytes_in_chunks

pb: Any = services_pb2  # generated, without types


class LeRobotClient:
    """A connection to LeRobot's policy server.

    Attributes:
        bytes_up: Bytes of pickled observations sent.
        bytes_down: Bytes of pickled actions received.
    """

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address, grpc_channel_options())
        grpc.channel_ready_future(self._channel).result(timeout=120)
        self._stub: Any = services_pb2_grpc.AsyncInferenceStub(self._channel)
        self._chunks: queue.SimpleQueue[list[TimedAction]] = queue.SimpleQueue()
        self._step, self._running = 0, True
        self.bytes_up = self.bytes_down = 0
        self._stub.Ready(pb.Empty())
        self._receiver = threading.Thread(target=self._receive, daemon=True)

    def load(self, path: str, features: dict[str, Any], chunk: int) -> None:
        """Has the server load a SmolVLA."""
        wanted = RemotePolicyConfig("smolvla", path, features, chunk, "cpu")
        self._stub.SendPolicyInstructions(pb.PolicySetup(data=pickle.dumps(wanted)))

    def start(self) -> None:
        """Begins to ask for actions."""
        self._receiver.start()

    def _receive(self) -> None:
        while self._running:
            try:
                reply = self._stub.GetActions(pb.Empty())
            except grpc.RpcError:
                return  # the server is gone, or this client is closed
            if reply.data:
                self.bytes_down += len(reply.data)
                # LeRobot's wire is pickle; both of its ends are this benchmark's.
                self._chunks.put(pickle.loads(reply.data))  # noqa: S301

    def ask(self, observation: dict[str, Any], timeout_s: float = 120.0) -> float:
        """Sends an observation and waits for its chunk; returns how long that took [ms]."""
        began = time.perf_counter_ns()
        self._step += 1
        # must_go: LeRobot's filter would drop an observation whose state is like the last one's.
        timed = TimedObservation(time.time(), self._step, observation, must_go=True)
        data = pickle.dumps(timed)
        self.bytes_up += len(data)
        self._stub.SendObservations(send_bytes_in_chunks(data, pb.Observation))
        while self._chunks.get(timeout=timeout_s)[0].get_timestep() != self._step:
            pass
        return (time.perf_counter_ns() - began) * 1e-6

    def close(self) -> None:
        """Ends the connection."""
        self._running = False
        self._channel.close()
