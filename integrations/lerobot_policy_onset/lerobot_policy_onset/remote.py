"""One session with the server, for one environment or robot."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np

from controller.client import GrpcLink
from controller.client_session import Event, LinkConfig
from controller.errors import ErrorCode, OnsetError
from controller.types import Float, Image, Observation, RobotSpec


class RemoteSession:
    """Sends observations and keeps the actions that come back, by step."""

    def __init__(
        self,
        address: str,
        robot: RobotSpec,
        *,
        robot_id: str,
        prompt: str,
        strategy: str,
        timeout_s: float,
    ) -> None:
        """Opens a session.

        Args:
            address: ``host:port``.
            robot: Agreed with the server.
            robot_id: Names it in the server's log.
            prompt: The instruction.
            strategy: How chunks are made.
            timeout_s: Longest wait for actions [s].

        Raises:
            OnsetError: The server refuses, or does not answer.
        """
        self._robot, self._timeout_s, self._prompt = robot, timeout_s, prompt
        self._id, self._episode, self._fresh = -1, 0, True
        self._errors: list[OnsetError] = []
        self._link = GrpcLink(
            address,
            robot,
            robot_id=robot_id,
            prompt=prompt,
            strategy=strategy,
            # A slow model is waited for, not given up.
            config=LinkConfig(reply_deadline_s=timeout_s),
            on_event=self._told,
        )
        self._link.__enter__()
        self.begin()

    def _told(self, event: Event) -> None:
        if isinstance(event, OnsetError):
            self._errors.append(event)

    def begin(self) -> None:
        """A new episode begins: its first observation will say so to the server."""
        self.actions: dict[int, Float] = {}
        self.final = True
        self._episode += not self._fresh

    @property
    def horizon(self) -> int:
        """Actions in a chunk."""
        return self._link.opened.horizon

    def ask(
        self,
        step: int,
        state: Float,
        frames: Mapping[str, Image],
        prompt: str,
        *,
        delay: int = 0,
        committed: Float | None = None,
        planned: Float | None = None,
    ) -> None:
        """Sends an observation.

        Args:
            step: Step at which it was made; begins at 0 in each episode.
            state: Shape (S,).
            frames: Per camera, uint8 RGB. Shape (h, w, 3).
            prompt: The instruction.
            delay: Step offset at which the new actions will take over [steps].
            committed: Actions until then. Shape (delay, A) or shorter.
            planned: What the old chunk says behind them. Shape (m, A).

        Raises:
            OnsetError: Something in it is not allowed, or the session has ended.
        """
        episode = self._episode
        if step == 0 and not self._fresh:
            self._link.reset(str(episode), prompt)
        changed = None if self._fresh or prompt == self._prompt or step == 0 else prompt
        self._fresh, self._prompt = False, prompt
        self._id += 1
        # The answer is from here on: what the old chunk says of these steps is over.
        self.actions, self.final = {}, False
        none = np.zeros((0, len(self._robot.action)), np.float32)
        self._link.submit(
            Observation(
                id=self._id,
                step=step,
                capture_ns=time.monotonic_ns(),
                state=np.asarray(state, np.float32),
                frames={name: frame[None] for name, frame in frames.items()},
                committed=none if committed is None else committed,
                planned=none if planned is None else planned,
                delay=delay,
                deadline_ns=0,
                prompt=changed,
            )
        )

    def action(self, step: int) -> Float:
        """The action of a step, as soon as it has come. Shape (A,).

        Raises:
            OnsetError: The server refused the observation, or was too long about it.
        """
        self._await(lambda: step in self.actions)
        return self.actions[step]

    def chunk(self) -> dict[int, Float]:
        """Everything that answers the last observation, by step.

        Raises:
            OnsetError: As ``action``.
        """
        self._await(lambda: self.final)
        return self.actions

    def _await(self, done) -> None:
        until = time.monotonic() + self._timeout_s
        while not done():
            for piece in self._link.poll(0):
                if piece.observation_id == self._id:
                    self.actions.update(zip(piece.steps.tolist(), piece.actions, strict=True))
                    self.final = piece.final
            if done():
                return
            for error in self._errors:
                if error.observation_id in (self._id, -1):
                    self._errors.clear()
                    raise error
            if time.monotonic() > until:
                raise OnsetError(
                    ErrorCode.UNAVAILABLE,
                    "policy.server",
                    f"no actions for observation {self._id}",
                    f"an answer within {self._timeout_s} s",
                )
            self._link.wait(0.1)

    def close(self) -> None:
        """Ends the session."""
        self._link.close()
