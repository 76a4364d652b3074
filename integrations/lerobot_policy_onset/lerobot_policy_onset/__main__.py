"""Writes the directory that `lerobot-rollout --policy.path` wants, from what a server says.

python -m lerobot_policy_onset --server HOST:50051 --out outputs/remote
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro
from lerobot.configs import FeatureType, PolicyFeature

from controller.client import describe
from controller.errors import OnsetError
from lerobot_policy_onset.configuration_onset import OnsetConfig
from lerobot_policy_onset.processor_onset import make_onset_pre_post_processors


@dataclass(frozen=True)
class Args:
    """Settings.

    Attributes:
        out: Directory to write.
        server: ``host:port``.
        strategy: How the server makes chunks.
        encoding: How frames travel: raw, png or jpeg.
        keys: Keys of the observation's images, in the order of the server's cameras; by default
            ``observation.images.CAMERA``.
    """

    out: Path
    server: str = "127.0.0.1:50051"
    strategy: str = "naive"
    encoding: str = "raw"
    keys: tuple[str, ...] = ()


def main(args: Args) -> int:
    """Writes the directory; 2 where the server does not answer."""
    try:
        robot = describe(args.server).robot
        config = OnsetConfig(
            server=args.server, strategy=args.strategy, encoding=args.encoding, device="cpu"
        )
    except OnsetError as error:
        print(f"lerobot_policy_onset: {error}", file=sys.stderr)
        return 2
    keys = args.keys or tuple(f"observation.images.{c.name}" for c in robot.cameras)
    if args.keys:
        config.cameras = {c.name: key for c, key in zip(robot.cameras, keys, strict=True)}
    config.input_features = {
        "observation.state": PolicyFeature(FeatureType.STATE, (len(robot.state),))
    } | {
        key: PolicyFeature(FeatureType.VISUAL, (3, camera.height, camera.width))
        for key, camera in zip(keys, robot.cameras, strict=True)
    }
    config.output_features = {"action": PolicyFeature(FeatureType.ACTION, (len(robot.action),))}
    args.out.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(args.out)
    for pipeline in make_onset_pre_post_processors(config):
        pipeline.save_pretrained(args.out)
    print(f"wrote {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, description=__doc__)))
