import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from controller.bounds import MAX_FRAME_BYTES, MAX_HORIZON, MAX_PROMPT_CHARS, check_agreement
from controller.codec import (
    decode_client,
    decode_description,
    decode_frames,
    decode_server,
    encode_client,
    encode_description,
    encode_server,
)
from controller.errors import ErrorCode, OnsetError
from controller.messages import Close, Notice, NoticeKind, Open, Opened, Reset
from controller.types import ActionKind, ActionSlice, CacheFigures, Dimension, Timing
from onset.v1 import policy_pb2 as pb
from tests.controller.helpers import DESCRIPTION, ROBOT, observation

OPEN = Open("arm-1", ROBOT, "hit the red mole", "episode-1", "naive")
OPENED = Opened(
    strategy="naive",
    prompt="hit the red mole",
    state_names=ROBOT.state_names,
    action_names=ROBOT.action_names,
    camera_names=("front", "wrist"),
    model="fake",
    model_hash="0f",
    horizon=16,
    period_ns=ROBOT.period_ns,
    expert_steps=10,
    min_delay=0,
    max_delay=8,
)
floats = st.floats(-1e6, 1e6, width=32)


def through_wire_client(message, robot=ROBOT):
    wire = encode_client(message, ROBOT).SerializeToString()
    return decode_client(pb.ClientMessage.FromString(wire), robot)


def through_wire_server(message):
    wire = encode_server(message, ROBOT).SerializeToString()
    return decode_server(pb.ServerMessage.FromString(wire), ROBOT)


def same(a, b) -> bool:
    """Equality of dataclasses that hold arrays."""
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    if hasattr(a, "__dataclass_fields__"):
        return all(same(getattr(a, f), getattr(b, f)) for f in a.__dataclass_fields__)
    return a == b


@pytest.mark.parametrize("message", [OPEN, Reset("e2", "hit the blue mole"), Close()])
def test_client_messages_come_back_as_they_went(message):
    assert through_wire_client(message, None if message is OPEN else ROBOT) == message


@pytest.mark.parametrize("message", [OPENED, Notice(NoticeKind.SUPERSEDED, "newer", 4)])
def test_server_messages_come_back_as_they_went(message):
    assert through_wire_server(message) == message


def test_every_notice_and_error_has_its_number():
    for kind in NoticeKind:
        assert through_wire_server(Notice(kind)).kind is kind
    for code in ErrorCode:
        error = OnsetError(code, "f", "g", "a", fatal=True, observation_id=9)
        back = through_wire_server(error)
        assert vars(back) == vars(error)


def test_description_and_every_kind_and_encoding():
    action = tuple(Dimension(f"j{i}.pos", "rad", -1, 1, kind) for i, kind in enumerate(ActionKind))
    description = replace(DESCRIPTION, robot=replace(ROBOT, action=action), prompts=())
    assert decode_description(encode_description(description)) == description


@settings(max_examples=60, deadline=None)
@given(
    id=st.integers(0, 2**40),
    step=st.integers(0, 2**40),
    capture_ns=st.integers(-(2**60), 2**60),
    state=st.lists(floats, min_size=3, max_size=3),
    forecast=st.none() | st.lists(floats, min_size=3, max_size=3),
    set_point=st.none() | st.lists(floats, min_size=2, max_size=2),
    rows=st.integers(0, 5),
    planned=arrays(np.float32, st.tuples(st.integers(0, 40), st.just(2)), elements=floats),
    more_delay=st.integers(0, 5),
    deadline_ns=st.integers(0, 2**50),
    prompt=st.none() | st.text(min_size=1, max_size=30),
)
def test_observations_come_back_bit_for_bit(
    id, step, capture_ns, state, forecast, set_point, rows, planned, more_delay, deadline_ns, prompt
):
    given_one = observation(
        id=id,
        step=step,
        capture_ns=capture_ns,
        state=np.array(state, np.float32),
        forecast=None if forecast is None else np.array(forecast, np.float32),
        set_point=None if set_point is None else np.array(set_point, np.float32),
        committed=np.arange(rows * 2, dtype=np.float32).reshape(rows, 2),
        planned=planned,
        delay=rows + more_delay,
        deadline_ns=deadline_ns,
        prompt=prompt,
    )
    wire = encode_client(given_one, ROBOT)
    back = decode_client(wire, ROBOT)
    assert back.frames == {}
    assert same(replace(back, frames=given_one.frames), given_one)
    frames = decode_frames(wire.observation, ROBOT)
    assert all(np.array_equal(frames[name], given_one.frames[name]) for name in given_one.frames)


