"""The remote policy: LeRobot's interface on one side, sessions with the server on the other."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import OBS_IMAGE, OBS_STATE
from torch import Tensor

from controller.client import describe
from controller.errors import ErrorCode, OnsetError
from controller.messages import Description
from controller.types import CameraSpec, Float, FrameEncoding, Image, RobotSpec
from lerobot_policy_onset.configuration_onset import OnsetConfig
from lerobot_policy_onset.remote import RemoteSession


class OnsetPolicy(PreTrainedPolicy):
    """A policy without weights. One session for each row of a batch, in each thread."""

    config_class = OnsetConfig  # type: ignore[assignment]
    name = "onset"  # type: ignore[assignment]

    def __init__(self, config: OnsetConfig, **kwargs: Any) -> None:
        super().__init__(config)
        self.config: OnsetConfig = config
        self._local = threading.local()

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_name_or_path: str | Path,
        *,
        config: PreTrainedConfig | None = None,
        **kwargs: Any,
    ) -> Self:
        """There are no weights: the directory holds the settings alone."""
        if config is None:
            config = PreTrainedConfig.from_pretrained(pretrained_name_or_path)
        return cls(config)  # type: ignore[arg-type]

    def supports_rtc(self) -> bool:
        return True

    def get_optim_params(self) -> dict:
        return {}

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict | None]:
        """Not offered.

        Raises:
            OnsetError: Always: there is nothing to train here.
        """
        raise OnsetError(
            ErrorCode.BAD_VALUE, "policy", "training", "inference; the weights are the server's"
        )

    def reset(self) -> None:
        """A new episode begins, in every session of this thread."""
        for session in self._sessions():
            session.begin()
        self._local.step = 0
        self._local.began = None

    @torch.no_grad()
    def select_action(self, batch: dict[str, Any], **kwargs: Any) -> Tensor:
        """The next action of each row. Shape (B, A).

        A new observation is sent when the actions of the last one are used up; the first action is
        returned when it is there, while the server finishes the others.

        Raises:
            OnsetError: The server refuses, or does not answer.
        """
        rows = self._rows(batch)
        step: int = self._local.step
        sessions = self._sessions()
        limit = self.config.n_action_steps or sessions[0].horizon
        if step == 0 or step - self._local.asked >= limit:
            for session, (state, frames, prompt) in zip(sessions, rows, strict=True):
                session.ask(step, state, frames, prompt)
            self._local.asked = step
        actions = np.stack([session.action(step) for session in sessions])
        self._local.step = step + 1
        return torch.from_numpy(actions).to(batch[OBS_STATE].device)

    @torch.no_grad()
    def predict_action_chunk(
        self,
        batch: dict[str, Any],
        inference_delay: int = 0,
        prev_chunk_left_over: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """A chunk that begins at the observation. Shape (B, H, A).

        Args:
            batch: The observation.
            inference_delay: Actions of the old chunk that will be executed until the new one is
                there [steps].
            prev_chunk_left_over: What is left of the old chunk, in the robot's units. Shape
                (m, A). LeRobot fills it up with zeros, which are taken off.

        Raises:
            OnsetError: The server refuses, or does not answer.
        """
        rows = self._rows(batch)
        began = self._local.began
        now = time.monotonic()
        if began is None:
            self._local.began = began = now
        # LeRobot does not say which step it is at; the server asks only that none comes twice.
        step = max(self._local.step, round((now - began) * self._fps))
        self._local.step = step + 1
        old = _without_filling(prev_chunk_left_over)
        delay = min(inference_delay, self._description().max_delay) if len(old) else 0
        chunks = []
        for session, (state, frames, prompt) in zip(self._sessions(), rows, strict=True):
            session.ask(
                step,
                state,
                frames,
                prompt,
                delay=delay,
                committed=old[:delay] if len(old) else None,
                planned=old[delay:] if len(old) else None,
            )
        for session in self._sessions():
            answer = session.chunk()
            # Under the strategy "prefix" the committed actions are not sent back.
            known = {step + i: row for i, row in enumerate(old[:delay])} | answer
            chunks.append(np.stack([known[at] for at in sorted(known)]))
        return torch.from_numpy(np.stack(chunks)).to(batch[OBS_STATE].device)

    def close(self) -> None:
        """Ends the sessions of this thread."""
        for session in self._sessions():
            session.close()
        self._local.sessions = []

    @property
    def _fps(self) -> float:
        return self.config.fps or 1e9 / self._description().robot.period_ns

    def _sessions(self) -> list[RemoteSession]:
        if not hasattr(self._local, "sessions"):
            self._local.sessions, self._local.step, self._local.began = [], 0, None
        return self._local.sessions

    def _description(self) -> Description:
        if not hasattr(self._local, "description"):
            self._local.description = describe(self.config.server, self.config.timeout_s)
        return self._local.description

    def _rows(self, batch: dict[str, Any]) -> list[tuple[Float, dict[str, Image], str]]:
        """State, frames and instruction of each row; opens the sessions that are missing."""
        states = batch[OBS_STATE].detach().cpu().numpy().astype(np.float32)
        keys = self._cameras(batch)
        images = {camera: _pictures(batch[key]) for camera, key in keys.items()}
        prompts = self._prompts(batch, len(states))
        rows = [
            (states[i], {name: frames[i] for name, frames in images.items()}, prompts[i])
            for i in range(len(states))
        ]
        sessions = self._sessions()
        while len(sessions) > len(rows):
            sessions.pop().close()
        while len(sessions) < len(rows):
            _, frames, prompt = rows[len(sessions)]
            sessions.append(self._open(states.shape[1], frames, prompt, len(sessions)))
        return rows

    def _open(self, states: int, frames: dict[str, Image], prompt: str, row: int) -> RemoteSession:
        config, said = self.config, self._description()
        if states != len(said.robot.state):
            raise OnsetError(
                ErrorCode.BAD_NAMES,
                "observation.state",
                f"{states} numbers",
                f"{len(said.robot.state)}: {list(said.robot.state_names)}",
            )
        cameras = tuple(
            CameraSpec(name, *frames[name].shape[:2], FrameEncoding(config.encoding))
            for name in (c.name for c in said.robot.cameras)
        )
        period_ns = round(1e9 / config.fps) if config.fps else said.robot.period_ns
        robot: RobotSpec = replace(said.robot, cameras=cameras, period_ns=period_ns)
        return RemoteSession(
            config.server,
            robot,
            robot_id=f"{config.robot_id}/{threading.get_ident() % 10_000}/{row}",
            prompt=prompt,
            strategy=config.strategy,
            timeout_s=config.timeout_s,
        )

    def _cameras(self, batch: dict[str, Any]) -> dict[str, str]:
        """Server's camera to the batch's key."""
        given = [k for k, v in batch.items() if k.startswith(OBS_IMAGE) and isinstance(v, Tensor)]
        wanted = [camera.name for camera in self._description().robot.cameras]
        named = self.config.cameras or {key.rpartition(".")[2]: key for key in given}
        if not self.config.cameras and len(given) == len(wanted) == 1:
            named = {wanted[0]: given[0]}
        if not set(wanted) <= set(named) or not {named[n] for n in wanted} <= set(given):
            raise OnsetError(
                ErrorCode.BAD_NAMES,
                "policy.cameras",
                f"{dict(named)} of an observation with {given}",
                f"a key for each of the server's cameras {wanted}",
            )
        return {name: named[name] for name in wanted}

    def _prompts(self, batch: dict[str, Any], count: int) -> list[str]:
        given = batch.get("task") or [""] * count
        given = [given] * count if isinstance(given, str) else list(given)
        known = self._description().prompts
        own = self.config.prompt or (known[0] if len(known) == 1 else "")
        prompts = [text or own for text in given]
        if not all(prompts):
            raise OnsetError(
                ErrorCode.UNKNOWN_PROMPT,
                "task",
                "''",
                f"--policy.prompt, where an environment names none: {list(known) or 'any text'}",
            )
        return prompts


def _pictures(images: Tensor) -> np.ndarray:
    """LeRobot's images, float in 0..1 or uint8, (B, 3, h, w), as uint8 (B, h, w, 3)."""
    if images.is_floating_point():
        images = images.mul(255).round_().clamp_(0, 255).to(torch.uint8)
    return np.ascontiguousarray(images.permute(0, 2, 3, 1).cpu().numpy())


def _without_filling(rows: Tensor | None) -> Float:
    """What is left of an old chunk, without zero rows at its end. Shape (m, A)."""
    if rows is None:
        return np.zeros((0, 0), np.float32)
    values = rows.detach().reshape(-1, rows.shape[-1]).cpu().numpy().astype(np.float32)
    used = np.flatnonzero(values.any(axis=1))
    return values[: used[-1] + 1 if len(used) else 0]
