"""Records packed from plain numbers are those filled field by field."""

from __future__ import annotations

import numpy as np
import pytest

from controller.errors import ErrorCode, OnsetError
from controller.exchange import state_dtype
from controller.record import record_dtype
from controller.shared_slots import Slots, packer, slots_size


@pytest.mark.parametrize("dtype", [record_dtype(6, 12), record_dtype(3, 5), state_dtype(6, 12)])
def test_a_packed_record_is_the_one_filled_field_by_field(dtype: np.dtype) -> None:
    rng = np.random.default_rng(0)
    filled, numbers = np.zeros((), dtype), []
    for name in dtype.names or ():
        filled[name] = rng.integers(0, 200, filled[name].shape)
        numbers += np.ravel(filled[name]).tolist()
    assert packer(dtype).pack(*numbers) == filled.tobytes()


@pytest.mark.parametrize(
    "dtype",
    [
        np.dtype([("a", "u1"), ("b", "<i8")], align=True),  # padded
        np.dtype([("a", ">i8")]),
        np.dtype([("a", "S8")]),
    ],
)
def test_what_cannot_be_packed_is_refused(dtype: np.dtype) -> None:
    with pytest.raises(OnsetError) as caught:
        packer(dtype)
    assert caught.value.code is ErrorCode.BAD_VALUE


def test_bytes_of_another_size_are_refused() -> None:
    dtype = state_dtype(6, 12)
    slots = Slots(memoryview(bytearray(slots_size(dtype, 2))), dtype, 2)
    with pytest.raises(OnsetError) as caught:
        slots.to_bytes(bytes(8))
    assert caught.value.code is ErrorCode.BAD_SHAPE
    slots.store(1, slots.to_bytes(bytes(dtype.itemsize)))
    assert slots.load(1) == bytes(dtype.itemsize)
    slots.release()