@settings(max_examples=60, deadline=None)
@given(
    start=st.integers(0, 2**40),
    offsets=st.sets(st.integers(0, 1023), min_size=1, max_size=30),
    final=st.booleans(),
    cached=st.booleans(),
    value=floats,
)
def test_slices_come_back_bit_for_bit(start, offsets, final, cached, value):
    steps = np.array(sorted(offsets), dtype=np.int64) + start
    piece = ActionSlice(
        observation_id=5,
        start_step=start,
        steps=steps,
        actions=np.full((len(steps), 2), value, np.float32),
        final=final,
        timing=Timing(1, 2, 3, 4, 5, 6),
        cache=CacheFigures(64, 8, 3, "scene cut") if cached else None,
    )
    assert same(through_wire_server(piece), piece)


def refused(call, *arguments) -> OnsetError:
    with pytest.raises(OnsetError) as caught:
        call(*arguments)
    error = caught.value
    assert error.field
    assert error.given
    assert error.allowed
    return error


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"state": np.zeros(2, np.float32)}, ErrorCode.BAD_SHAPE, "observation.state"),
        (
            {"state": np.array([0, np.nan, 0], np.float32)},
            ErrorCode.NON_FINITE,
            "observation.state[grip.pos]",
        ),
        (
            {"forecast": np.array([np.inf, 0, 0], np.float32)},
            ErrorCode.NON_FINITE,
            "observation.forecast[pan.pos]",
        ),
        ({"forecast": np.zeros(4, np.float32)}, ErrorCode.BAD_SHAPE, "observation.forecast"),
        (
            {"set_point": np.array([0, np.nan], np.float32)},
            ErrorCode.NON_FINITE,
            "observation.set_point[grip.pos]",
        ),
        ({"set_point": np.zeros(3, np.float32)}, ErrorCode.BAD_SHAPE, "observation.set_point"),
        ({"committed": np.zeros((2, 3), np.float32)}, ErrorCode.BAD_SHAPE, "observation.committed"),
        ({"committed": np.zeros((4, 2), np.float32)}, ErrorCode.BAD_SHAPE, "observation.committed"),
        ({"planned": np.zeros((2, 3), np.float32)}, ErrorCode.BAD_SHAPE, "observation.planned"),
        (
            {"planned": np.array([[0, 0], [0, np.nan]], np.float32)},
            ErrorCode.NON_FINITE,
            "observation.planned[grip.pos]",
        ),
        (
            {"planned": np.zeros((MAX_HORIZON + 1, 2), np.float32)},
            ErrorCode.TOO_LARGE,
            "observation.planned",
        ),
        ({"id": -1}, ErrorCode.BAD_VALUE, "observation.id"),
        ({"step": -1}, ErrorCode.BAD_VALUE, "observation.step"),
        ({"delay": 5000}, ErrorCode.BAD_VALUE, "observation.delay"),
        ({"deadline_ns": -1}, ErrorCode.BAD_VALUE, "observation.deadline_ns"),
        ({"prompt": "x" * (MAX_PROMPT_CHARS + 1)}, ErrorCode.TOO_LARGE, "observation.prompt"),
        ({"prompt": ""}, ErrorCode.BAD_VALUE, "observation.prompt"),
        ({"frames": {}}, ErrorCode.BAD_NAMES, "observation.frames"),
    ],
)
def test_a_bad_observation_is_refused_before_it_is_sent(changes, code, field):
    error = refused(encode_client, observation(**changes), ROBOT)
    assert (error.code, error.field) == (code, field)


