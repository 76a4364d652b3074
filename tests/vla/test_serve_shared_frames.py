"""Frames through shared memory over the real wire: the same answers, and what happens without."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace

import numpy as np
import pytest

from controller import shared_frames
from controller.codec import encode_client
from controller.errors import OnsetError
from controller.messages import Open
from controller.shared_frames import SharedFramesWriter, offer_frames
from controller.types import Observation
from onset.v1 import policy_pb2 as pb
from tests.vla.helpers import (
    PATIENT,
    PROMPTS,
    ROBOT,
    LocalServer,
    Wire,
    chunk_of,
    link_to,
    observation,
    until,
)
from tests.vla.test_serve_bad_input import refused_and_survived, refused_fatally
from vla.engine import Engine


@pytest.fixture(autouse=True)
def a_folder_of_its_own(monkeypatch, tmp_path):
    """Where nobody else leaves files; the frames of the tests' robot are small."""
    monkeypatch.setattr(shared_frames, "FOLDER", tmp_path)
    monkeypatch.setattr(shared_frames, "WORTH_BYTES", 0)


def asked(id: int, seed: int | None = None) -> Observation:
    """An observation that waits for a busy machine."""
    return observation(id, seed, deadline_ns=0)


def names() -> list[str]:
    return os.listdir(shared_frames.FOLDER)


def test_two_robots_each_get_the_answer_to_their_own_frames(server, tiny):
    engine = Engine(tiny)
    with link_to(server, robot_id="a") as one, link_to(server, robot_id="b") as other:
        assert one.opened.shared_frames
        assert other.opened.shared_frames
        assert not names()
        for id in range(20):
            each = {one: asked(id, seed=id), other: asked(id, seed=1000 + id)}
            for link, seen in each.items():
                link.submit(seen)
            for link, seen in each.items():
                np.testing.assert_allclose(
                    chunk_of(link).actions, engine.chunk(seen, PROMPTS[0]), atol=1e-6
                )
        size = shared_frames.frame_bytes(ROBOT)
        for link in (one, other):
            assert link.stats.bytes_shared == 20 * size
            assert link.stats.bytes_up < 20 * size / 10
            assert link.stats.errors == 0


def test_every_frame_is_read_before_its_slot_is_needed_again(server):
    with link_to(server, config=replace(PATIENT, max_awaited=2)) as link:
        for id in range(200):
            link.submit(asked(id, seed=1))
            if id % 7 == 0:
                until(lambda: link.poll(0))
        until(lambda: (s := link.stats).answered + s.superseded == s.observations and s.answered)
        stats = link.stats
    assert (stats.errors, stats.refused, stats.lost) == (0, 0, 0)
    assert stats.bytes_shared == stats.observations * shared_frames.frame_bytes(ROBOT)


@pytest.mark.parametrize("who", ["server", "robot", "small"])
def test_either_end_may_want_frames_in_messages(tiny, who, monkeypatch):
    if who == "small":
        monkeypatch.setattr(shared_frames, "WORTH_BYTES", 10**6)
    with (
        LocalServer(tiny, shared_frames=who != "server") as server,
        link_to(server, config=replace(PATIENT, shared_frames=who != "robot")) as link,
    ):
        assert not link.opened.shared_frames
        link.submit(asked(0))
        expected = Engine(tiny).chunk(asked(0), PROMPTS[0])
        np.testing.assert_allclose(chunk_of(link).actions, expected, atol=1e-6)
        assert link.stats.bytes_shared == 0
        assert not names()


def test_without_room_frames_travel_in_messages(server, monkeypatch):
    monkeypatch.setattr(SharedFramesWriter, "reserve", lambda self: False)
    with link_to(server) as link:
        assert link.opened.shared_frames  # the server has it open, and is content without
        link.submit(asked(0))
        assert chunk_of(link).final
        assert link.stats.bytes_shared == 0


def test_a_server_on_another_machine_does_not_find_the_file(server, monkeypatch):
    monkeypatch.setattr(shared_frames.SharedFramesReader, "find", lambda *_: None)
    with link_to(server) as link:
        assert not link.opened.shared_frames
        link.submit(asked(0))
        assert chunk_of(link).final
        assert not names()


