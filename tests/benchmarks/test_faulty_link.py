import itertools

import numpy as np
import pytest

from benchmarks._faulty_link import Faults, FaultyLink
from controller.errors import OnsetError
from controller.link import EpisodicLink
from controller.types import ActionSlice
from tests.controller.helpers import MS, observation


class Recorder:
    """A link that keeps what it is given and answers each observation at the next poll."""

    def __init__(self):
        self.submitted, self.waiting, self.episodes = [], [], []

    def submit(self, observation):
        self.submitted.append(observation.id)
        steps = np.arange(observation.step, observation.step + 2)
        piece = ActionSlice(
            observation.id, observation.step, steps, np.zeros((2, 2), np.float32), True
        )
        self.waiting.append(piece)

    def poll(self, now_ns):
        pieces, self.waiting = self.waiting, []
        return pieces

    def reset(self, episode, prompt):
        self.episodes.append((episode, prompt))


def run(faults: Faults, seed: int = 0, count: int = 2000):
    """Sends observations 10 ms apart; returns the link and the ids of the slices that came."""
    link = FaultyLink(Recorder(), faults, seed)
    came = []
    for id in range(count):
        now_ns = id * 10 * MS
        link.submit(observation(id=id, step=id, capture_ns=now_ns))
        came += [piece.observation_id for piece in link.poll(now_ns)]
    came += [piece.observation_id for piece in link.poll((count + 100) * 10 * MS)]
    return link, came


def test_without_faults_everything_passes_in_order():
    link, came = run(Faults())
    assert isinstance(link, EpisodicLink)
    assert link.link.submitted == came == list(range(2000))
    link.reset("e", "p")
    assert link.link.episodes == [("e", "p")]


def test_what_was_done_is_counted_and_is_about_the_share_asked_for():
    link, came = run(Faults(lost=0.05, reordered=0.05, duplicated=0.05))
    for counts, arrived in ((link.observations, link.link.submitted), (link.slices, came)):
        for name in ("lost", "reordered", "duplicated"):
            assert 0.03 < getattr(counts, name) / counts.passed < 0.07, name
        assert len(arrived) == counts.passed - counts.lost + counts.duplicated
        assert any(b < a for a, b in itertools.pairwise(arrived))
    assert set(link.link.submitted) <= set(range(2000))


def test_what_is_held_back_comes_within_its_depth():
    link, _ = run(Faults(reordered=0.3, depth=2))
    arrived = link.link.submitted
    assert sorted(arrived) == list(range(2000))
    assert 0 < max(place - id for place, id in enumerate(arrived)) <= 2


def test_what_is_held_back_comes_in_time_where_nothing_follows():
    link = FaultyLink(Recorder(), Faults(reordered=1.0, hold_ns=50 * MS))
    link.submit(observation(id=0, capture_ns=0))
    assert link.poll(40 * MS) == []
    assert link.link.submitted == []
    assert link.poll(50 * MS) == []  # the observation arrives, its slice is held back in turn
    assert link.link.submitted == [0]
    assert [p.observation_id for p in link.poll(100 * MS)] == [0]


def test_a_seed_decides_what_happens():
    faults = Faults(lost=0.1, reordered=0.1, duplicated=0.1)
    first, again, other = (run(faults, seed, 200) for seed in (1, 1, 2))
    assert first[1] == again[1]
    assert first[0].observations == again[0].observations
    assert first[1] != other[1]


def test_a_new_episode_drops_what_is_held_back_on_the_way_up():
    link = FaultyLink(Recorder(), Faults(reordered=1.0))
    link.submit(observation(id=0))
    link.reset("e", "p")
    assert link.poll(10**12) == []
    assert link.link.submitted == []
    assert link.observations.voided == 1


@pytest.mark.parametrize("changes", [{"lost": 1.5}, {"duplicated": -0.1}, {"depth": 0}])
def test_shares_out_of_range_are_refused(changes):
    with pytest.raises(OnsetError, match=f"faults.{next(iter(changes))}"):
        Faults(**changes)
