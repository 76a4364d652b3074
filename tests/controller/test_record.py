"""The record of a tick and the description of a run."""

from __future__ import annotations

import json
from enum import IntEnum

import numpy as np
import pytest

from controller import record
from controller.errors import ErrorCode, OnsetError
from controller.record import (
    EVENT_DTYPE,
    Level,
    RecordMeta,
    describe_run,
    new_event,
    new_records,
    record_dtype,
)
from tests.controller.helpers import MS, ROBOT


class Mode(IntEnum):
    RUNNING = 0
    HOLDING = 3


def test_every_field_is_in_the_table() -> None:
    listed = [line.split()[0] for line in (record.__doc__ or "").splitlines() if "  " in line]
    assert set(record_dtype(6, 12).names or ()) <= set(listed)


def test_fields_stand_on_multiples_of_their_size() -> None:
    dtype = record_dtype(6, 12)
    for name in dtype.names or ():
        kind, offset, *_ = (dtype.fields or {})[name]
        assert offset % kind.base.itemsize == 0


@pytest.mark.parametrize(("actions", "states"), [(0, 1), (33, 1), (1, 0), (1, 257)])
def test_counts_out_of_range_are_refused(actions: int, states: int) -> None:
    with pytest.raises(OnsetError) as refused:
        record_dtype(actions, states)
    assert refused.value.code is ErrorCode.BAD_VALUE


def test_new_records_say_nothing() -> None:
    records = new_records(2, 3, 4)
    assert np.isnan(records["desired"]).all()
    assert np.isnan(records["measured"]).all()
    assert (records["observation_id"] == -1).all()
    assert (records["round_trip_ns"] == -1).all()


def test_long_event_is_cut_between_characters() -> None:
    event = new_event(5, Level.WARNING, "ü" * 200)
    assert event.dtype == EVENT_DTYPE
    assert event["text"][0].decode() == "ü" * 120


def test_meta_goes_through_json() -> None:
    meta = describe_run(ROBOT, 5 * MS, 77, modes=Mode, prompt="go", extra={"task": "whack"})
    assert meta.mode_names == {0: "RUNNING", 3: "HOLDING"}
    assert meta.dtype == record_dtype(2, 3)
    given = json.loads(json.dumps(meta.to_dict()))
    assert RecordMeta.from_dict(given | {"of_a_later_version": 1}) == meta


@pytest.mark.parametrize("change", [{"robot": None}, {"state_names": 3}, {"mode_names": {"x": ""}}])
def test_bad_meta_is_refused(change: dict) -> None:
    given = describe_run(ROBOT, 5 * MS, 0).to_dict() | change
    if change == {"robot": None}:
        del given["robot"]
    with pytest.raises(OnsetError):
        RecordMeta.from_dict(given)


def test_units_are_as_many_as_names() -> None:
    with pytest.raises(OnsetError, match="1 units for 2 names"):
        RecordMeta("a", ("x", "y"), ("rad",), ("x",), ("rad",), 1, 1)
