"""The link over a network that fails again and again: nothing is lost silently."""

import time
from random import Random

import pytest

from benchmarks._faulty_link import Faults, FaultyLink
from controller.errors import ErrorCode, OnsetError
from tests.controller.client_scene import LONG, Scene, balance
from tests.controller.grpc_fakes import answer_at_once
from tests.controller.helpers import MS, observation


@pytest.mark.parametrize("seed", [0, 1])
def test_no_observation_is_unaccounted_for_after_a_storm(seed):
    scene, random = Scene(), Random(seed)
    with scene.running() as link:
        deadline = time.monotonic() + 1.5
        id = 0
        while time.monotonic() < deadline:
            chance = random.random()
            if chance < 0.03:
                random.choice((scene.proxy.cut, scene.proxy.blackhole))()
            elif chance < 0.10:
                scene.proxy.restore()
            elif chance < 0.12:
                link.reset(str(id), "hit the red mole")
            scene.submit(id, deadline_ns=random.choice((0, 30 * MS, 200 * MS)))
            id += 1
            link.poll(0)
            time.sleep(0.01)
    assert link.stats.submitted == id
    balance(link.stats)


def test_messages_lost_reordered_and_repeated_leave_the_account_in_balance():
    seen = set()

    async def strict(o, session):  # as vla.serve is: ids go up
        if seen and o.id <= max(seen):
            error = OnsetError(ErrorCode.STEP_ORDER, "observation.id", o.id, f"> {max(seen)}")
            error.observation_id = o.id
            await session.send(error)
        else:
            seen.add(o.id)
            await answer_at_once(o, session)

    scene = Scene(strict)
    with scene.running() as link:
        faulty = FaultyLink(link, Faults(lost=0.1, reordered=0.2, duplicated=0.2), seed=3)
        came = set()
        for id in range(100):
            faulty.submit(observation(id=id, step=id, deadline_ns=LONG, capture_ns=id * 5 * MS))
            time.sleep(0.005)
            came |= {p.observation_id for p in faulty.poll(id * 5 * MS)}
        assert len(came) > 50
        assert link.stats.reopens == 0
        assert link.stats.refused > 0
    balance(link.stats)
