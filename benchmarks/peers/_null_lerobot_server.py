"""LeRobot's policy server, unchanged, with a policy put into it that costs nothing.

Prints `serving no model at HOST:PORT`.
"""

from __future__ import annotations

import json
import sys
from concurrent import futures
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import grpc
import torch
import tyro
from lerobot.async_inference.configs import PolicyServerConfig
from lerobot.async_inference.policy_server import PolicyServer
from lerobot.transport import services_pb2_grpc


@dataclass(frozen=True)
class Args:
    """Settings.

    Attributes:
        features: Dataset features of the robot, as JSON.
        actions: Action dimensions.
        chunk: Actions in a chunk.
        side: Height and width of the images that the policy takes [px], to which the server scales
            frames; the camera's own when 0.
        port: Port to listen at; 0 takes a free one.
    """

    features: str
    actions: int = 14
    chunk: int = 50
    side: int = 0
    port: int = 0


def main(args: Args) -> int:
    features = json.loads(args.features)
    # No wait that stretches inference to 33 ms, which is LeRobot's default.
    peer: Any = PolicyServer(PolicyServerConfig(inference_latency=0.0))
    images = {
        name: SimpleNamespace(shape=(3, *((args.side,) * 2 if args.side else f["shape"][:2])))
        for name, f in features.items()
        if f["dtype"] == "image"
    }
    chunk = torch.zeros(1, args.chunk, args.actions)
    peer.policy = SimpleNamespace(
        config=SimpleNamespace(image_features=images),
        predict_action_chunk=lambda observation: chunk,
    )
    peer.preprocessor = peer.postprocessor = lambda value: value
    peer.lerobot_features, peer.actions_per_chunk = features, args.chunk
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
    services_pb2_grpc.add_AsyncInferenceServicer_to_server(peer, server)
    port = server.add_insecure_port(f"127.0.0.1:{args.port}")
    server.start()
    print(f"serving no model at 127.0.0.1:{port}", flush=True)
    server.wait_for_termination()
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args)))
