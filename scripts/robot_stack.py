"""Everything on the robot's side of the wire, put together: executor, recorder, cameras, client."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from controller.client import GrpcLink
from controller.client_types import Event
from controller.clock import MonotonicClock
from controller.errors import ErrorCode, OnsetError
from controller.link_state import LinkState, LinkStatus
from controller.loop_types import LoopConfig
from controller.meter import MeteredLink
from controller.record import Level
from controller.robot import Cameras
from controller.robot_client import RobotClient
from controller.runtime import Runtime, RuntimeSetup
from controller.types import RobotSpec


@dataclass(frozen=True)
class StackSetup:
    """A robot and what moves it.

    Attributes:
        spec: The robot.
        robot: Robot file, or the name of a bundled one.
        joints: ``module:function`` that makes its joints in the executor's process.
        options: What that function is given; plain JSON.
        cameras: Its cameras.
        server: host:port of the policy server.
        prompt: The first instruction.
        loop: When to observe, and how chunks take over.
        robot_id: Names the robot to the server, and its shared memory.
        control_hz: Set-points per second.
        recordings: Folder for the recording; None to record nothing.
        executor: Further options of ``controller.executor_process``.
        extra: What the recording's description says besides.
    """

    spec: RobotSpec
    robot: str
    joints: str
    options: Mapping[str, Any]
    cameras: Cameras
    server: str
    prompt: str
    loop: LoopConfig
    robot_id: str
    control_hz: int = 200
    recordings: Path | None = None
    executor: tuple[str, ...] = ()
    extra: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Stack:
    """A robot that can be driven.

    Attributes:
        runtime: Its executor and recorder.
        link: The way to the policy, with its times.
        client: What plans for it.
    """

    runtime: Runtime
    link: MeteredLink
    client: RobotClient


@contextlib.contextmanager
def robot_stack(setup: StackSetup) -> Iterator[Stack]:
    """Opens the session first, so that nothing moves for a server that refuses; then the rest.

    Raises:
        OnsetError: There is no server or it refuses; or the executor does not start.
    """
    notes: list[RobotClient] = []  # the client, once there is one to note things for

    def on_state(status: LinkStatus) -> None:
        level = Level.INFO if status.state is LinkState.STREAMING else Level.WARNING
        for client in notes:
            client.note(level, f"link {status.state}: {status.reason}")

    def on_event(event: Event) -> None:
        for client in notes:
            client.note(Level.WARNING, str(event))

    with GrpcLink(
        setup.server,
        setup.spec,
        robot_id=setup.robot_id,
        prompt=setup.prompt,
        strategy=setup.loop.strategy,
        on_event=on_event,
        on_state=on_state,
    ) as link:
        runtime_setup = RuntimeSetup(
            shared_name(setup.robot_id),
            setup.spec,
            setup.robot,
            setup.joints,
            setup.options,
            setup.control_hz,
            setup.recordings,
            setup.executor,
            {
                "strategy": setup.loop.strategy,
                "prompt": setup.prompt,
                "server": setup.server,
                "model": link.opened.model,
                "extra": setup.extra,
            },
        )
        with Runtime.start(runtime_setup) as runtime:
            metered = MeteredLink(link)
            client = RobotClient(
                setup.spec, runtime, setup.cameras, metered, setup.loop, setup.prompt,
                MonotonicClock(), reopens=lambda: link.stats.reopens,
            )  # fmt: skip
            notes.append(client)
            yield Stack(runtime, metered, client)


def shared_name(robot_id: str) -> str:
    """The shared memory of a robot: its id as far as such a name may say it."""
    kept = "".join(c if c.isalnum() or c in "_.-" else "-" for c in robot_id.lower())
    return kept[:18].strip("-.") or f"robot-{os.getpid()}"


def lerobot_options(
    robot: str, kind: str, port: str, robot_id: str, options: str, units: str, *, dry_run: bool
) -> dict[str, Any]:
    """What ``controller.robots.lerobot`` is told of a robot.

    Args:
        robot: Robot file, or the name of a bundled one.
        kind: LeRobot's type of it, e.g. so101_follower.
        port: Its serial port; empty where it has none.
        robot_id: Names its calibration.
        options: Further fields of LeRobot's configuration, as JSON.
        units: How its units meet ours, as JSON: zeros, reversed, units, fit, modules.
        dry_run: Whether commands are not to be sent.

    Raises:
        OnsetError: BAD_VALUE when a text is no JSON object.
    """
    settings = {"id": robot_id, **({"port": port} if port else {}), **_object("options", options)}
    edge = _object("units", units)
    return {"robot": robot, "type": kind, "options": settings, "dry_run": dry_run, **edge}


def _object(field_name: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise OnsetError(
            ErrorCode.BAD_VALUE, field_name, f"{text}: {error}", "a JSON object"
        ) from error
    if not isinstance(value, dict):
        raise OnsetError(ErrorCode.BAD_VALUE, field_name, text, "a JSON object")
    return value
