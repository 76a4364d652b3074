"""Every kind of bad input over the real wire: a typed error, and who survives it."""

from dataclasses import replace

import numpy as np
import pytest

from controller.bounds import MAX_FRAME_BYTES
from controller.codec import encode_client
from controller.messages import Reset
from controller.types import Dimension, FrameEncoding
from onset.v1 import policy_pb2 as pb
from tests.vla.helpers import HORIZON, PROMPTS, ROBOT, Wire, observation

CODES = pb.ErrorCode.Value


def code(name: str) -> int:
    return CODES(f"ERROR_CODE_{name}")


def wire_observation(id: int = 0, **changes) -> pb.ClientMessage:
    return encode_client(observation(id, **changes), ROBOT)


@pytest.fixture
def wire(server):
    with Wire(server.address) as stream:
        yield stream


@pytest.fixture
def opened(wire):
    assert wire.open().WhichOneof("message") == "opened"
    return wire


def refused_fatally(wire: Wire, name: str, field: str) -> pb.Error:
    error = wire.error()
    assert (error.code, error.fatal, error.observation_id) == (code(name), True, -1)
    assert error.field == field
    assert error.given
    assert error.allowed
    assert wire.ended()
    return error


def refused_and_survived(wire: Wire, name: str, field: str, id: int) -> pb.Error:
    error = wire.error()
    assert (error.code, error.fatal, error.observation_id) == (code(name), False, id)
    assert field in error.field
    assert error.given
    assert error.allowed
    wire.send(observation(90))
    assert wire.next().slice.observation_id == 90
    return error


# Before Open: the stream ends, the server does not.

FIRST = {
    "observation": (wire_observation(), "observation"),
    "reset": (Reset("e1", PROMPTS[0]), "reset"),
    "close": (pb.ClientMessage(close=pb.Close()), "close"),
    "nothing": (pb.ClientMessage(), "message"),
    "empty bytes": (b"", "message"),
    "garbage": (b"\xff\xfe garbage \x00\x01", "message"),
}


@pytest.mark.parametrize("first", FIRST)
def test_anything_before_open_is_refused(server, wire, first):
    message, field = FIRST[first]
    wire.send(message)
    refused_fatally(wire, "NOT_OPEN", field)
    with Wire(server.address) as other:
        assert other.open().WhichOneof("message") == "opened"


def test_an_unknown_prompt_lists_the_known_ones(wire):
    wire.send(open_with(prompt="juggle"))
    error = refused_fatally(wire, "UNKNOWN_PROMPT", "open.prompt")
    assert all(prompt in error.allowed for prompt in PROMPTS)


def test_an_unknown_strategy_lists_the_known_ones(wire):
    wire.send(open_with(strategy="prefix"))
    error = refused_fatally(wire, "UNKNOWN_STRATEGY", "open.strategy")
    assert "naive" in error.allowed


def open_with(**changes) -> pb.ClientMessage:
    message = pb.ClientMessage()
    fields = {"protocol": 1, "robot_id": "a", "prompt": PROMPTS[0], "episode": "0"}
    for name, value in ({"strategy": "naive"} | fields | changes).items():
        setattr(message.open, name, value)
    message.open.robot.CopyFrom(pb_robot(ROBOT))
    return message


def pb_robot(robot) -> pb.RobotSpec:
    from controller.codec_robot import encode_robot

    return encode_robot(robot)


EXTRA = Dimension("wrist.pos", "rad", -1.0, 1.0)
MISMATCHES = {
    "state names": (replace(ROBOT, state=ROBOT.state[::-1]), "BAD_NAMES", "open.robot.state"),
    "action count": (
        replace(ROBOT, action=(*ROBOT.action, EXTRA)),
        "BAD_NAMES",
        "open.robot.action",
    ),
    "cameras": (replace(ROBOT, cameras=ROBOT.cameras[:1]), "BAD_NAMES", "open.robot.cameras"),
    "camera size": (
        replace(ROBOT, cameras=(ROBOT.cameras[0], replace(ROBOT.cameras[1], height=48))),
        "BAD_SHAPE",
        "open.robot.cameras.size",
    ),
    "unit": (
        replace(ROBOT, state=(replace(ROBOT.state[0], unit="deg"), *ROBOT.state[1:])),
        "BAD_VALUE",
        "open.robot.state.unit",
    ),
    "period": (replace(ROBOT, period_ns=1), "BAD_VALUE", "open.robot.period_ns"),
}


@pytest.mark.parametrize("mismatch", MISMATCHES)
def test_a_robot_that_the_policy_was_not_made_for_is_refused(wire, mismatch):
    robot, name, field = MISMATCHES[mismatch]
    message = open_with()
    message.open.robot.CopyFrom(pb_robot(robot))
    wire.send(message)
    refused_fatally(wire, name, field)


def test_another_protocol_is_refused(wire):
    wire.send(open_with(protocol=7))
    refused_fatally(wire, "BAD_VALUE", "open.protocol")


def test_a_spec_that_is_none_is_refused(wire):
    message = open_with()
    message.open.ClearField("robot")
    wire.send(message)
    refused_fatally(wire, "BAD_SHAPE", "robot.state")


# After Open: the message is dropped, the session goes on.


def test_a_second_open_is_refused(opened):
    opened.send(open_with())
    refused_and_survived(opened, "ALREADY_OPEN", "open", -1)


@pytest.mark.parametrize("data", [b"\xff\xfe garbage", b"\x12\xff\xff\xff\xff\x0f", b"\x0a\x05a"])
def test_garbage_is_refused(opened, data):
    opened.send(data)
    error = refused_and_survived(opened, "BAD_VALUE", "message", -1)
    assert f"{len(data)} undecodable bytes" in error.given


