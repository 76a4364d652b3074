"""What every test needs before MuJoCo or torch is imported."""

import logging
import os
import sys

import pytest

if sys.platform == "linux" and not os.environ.get("DISPLAY"):
    os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@pytest.fixture(autouse=True)
def logging_as_before():
    """Takes back what a script's ``basicConfig`` or LeRobot's set-up did to the root logger.

    A handler would write to a closed stream. At a lower level pytest would keep records that were
    not made to be kept: gRPC's of a server freed in use refers to what is freed.
    """
    yield
    logging.root.setLevel(logging.WARNING)
    for handler in list(logging.root.handlers):
        if type(handler) is logging.StreamHandler:
            logging.root.removeHandler(handler)