def test_another_server_is_given_another_file(tiny):
    first = LocalServer(tiny).__enter__()
    with link_to(first) as link:
        link.submit(asked(0))
        chunk_of(link)
        first.__exit__()
        with LocalServer(tiny, port=first.port):
            until(lambda: link.stats.reopens == 1)
            link.submit(asked(1))
            expected = Engine(tiny).chunk(asked(1), PROMPTS[0])
            np.testing.assert_allclose(chunk_of(link).actions, expected, atol=1e-6)
            assert link.stats.bytes_shared == 2 * shared_frames.frame_bytes(ROBOT)
    assert not names()


def test_frames_that_cannot_be_put_are_told_and_the_link_goes_on(server, monkeypatch):
    events: list = []
    with link_to(server, on_event=events.append) as link:
        monkeypatch.setattr(os, "pwritev", lambda *_: 17)
        link.submit(asked(0))
        (error,) = until(lambda: events)
        assert isinstance(error, OnsetError)
        assert "shared memory: 17 of" in str(error)
        assert link.stats.unsendable == 1
        monkeypatch.undo()
        link.submit(asked(1))
        assert chunk_of(link).observation_id == 1


# What no link of ours would send.


@pytest.fixture
def wire(server):
    with Wire(server.address) as stream:
        yield stream


@pytest.fixture
def writer():
    ends = offer_frames(ROBOT, 2)
    assert ends is not None
    yield ends
    ends.close()


def in_slot(slot: int, id: int = 0) -> pb.ClientMessage:
    message = encode_client(asked(id), ROBOT)
    del message.observation.frames[:]
    message.observation.shared_slot = slot
    return message


def test_a_name_that_is_none_is_refused(wire):
    message = encode_client(Open("arm-1", ROBOT, PROMPTS[0], "e0", "naive"), ROBOT)
    message.open.shared_frames = "../../etc/passwd"
    wire.send(message)
    error = refused_fatally(wire, "BAD_VALUE", "open.shared_frames")
    assert "passwd" in error.given


def test_a_slot_without_an_agreement_is_refused(wire):
    opened = wire.open(shared_frames="onset_frames-" + "0" * 32).opened
    assert not opened.shared_frames
    wire.send(in_slot(0))
    error = refused_and_survived(wire, "BAD_FRAME", "observation.shared_slot", 0)
    assert "were not agreed on" in error.allowed


def test_what_is_not_in_the_slot_is_refused(wire, writer):
    assert wire.open(shared_frames=writer.name).opened.shared_frames
    wire.send(in_slot(0))
    error = refused_and_survived(wire, "BAD_FRAME", "observation.shared_slot", 0)
    assert error.given == "0 bytes in 0"


def test_another_observations_frames_are_refused(wire, writer):
    assert wire.open(shared_frames=writer.name).opened.shared_frames
    assert writer.reserve()
    slot = writer.put(4, asked(4).frames)
    wire.send(in_slot(slot, 4))
    assert wire.next().slice.observation_id == 4
    wire.send(in_slot(slot, 5))
    error = refused_and_survived(wire, "BAD_FRAME", "observation.shared_slot", 5)
    assert error.given == "frames of observation 4 in 0"


def test_a_slot_past_the_bound_is_refused(wire, writer):
    assert wire.open(shared_frames=writer.name).opened.shared_frames
    wire.send(in_slot(shared_frames.MAX_SLOTS))
    refused_and_survived(wire, "BAD_VALUE", "observation.shared_slot", 0)


def test_frames_in_both_places_are_refused(wire, writer):
    assert wire.open(shared_frames=writer.name).opened.shared_frames
    message = encode_client(asked(0), ROBOT)
    message.observation.shared_slot = 0
    wire.send(message)
    refused_and_survived(wire, "TOO_LARGE", "observation.frames", 0)


def test_a_robot_that_is_killed_leaves_no_file(server):
    program = textwrap.dedent(
        f"""
        import os, pathlib, signal
        from controller import shared_frames
        shared_frames.FOLDER = pathlib.Path("{shared_frames.FOLDER}")
        shared_frames.WORTH_BYTES = 0
        from tests.vla.helpers import chunk_of, link_to, observation
        link = link_to("{server.address}")
        link.__enter__()
        link.submit(observation(0))
        chunk_of(link)
        assert link.stats.bytes_shared
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert not names()
    with link_to(server) as link:
        link.submit(asked(0))
        assert chunk_of(link).final
