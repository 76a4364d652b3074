"""An error means the same in another process."""

import copy
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest

from controller.errors import ErrorCode, OnsetError


def fail() -> None:
    raise OnsetError(ErrorCode.BAD_VALUE, "task", "wack", ["whack"], fatal=True, observation_id=3)


def same(a: OnsetError, b: OnsetError) -> bool:
    return (vars(a), str(a)) == (vars(b), str(b))


def test_a_copy_is_the_same_error():
    error = OnsetError(ErrorCode.BAD_NAMES, "robot.state", ["a"], ["b"])
    assert same(copy.copy(error), error)


@pytest.mark.timeout(60)
def test_it_reaches_the_parent_of_a_worker():
    with (
        ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool,
        pytest.raises(OnsetError, match="task: given wack; allowed: .'whack'.") as raised,
    ):
        pool.submit(fail).result()
    assert raised.value.fatal
    assert raised.value.observation_id == 3
