"""A short time slice is granted, keeps the rest, and is inherited; elsewhere nothing happens."""

from __future__ import annotations

import os
import threading

import pytest

from controller import short_slices
from controller.short_slices import SLICE_NS, shorten_slices, slice_ns


def _in_a_thread(function):
    """What a function gives in a thread of its own, so that this one stays as it is."""
    results = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    return results[0]


@pytest.mark.skipif(slice_ns() in (None, 0), reason="this system tells no time slices")
def test_a_thread_and_those_that_it_begins_get_short_slices_and_keep_their_nice_value():
    def shortened():
        nice = os.getpriority(os.PRIO_PROCESS, 0)
        granted = shorten_slices()
        kept = os.getpriority(os.PRIO_PROCESS, 0) == nice
        return granted, kept, slice_ns(), _in_a_thread(slice_ns)

    before = slice_ns()
    assert _in_a_thread(shortened) == (True, True, SLICE_NS, SLICE_NS)
    assert slice_ns() == before


def test_on_a_machine_without_such_a_call_nothing_happens(monkeypatch):
    monkeypatch.setattr(short_slices.platform, "machine", lambda: "none")
    assert slice_ns() is None
    assert not shorten_slices()
