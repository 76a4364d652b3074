"""How the control loop reaches a policy: by gRPC, or in process in virtual time."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from controller.types import ActionSlice, Observation


class PolicyLink(Protocol):
    """A non-blocking path to a policy. Neither call waits for the network."""

    def submit(self, observation: Observation) -> None:
        """Hands over an observation; an unsent older one is replaced, never queued."""
        ...

    def poll(self, now_ns: int) -> list[ActionSlice]:
        """Returns the slices that have arrived since the last call, in order of arrival."""
        ...


@runtime_checkable
class EpisodicLink(PolicyLink, Protocol):
    """A link whose far side keeps state of the episode and must hear of a new one."""

    def reset(self, episode: str, prompt: str) -> None:
        """Announces a new episode; what has not been sent or polled is dropped."""
        ...


@runtime_checkable
class WaitingLink(PolicyLink, Protocol):
    """A link that can be waited on, by a program that has nothing to do until slices come."""

    def wait(self, timeout_s: float) -> None:
        """Waits until slices have arrived, the link has ended, or a timeout [s]."""
        ...
