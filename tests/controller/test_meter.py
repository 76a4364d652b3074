"""The metered link passes everything on, and its times are the robot's own."""

from __future__ import annotations

import numpy as np

from controller.meter import MeteredLink
from controller.types import ActionSlice, Observation, Timing

MS = 1_000_000


class Script:
    """A link that hands over what it is told to."""

    def __init__(self) -> None:
        self.submitted: list[int] = []
        self.waiting: list[ActionSlice] = []
        self.episodes: list[str] = []

    def submit(self, observation: Observation) -> None:
        self.submitted.append(observation.id)

    def poll(self, now_ns: int) -> list[ActionSlice]:
        pieces, self.waiting = self.waiting, []
        return pieces

    def reset(self, episode: str, prompt: str) -> None:
        self.episodes.append(episode)


def observation(number: int, capture_ns: int) -> Observation:
    return Observation(
        id=number,
        step=10 * number,
        capture_ns=capture_ns,
        state=np.zeros(2, np.float32),
        frames={},
        committed=np.zeros((0, 1), np.float32),
        planned=np.zeros((0, 1), np.float32),
        delay=0,
        deadline_ns=0,
    )


def piece(number: int, *, final: bool) -> ActionSlice:
    timing = Timing(encode_ns=3 * MS, expert_ns=7 * MS)
    return ActionSlice(number, 0, np.array([0]), np.zeros((1, 1), np.float32), final, timing)


def test_first_and_last_slice_have_their_own_times():
    script = Script()
    link = MeteredLink(script)
    link.submit(observation(1, 100 * MS))
    script.waiting = [piece(1, final=False)]
    assert [p.observation_id for p in link.poll(120 * MS)] == [1]
    assert link.replies == []
    script.waiting = [piece(1, final=True)]
    link.poll(150 * MS)
    (reply,) = link.replies
    assert (reply.step, reply.first_ns, reply.whole_ns) == (10, 20 * MS, 50 * MS)
    assert reply.inference_ns == 10 * MS
    assert script.submitted == [1]


def test_what_was_superseded_is_no_reply():
    script = Script()
    link = MeteredLink(script)
    link.submit(observation(1, 0))
    link.submit(observation(2, 5 * MS))
    script.waiting = [piece(2, final=True), piece(1, final=True)]
    assert len(link.poll(9 * MS)) == 2  # it is passed on all the same
    assert [r.step for r in link.replies] == [20]


def test_a_new_episode_clears_the_times_and_reaches_the_link():
    script = Script()
    link = MeteredLink(script)
    link.submit(observation(1, 0))
    script.waiting = [piece(1, final=True)]
    link.poll(MS)
    link.reset("next", "prompt")
    assert link.replies == []
    assert script.episodes == ["next"]