def change_frame(**changes):
    def change(message: pb.Observation):
        for name, value in changes.items():
            setattr(message.frames[0], name, value)

    return change


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda m: m.state.append(0.0), ErrorCode.BAD_SHAPE),
        (lambda m: m.state.__setitem__(0, math.nan), ErrorCode.NON_FINITE),
        (lambda m: m.committed.append(0.0), ErrorCode.BAD_SHAPE),
        (lambda m: m.committed.extend([0.0] * 8), ErrorCode.BAD_SHAPE),
        (lambda m: setattr(m, "step", -4), ErrorCode.BAD_VALUE),
        (lambda m: setattr(m, "delay", 4_000_000_000), ErrorCode.BAD_VALUE),
        (lambda m: setattr(m, "prompt", ""), ErrorCode.BAD_VALUE),
        (lambda m: m.frames.pop(), ErrorCode.BAD_FRAME),
        (lambda m: m.frames.append(m.frames[0]), ErrorCode.TOO_LARGE),
        (lambda m: m.frames[1].CopyFrom(m.frames[0]), ErrorCode.BAD_FRAME),
        (change_frame(camera="ceiling"), ErrorCode.BAD_FRAME),
        (change_frame(lag=1), ErrorCode.BAD_FRAME),
        (change_frame(height=4), ErrorCode.BAD_FRAME),
        (change_frame(encoding=0), ErrorCode.BAD_VALUE),
        (change_frame(encoding=77), ErrorCode.BAD_VALUE),
        (change_frame(data=b""), ErrorCode.BAD_FRAME),
        (change_frame(data=bytes(MAX_FRAME_BYTES + 1)), ErrorCode.TOO_LARGE),
    ],
)
def test_a_bad_observation_is_refused_on_arrival_and_names_its_id(change, code):
    message = encode_client(observation(), ROBOT)
    change(message.observation)
    error = refused(decode_client, message, ROBOT)
    assert error.code is code
    assert error.observation_id == 3
    assert not error.fatal


@pytest.mark.parametrize("field", ["committed", "planned"])
def test_values_that_make_no_whole_rows_are_refused_by_the_fields_name(field):
    message = encode_client(observation(), ROBOT)
    getattr(message.observation, field).append(0.0)
    error = refused(decode_client, message, ROBOT)
    assert (error.code, error.field) == (ErrorCode.BAD_SHAPE, f"observation.{field}")
    assert "multiple of 2" in error.allowed
    assert error.observation_id == 3


def test_more_planned_actions_than_a_horizon_are_refused_on_arrival():
    message = encode_client(observation(), ROBOT)
    message.observation.planned.extend([0.0] * 2 * MAX_HORIZON)
    error = refused(decode_client, message, ROBOT)
    assert (error.code, error.field) == (ErrorCode.TOO_LARGE, "observation.planned")