def test_an_empty_message_is_refused(opened):
    opened.send(b"")
    refused_and_survived(opened, "BAD_VALUE", "message", -1)


def edited(edit) -> pb.ClientMessage:
    message = wire_observation(3)
    edit(message.observation)
    return message


def set_state(values):
    def edit(o):
        o.state[:] = values

    return edit


def set_frame(index: int = 0, **fields):
    def edit(o):
        for name, value in fields.items():
            setattr(o.frames[index], name, value)

    return edit


JPEG = pb.FRAME_ENCODING_JPEG
OBSERVATIONS = {
    "short state": (set_state([0.5, 0.5]), "BAD_SHAPE", "state"),
    "long state": (set_state([0.5] * 4), "BAD_SHAPE", "state"),
    "nan state": (set_state([0.5, np.nan, 0.5]), "NON_FINITE", "state[grip.pos]"),
    "infinite state": (set_state([np.inf, 0.5, 0.5]), "NON_FINITE", "state[pan.pos]"),
    "nan forecast": (lambda o: o.forecast.extend([0, 0, np.nan]), "NON_FINITE", "forecast"),
    "nan set-point": (lambda o: o.set_point.extend([0, np.nan]), "NON_FINITE", "set_point"),
    "short set-point": (lambda o: o.set_point.append(1.0), "BAD_SHAPE", "set_point"),
    "ragged committed": (lambda o: o.committed.append(1.0), "BAD_SHAPE", "committed"),
    "more committed than delay": (
        lambda o: o.committed.extend([1.0, 1.0]),
        "BAD_SHAPE",
        "committed",
    ),
    "long delay": (lambda o: setattr(o, "delay", HORIZON), "BAD_VALUE", "delay"),
    "negative deadline": (lambda o: setattr(o, "deadline_ns", -1), "BAD_VALUE", "deadline_ns"),
    "negative step": (lambda o: setattr(o, "step", -1), "BAD_VALUE", "step"),
    "unknown prompt": (lambda o: setattr(o, "prompt", "juggle"), "UNKNOWN_PROMPT", "prompt"),
    "empty prompt": (lambda o: setattr(o, "prompt", ""), "BAD_VALUE", "prompt"),
    "missing frame": (lambda o: o.frames.pop(), "BAD_FRAME", "frames"),
    "doubled frame": (lambda o: o.frames[1].CopyFrom(o.frames[0]), "BAD_FRAME", "frames"),
    "unknown camera": (set_frame(camera="rear"), "BAD_FRAME", "frames"),
    "frame of another size": (set_frame(height=48), "BAD_FRAME", "height"),
    "undecodable png": (set_frame(data=b"\x89PNG\r\n\x1a\n nothing"), "BAD_FRAME", "data"),
    "undecodable jpeg": (set_frame(encoding=JPEG, data=b"\xff\xd8 no"), "BAD_FRAME", "data"),
    "cut raw": (set_frame(2, data=b"\x00" * 100), "BAD_FRAME", "data"),
    "empty frame": (set_frame(data=b""), "BAD_FRAME", "data"),
    "oversized frame": (set_frame(data=b"\x00" * (MAX_FRAME_BYTES + 1)), "TOO_LARGE", "data"),
    "no encoding": (set_frame(encoding=0), "BAD_VALUE", "encoding"),
}


@pytest.mark.parametrize("what", OBSERVATIONS)
def test_a_bad_observation_is_refused_and_the_session_goes_on(opened, what):
    edit, name, field = OBSERVATIONS[what]
    opened.send(edited(edit))
    refused_and_survived(opened, name, field, 3)


def test_a_refused_observation_leaves_no_trace(opened):
    opened.send(edited(set_frame(data=b"no")))
    assert opened.error().observation_id == 3
    opened.send(observation(3))
    assert opened.next().slice.observation_id == 3


@pytest.mark.parametrize(
    ("second", "field"),
    [
        (observation(7, step=12), "observation.id"),
        (observation(6, step=12), "observation.id"),
        (observation(8, step=9), "observation.step"),
    ],
)
def test_a_step_or_id_that_goes_back_is_refused(opened, second, field):
    opened.send(observation(7, step=10))
    assert opened.next().slice.observation_id == 7
    opened.send(second)
    refused_and_survived(opened, "STEP_ORDER", field, second.id)


def test_a_resumed_session_may_begin_at_any_step(opened):
    opened.send(observation(1000, step=5000))
    assert opened.next().slice.start_step == 5000


@pytest.mark.parametrize(("prompt", "name"), [("juggle", "UNKNOWN_PROMPT"), ("", "BAD_VALUE")])
def test_a_bad_reset_is_refused(opened, prompt, name):
    opened.send(pb.ClientMessage(reset=pb.Reset(episode="e1", prompt=prompt)))
    refused_and_survived(opened, name, "reset.prompt", -1)


def test_a_message_past_the_transports_bound_ends_that_stream_only(server, opened):
    from controller.bounds import MAX_MESSAGE_BYTES

    opened.send(b"\x00" * (MAX_MESSAGE_BYTES + 1))
    with pytest.raises(Exception, match="RESOURCE_EXHAUSTED"):
        opened.next()
    with Wire(server.address) as other:
        assert other.open().WhichOneof("message") == "opened"


def test_a_robots_own_encoding_may_differ(wire):
    message = open_with()
    for camera in message.open.robot.cameras:
        camera.encoding = JPEG
    wire.send(message)
    assert wire.next().WhichOneof("message") == "opened"
    assert FrameEncoding.JPEG not in {c.encoding for c in ROBOT.cameras}
