"""How far a recording would reach had everything died at an instant."""

from __future__ import annotations

import struct
from pathlib import Path

_MAGIC_BYTES = 8
_FRAME = struct.Struct("<BQ")  # opcode, length of what follows
_CHUNK = 0x06
_TIMES = struct.Struct("<QQ")  # of the first and the last message in it [ns]


def reached_ns(path: Path, size: int) -> int:
    """Time of the last message in the chunks that were whole in the file [ns]; -1 without any.

    Args:
        path: An MCAP file.
        size: Its size at the instant [bytes].
    """
    at, reached = _MAGIC_BYTES, -1
    with path.open("rb") as file:
        while at + _FRAME.size <= size:
            file.seek(at)
            head = file.read(_FRAME.size + _TIMES.size)
            if len(head) < _FRAME.size:
                break
            opcode, length = _FRAME.unpack_from(head)
            at += _FRAME.size + length
            if opcode == _CHUNK and at <= size:
                reached = max(reached, _TIMES.unpack_from(head, _FRAME.size)[1])
    return reached