def test_messages_out_of_order_or_empty():
    wire = encode_client(observation(), ROBOT)
    error = refused(decode_client, wire, None)
    assert (error.code, error.fatal) == (ErrorCode.NOT_OPEN, True)
    error = refused(decode_client, encode_client(OPEN, ROBOT), ROBOT)
    assert (error.code, error.fatal) == (ErrorCode.ALREADY_OPEN, False)
    assert refused(decode_client, pb.ClientMessage(), ROBOT).code is ErrorCode.BAD_VALUE
    assert refused(decode_server, pb.ServerMessage(), ROBOT).code is ErrorCode.BAD_VALUE


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda m: setattr(m, "protocol", 2), ErrorCode.BAD_VALUE),
        (lambda m: setattr(m, "robot_id", ""), ErrorCode.BAD_VALUE),
        (lambda m: setattr(m, "prompt", "x" * 600), ErrorCode.TOO_LARGE),
        (lambda m: setattr(m.robot, "period_ns", 0), ErrorCode.BAD_VALUE),
        (lambda m: setattr(m.robot.state[0], "name", "grip.pos"), ErrorCode.BAD_NAMES),
        (lambda m: setattr(m.robot.state[0], "lower", math.nan), ErrorCode.BAD_VALUE),
        (lambda m: setattr(m.robot.state[0], "upper", -5.0), ErrorCode.BAD_VALUE),
        (lambda m: setattr(m.robot.action[0], "kind", 0), ErrorCode.BAD_VALUE),
        (lambda m: m.robot.state.extend([m.robot.state[0]] * 200), ErrorCode.TOO_LARGE),
        (lambda m: m.robot.ClearField("action"), ErrorCode.BAD_SHAPE),
        (lambda m: m.robot.cameras.extend([m.robot.cameras[0]] * 20), ErrorCode.TOO_LARGE),
        (lambda m: setattr(m.robot.cameras[0], "height", 5000), ErrorCode.TOO_LARGE),
        (lambda m: m.robot.cameras[0].lags.append(2), ErrorCode.BAD_VALUE),
        (lambda m: m.robot.cameras[0].lags.extend(range(3, 30)), ErrorCode.TOO_LARGE),
        (lambda m: m.robot.cameras[0].ClearField("lags"), ErrorCode.BAD_SHAPE),
    ],
)
def test_a_bad_open_is_refused_and_fatal(change, code):
    message = encode_client(OPEN, ROBOT)
    change(message.open)
    error = refused(decode_client, message, None)
    assert (error.code, error.fatal) == (code, True)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda m: m.actions.append(0.0), ErrorCode.BAD_SHAPE),
        (lambda m: m.actions.__setitem__(1, math.inf), ErrorCode.NON_FINITE),
        (lambda m: m.steps.__setitem__(1, 7), ErrorCode.BAD_VALUE),
        (lambda m: m.steps.__setitem__(0, 2), ErrorCode.BAD_VALUE),
        (lambda m: m.steps.__setitem__(1, 7 + 1024), ErrorCode.BAD_VALUE),
        (lambda m: (m.ClearField("steps"), m.ClearField("actions")), ErrorCode.BAD_SHAPE),
        (lambda m: setattr(m, "observation_id", -1), ErrorCode.BAD_VALUE),
    ],
)
def test_a_bad_slice_is_refused(change, code):
    piece = ActionSlice(3, 7, np.array([7, 8]), np.zeros((2, 2), np.float32), True)
    message = encode_server(piece, ROBOT)
    change(message.slice)
    assert refused(decode_server, message, ROBOT).code is code


def test_robots_that_differ_are_refused_with_both_sides_in_the_message():
    check_agreement(ROBOT, ROBOT)
    other = replace(ROBOT, action=(replace(ROBOT.action[0], name="roll.pos"), ROBOT.action[1]))
    error = refused(check_agreement, other, ROBOT)
    assert (error.code, error.fatal) == (ErrorCode.BAD_NAMES, True)
    assert "roll.pos" in error.given
    assert "pan.pos" in error.allowed
    for change in (
        {"period_ns": 1},
        {"cameras": (replace(ROBOT.cameras[0], lags=(0,)), ROBOT.cameras[1])},
        {"cameras": (replace(ROBOT.cameras[0], width=8), ROBOT.cameras[1])},
        {"state": (replace(ROBOT.state[0], unit="deg"), *ROBOT.state[1:])},
        {"action": (replace(ROBOT.action[0], kind=ActionKind.DELTA_STATE), ROBOT.action[1])},
    ):
        assert refused(check_agreement, replace(ROBOT, **change), ROBOT).fatal
