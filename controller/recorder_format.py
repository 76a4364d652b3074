"""How records stand in an MCAP file: topics, schemas, and messages to and from JSON.

JSON, because viewers (Foxglove) and a text editor read it without any code of ours. A message of 6
joints is about 1.1 kB, 0.4 kB as the file's compression leaves it, and is made in about 30 us: 2 %
of a core at 500 records a second. JSON has no NaN: what is not finite becomes null, and is read
back as NaN.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controller.record import Level, RecordMeta, new_records

TICK_TOPIC = "/onset/tick"
EVENT_TOPIC = "/onset/event"
META_TOPIC = "/onset/meta"

_encode = json.JSONEncoder(separators=(",", ":"), check_circular=False, allow_nan=False).encode

_MEANING = {
    "tick": "counts up within a run",
    "time_ns": "robot's clock: when the tick was due [ns]",
    "late_ns": "start of the tick behind its deadline [ns]",
    "busy_ns": "duration of the tick before [ns]",
    "step": "policy step under way",
    "episode": "counts up within a run",
    "observation_id": "observation that the action answers; -1: none",
    "age_ns": "since the plan was last renewed [ns]; -1: not yet",
    "round_trip_ns": "newest measured round trip [ns]; -1: not known",
    "desired": "the policy's action for this step as it came; null for none",
    "target": "where the interpolation wanted to be",
    "command": "written to the robot",
    "velocity": "first derivative of the command [/s]",
    "acceleration": "second derivative of the command [/s^2]",
    "measured": "as the robot reported it",
    "clamped": "bit i: action dimension i was cut to its limits",
    "refused": "1: the action was not finite, and was not used",
}


def tick_schema(meta: RecordMeta) -> dict[str, Any]:
    """Returns the JSON schema of a record; array items are described by name and unit."""
    properties: dict[str, Any] = {}
    for name in meta.dtype.names or ():
        codes = {"mode": meta.mode_names, "reason": meta.reason_names}.get(name)
        if codes:
            # Foxglove shows the titles of such alternatives instead of the numbers.
            choices = [{"title": text, "const": code} for code, text in codes.items()]
            properties[name] = {"oneOf": choices}
        elif meta.dtype[name].subdtype is not None:
            properties[name] = _vector(meta, name)
        else:
            properties[name] = {"type": "integer", "description": _MEANING.get(name, name)}
    return _object("onset.Tick", properties)


def _vector(meta: RecordMeta, name: str) -> dict[str, Any]:
    state = name == "measured"
    names = meta.state_names if state else meta.action_names
    units = meta.state_units if state else meta.action_units
    listed = ", ".join(f"{i}: {n} [{u}]" for i, (n, u) in enumerate(zip(names, units, strict=True)))
    # Viewers take one type for an item, so null, for what is not finite, is left to the words.
    return {
        "type": "array",
        "items": {"type": "number"},
        "minItems": len(names),
        "maxItems": len(names),
        "description": f"{_MEANING[name]}; null where not finite. {listed}",
    }


def meta_schema(meta: RecordMeta) -> dict[str, Any]:
    """Returns the JSON schema of the run's description."""
    return _object("onset.Meta", {k: _typed(v) for k, v in meta.to_dict().items()})


def event_schema() -> dict[str, Any]:
    """Returns ``foxglove.Log``, which Foxglove's log panel shows."""
    properties: dict[str, Any] = {
        "timestamp": {
            "type": "object",
            "title": "time",
            "properties": {
                "sec": {"type": "integer", "minimum": 0},
                "nsec": {"type": "integer", "minimum": 0, "maximum": 999_999_999},
            },
        },
        "level": {"oneOf": [{"title": level.name, "const": int(level)} for level in Level]},
        "message": {"type": "string"},
        "name": {"type": "string"},
    }
    return _object("foxglove.Log", properties)


def _object(title: str, properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": title,
        "type": "object",
        "properties": properties,
        "required": list(properties),
    }


def _typed(value: object) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {"type": "object", "properties": {k: _typed(v) for k, v in value.items()}}
    if isinstance(value, list | tuple):
        return {"type": "array", "items": {"type": "string"}}
    return {"type": "integer" if isinstance(value, int) else "string"}


def schema_bytes(schema: Mapping[str, Any]) -> bytes:
    """Returns a schema as it stands in the file."""
    return json.dumps(schema).encode()


def encode_records(records: NDArray[np.void]) -> list[bytes]:
    """Returns one message a record. Shape (n,)."""
    names = records.dtype.names or ()
    columns = [_column(records[name]) for name in names]
    return [
        _encode(dict(zip(names, row, strict=True))).encode() for row in zip(*columns, strict=True)
    ]


def _column(values: NDArray) -> list:
    if values.dtype.kind == "f":
        finite = np.isfinite(values)
        if not finite.all():
            values = values.astype(object)
            values[~finite] = None
    return values.tolist()


def decode_records(messages: Sequence[bytes], meta: RecordMeta) -> NDArray[np.void]:
    """Reads what ``encode_records`` made; null is NaN, and a field that is absent is unknown.

    Raises:
        ValueError: A message is not of this run's shapes.
    """
    rows = [json.loads(message) for message in messages]
    records = new_records(len(rows), len(meta.action_names), len(meta.state_names))
    for name in records.dtype.names or ():
        if rows and name in rows[0]:
            records[name] = np.array([row[name] for row in rows], dtype=records[name].dtype)
    return records


def encode_meta(meta: RecordMeta) -> bytes:
    """Returns the message on ``META_TOPIC``."""
    return json.dumps(meta.to_dict()).encode()


def metadata_of(meta: RecordMeta) -> dict[str, str]:
    """Returns the description as texts, for the file's metadata record."""
    given = meta.to_dict().items()
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in given}


def encode_event(time_ns: int, level: int, text: str) -> bytes:
    """Returns the message of an event at a time on the robot's clock [ns]."""
    sec, nsec = divmod(max(0, time_ns), 1_000_000_000)
    stamp = {"sec": sec, "nsec": nsec}
    return _encode({"timestamp": stamp, "level": level, "message": text, "name": "onset"}).encode()


def decode_events(messages: Iterable[bytes]) -> list[tuple[int, int, str]]:
    """Returns time [ns], level and text of each."""
    events = []
    for message in messages:
        row = json.loads(message)
        stamp = row["timestamp"]
        events.append((stamp["sec"] * 1_000_000_000 + stamp["nsec"], row["level"], row["message"]))
    return events
