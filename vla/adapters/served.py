"""A LeRobot policy as the server sees it: what it says of itself, and which robots fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from controller.bounds import MAX_PROMPT_CHARS, check_range, check_text
from controller.errors import ErrorCode, OnsetError
from controller.messages import Description
from controller.types import CameraSpec, Dimension, RobotSpec
from vla.adapters.engine import LeRobotEngine, walked
from vla.adapters.load import LeRobotPolicy
from vla.adapters.session import renames
from vla.serve.config import ServeConfig

_PERIOD_NS = 33_333_333  # said of itself only: a checkpoint does not know its period
_LIMIT = 1e6  # nor the limits, nor the units


class ServedLeRobot:
    """A LeRobot policy to serve.

    A checkpoint knows how many numbers it takes and gives, not what they are called. So a robot's
    names hold, by order; cameras are mapped by name.
    """

    def __init__(self, policy: LeRobotPolicy, cameras: Mapping[str, str] | None = None) -> None:
        """Args:
        policy: The policy.
        cameras: Robot's camera to the policy's image feature; by default each feature's last
            part is the camera's name.

        Raises:
            OnsetError: BAD_NAMES: a feature is mapped twice, not at all, or does not exist.
        """
        self.policy = policy
        keys = self._keys()
        if cameras is None:
            cameras = {key.rpartition(".")[2]: key for key in keys}
        if sorted(cameras.values()) != sorted(keys):
            raise OnsetError(ErrorCode.BAD_NAMES, "cameras", dict(cameras), f"each of {keys} once")
        self.cameras = dict(cameras)
        self._action_dim = self._robot_actions()

    def _keys(self) -> list[str]:
        """Image keys as the preprocessor takes them, before it renames any."""
        back: dict[str, str] = {}
        for step in self.policy.pre.steps:
            back |= {new: old for old, new in renames(step).items()}
        return [back.get(feature, feature) for feature in self.policy.adapter.cameras]

    def _robot_actions(self) -> int:
        """A, which the post-processor may change."""
        adapter = self.policy.adapter
        with torch.inference_mode():
            blank = adapter.finish(torch.zeros(1, 1, adapter.action_dim))[0]
        names: Sequence[Any] | None = getattr(adapter.config, "action_feature_names", None)
        if names:
            return len(names)
        # Actions relative to a state have as many numbers as others, and no state is there yet.
        steps = [s for s in self.policy.post.steps if not hasattr(s, "relative_step")]
        return type(self.policy.post)(
            steps=steps,
            to_transition=self.policy.post.to_transition,
            to_output=self.policy.post.to_output,
        )(blank).shape[-1]

    def describe(self, config: ServeConfig) -> Description:
        """What a server of it says. Names of dimensions are stand-ins: any names are taken.

        Raises:
            OnsetError: The schedule or the cache is not supported, or more is to be executed than
                a chunk has.
        """
        policy, adapter = self.policy, self.policy.adapter
        horizon, executed = adapter.horizon, config.executed or 1
        adapter.capabilities.check_schedule(policy.name, config.schedule)
        adapter.capabilities.check_cache(policy.name, config.cache.mode)
        steps = config.steps or adapter.expert_steps
        schedule = walked(config.schedule, horizon, 0, steps, adapter.average)
        check_range("executed", executed, 1, horizon)
        tuned = max(policy.tuning.max_delay, policy.tuning.max_start)
        return Description(
            model=policy.name,
            model_hash=policy.digest,
            prompts=(),
            horizon=horizon,
            robot=self._robot(),
            strategies=adapter.capabilities.strategies(policy.tuning),
            expert_steps=schedule.steps,
            min_delay=0,
            max_delay=min(tuned or horizon - 1, horizon - executed),
        )

    def _robot(self) -> RobotSpec:
        adapter = self.policy.adapter
        features = adapter.config.image_features
        shapes = dict(zip(self._keys(), (features[k].shape for k in adapter.cameras), strict=True))
        return RobotSpec(
            name="any",
            state=_dimensions("state", max(1, adapter.state_dim)),
            action=_dimensions("action", self._action_dim),
            cameras=tuple(
                CameraSpec(name, *shapes[key][-2:]) for name, key in self.cameras.items()
            ),
            period_ns=_PERIOD_NS,
        )

    def check_robot(self, robot: RobotSpec) -> None:
        """Checks that a robot has as many dimensions, and the cameras.

        Raises:
            OnsetError: BAD_NAMES or BAD_VALUE, fatal, with both sides.
        """
        cameras = tuple(camera.name for camera in robot.cameras)
        if set(cameras) != set(self.cameras):
            raise OnsetError(
                ErrorCode.BAD_NAMES,
                "open.robot.cameras",
                list(cameras),
                f"{list(self.cameras)}, which stand for {list(self.cameras.values())}",
                fatal=True,
            )
        # A policy that takes no state drives a robot with any.
        state = self.policy.adapter.state_dim or len(robot.state)
        for name, given, count in (
            ("state", robot.state_names, state),
            ("action", robot.action_names, self._action_dim),
        ):
            if len(given) != count:
                raise OnsetError(
                    ErrorCode.BAD_NAMES,
                    f"open.robot.{name}",
                    f"{len(given)}: {list(given)}",
                    f"{count}, in the policy's order",
                    fatal=True,
                )
        for camera in robot.cameras:
            if camera.lags[0] != 0:
                raise OnsetError(
                    ErrorCode.BAD_VALUE,
                    f"open.robot.cameras[{camera.name}].lags",
                    camera.lags,
                    "0 first: LeRobot's policies see the newest frame alone",
                    fatal=True,
                )

    def check_prompt(self, field: str, prompt: str) -> None:
        """Checks an instruction: any text is one.

        Raises:
            OnsetError: It is too long.
        """
        check_text(field, prompt, MAX_PROMPT_CHARS)

    def engine(self, config: ServeConfig) -> LeRobotEngine:
        """The engine, to be called on the model's thread."""
        return LeRobotEngine(
            self.policy,
            self.cameras,
            schedule=config.schedule,
            expert_steps=config.steps,
            executed=config.executed,
            seed=config.seed,
            device=torch.device(config.device),
            max_sessions=config.max_sessions,
            cache=config.cache,
            selector=self.policy.selector,
        )


def camera_map(pairs: Sequence[str]) -> dict[str, str] | None:
    """The pairs of a command line, ``front=observation.images.camera1``; None for none.

    Raises:
        OnsetError: BAD_VALUE: not a pair, or a camera stands in two.
    """
    found: dict[str, str] = {}
    for pair in pairs:
        name, _, key = pair.partition("=")
        if not name or not key or name in found:
            raise OnsetError(
                ErrorCode.BAD_VALUE, "cameras", list(pairs), "CAMERA=observation.images.NAME ..."
            )
        found[name] = key
    return found or None


def _dimensions(kind: str, count: int) -> tuple[Dimension, ...]:
    return tuple(Dimension(f"{kind}.{i}", "1", -_LIMIT, _LIMIT) for i in range(count))
