"""Settings of the remote policy, under LeRobot's ``--policy.type=onset``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lerobot.configs import NormalizationMode, PreTrainedConfig
from lerobot.optim import AdamWConfig

from controller.errors import ErrorCode, OnsetError
from controller.strategy import STRATEGIES
from controller.types import FrameEncoding


@PreTrainedConfig.register_subclass("onset")
@dataclass
class OnsetConfig(PreTrainedConfig):
    """Settings of the remote policy.

    Attributes:
        server: ``host:port``.
        strategy: How the server makes chunks. None that begins late: LeRobot knows no forecast.
        n_action_steps: Actions executed before the next observation is sent; all when 0.
        prompt: The instruction where the environment names none.
        cameras: Server's camera to the observation's key.
        encoding: How frames travel: ``"raw"``, ``"png"`` or ``"jpeg"``.
        robot_id: Names this robot or environment in the server's log.
        timeout_s: Longest wait for actions [s].
        fps: Policy rate [1/s]; the server's own when 0.
        rtc_config: Set by LeRobot's real-time chunking, and of no use here.
    """

    server: str = "127.0.0.1:50051"
    strategy: str = "naive"
    n_action_steps: int = 0
    prompt: str = ""
    cameras: dict[str, str] = field(default_factory=dict)
    encoding: str = "raw"
    robot_id: str = "lerobot"
    timeout_s: float = 60.0
    fps: float = 0.0
    rtc_config: Any = None
    # The server normalises; what LeRobot has here passes through.
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: dict.fromkeys(
            ("VISUAL", "STATE", "ACTION"), NormalizationMode.IDENTITY
        )
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        offered = [n for n, s in STRATEGIES.items() if not s.late]
        if self.strategy not in offered:
            raise OnsetError(ErrorCode.UNKNOWN_STRATEGY, "policy.strategy", self.strategy, offered)
        encodings = [str(e) for e in FrameEncoding]
        if self.encoding not in encodings:
            raise OnsetError(ErrorCode.BAD_VALUE, "policy.encoding", self.encoding, encodings)
        if self.timeout_s <= 0:
            raise OnsetError(ErrorCode.BAD_VALUE, "policy.timeout_s", self.timeout_s, "more than 0")

    def validate_features(self) -> None:
        """The server checks them."""

    def get_optimizer_preset(self) -> AdamWConfig:
        return AdamWConfig()

    def get_scheduler_preset(self) -> None:
        return None

    @property
    def observation_delta_indices(self) -> None:
        return None

    @property
    def action_delta_indices(self) -> None:
        return None

    @property
    def reward_delta_indices(self) -> None:
        return None
