"""Numbered, checked slots: what snapshots and rings in shared memory consist of.

A slot holds a number, a checksum and the bytes of one record:

    number  int64    the record's; written first, so that what it names is not the old content
    crc     int64    of the bytes, seeded with the number; written last
    bytes            one record, padded to whole cache lines

On a CPU that keeps stores in order the number alone tells a torn read, as in a seqlock. Robots
have ARM computers, which do not: there the checksum tells it.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

from controller.errors import ErrorCode, OnsetError

LINE = 64
WORD = 8
_HEADER = 2 * WORD
_CODES = {
    "i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I", "u8": "Q",
    "f4": "f", "f8": "d",
}  # fmt: skip

Record = np.void | NDArray[np.void] | bytes  # bytes as a packer makes them


def check_dtype(field: str, dtype: np.dtype) -> np.dtype:
    """Returns ``dtype`` when its records can cross between processes.

    Raises:
        OnsetError: BAD_VALUE when it has no fields, or holds Python objects.
    """
    if dtype.names is None or dtype.hasobject:
        raise OnsetError(ErrorCode.BAD_VALUE, field, dtype, "a structured dtype without objects")
    return dtype


def packer(dtype: np.dtype) -> struct.Struct:
    """Returns what packs a record from plain numbers, several times faster than field by field.

    They come in the order of the fields, those of an array one after the other.

    Raises:
        OnsetError: BAD_VALUE when a field is not of numbers, or there is padding.
    """
    codes = "<"
    for name, (field, *_) in (dtype.fields or {}).items():
        base, shape = field.subdtype or (field, ())
        code = _CODES.get(base.newbyteorder("<").str[1:]) if base.str[0] in "<|" else None
        if code is None:
            allowed = "a number, low byte first"
            raise OnsetError(ErrorCode.BAD_VALUE, f"dtype[{name}]", base.str, allowed)
        codes += f"{int(np.prod(shape))}{code}"
    packs = struct.Struct(codes)
    if packs.size != dtype.itemsize:
        allowed = f"{packs.size} bytes, without padding"
        raise OnsetError(ErrorCode.BAD_VALUE, "dtype.itemsize", dtype.itemsize, allowed)
    return packs


def slots_size(dtype: np.dtype, count: int) -> int:
    """Returns the bytes that ``count`` slots take, whole cache lines."""
    return _stride(dtype) * count


class Slots:
    """``count`` slots of one dtype in a piece of shared memory."""

    def __init__(self, view: memoryview, dtype: np.dtype, count: int) -> None:
        self._bytes = view
        self._words = view.cast("q")  # an aligned word is stored whole
        self._dtype = dtype
        self._accepted = dtype
        self._size = dtype.itemsize
        self._stride = _stride(dtype)
        self._count = count

    def release(self) -> None:
        """Lets go of the memory."""
        self._words.release()
        self._bytes.release()

    def to_bytes(self, record: Record) -> bytes:
        """Returns a record's bytes.

        Raises:
            OnsetError: BAD_SHAPE when it is not one record of the slots' dtype.
        """
        if isinstance(record, bytes):
            if len(record) != self._size:
                raise OnsetError(
                    ErrorCode.BAD_SHAPE, "record", f"{len(record)} bytes", f"{self._size} bytes"
                )
            return record
        if record.dtype is not self._accepted:
            # Comparing dtypes takes microseconds, so the one found equal is remembered.
            if record.dtype != self._dtype:
                raise OnsetError(ErrorCode.BAD_SHAPE, "record", record.dtype, self._dtype)
            self._accepted = record.dtype
        if record.size != 1:
            raise OnsetError(ErrorCode.BAD_SHAPE, "record", record.shape, "one record")
        return record.tobytes()

    def from_bytes(self, data: bytes | bytearray) -> NDArray[np.void]:
        """Returns the records of those bytes, the caller's own. Shape (n,)."""
        return np.frombuffer(bytearray(data), self._dtype)

    def store(self, number: int, data: bytes) -> None:
        """Writes one record into the slot of its number, over an older one."""
        at = number % self._count * self._stride
        word = at // WORD
        self._words[word] = number
        self._bytes[at + _HEADER : at + _HEADER + self._size] = data
        self._words[word + 1] = zlib.crc32(data, number & 0xFFFFFFFF)

    def load(self, number: int) -> bytes | None:
        """Returns the bytes of record ``number``; None when they are not there, or not whole."""
        at = number % self._count * self._stride
        word = at // WORD
        data = bytes(self._bytes[at + _HEADER : at + _HEADER + self._size])
        if self._words[word] != number:
            return None
        if self._words[word + 1] != zlib.crc32(data, number & 0xFFFFFFFF):
            return None
        return data

    def number(self, number: int) -> int:
        """Returns the number of the record that is in the slot of ``number``; 0 for none."""
        return self._words[number % self._count * self._stride // WORD]


def _stride(dtype: np.dtype) -> int:
    return -(-(_HEADER + dtype.itemsize) // LINE) * LINE
