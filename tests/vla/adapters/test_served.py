"""LeRobot policies behind the real server, from Open to the last action."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from controller.client import GrpcLink, describe
from controller.client_session import LinkConfig
from controller.errors import ErrorCode, OnsetError
from controller.strategy import STRATEGIES
from controller.types import CameraSpec, Dimension, Observation, RobotSpec
from tests.vla.helpers import LocalServer
from vla.cache.asked import Whose
from vla.serve.config import ServeConfig

if TYPE_CHECKING:
    from vla.adapters.load import LeRobotPolicy

KINDS = ("smolvla", "pi0", "pi05", "xvla")
PROMPT = "pick the red cube"
PATIENT = LinkConfig(reply_deadline_s=20.0)


def robot(cameras: tuple[str, ...] = ("front", "wrist"), states: int = 5, actions: int = 4):
    return RobotSpec(
        "so101",
        tuple(Dimension(f"joint{i}.pos", "rad", -9, 9) for i in range(states)),
        tuple(Dimension(f"joint{i}.pos", "rad", -9, 9) for i in range(actions)),
        tuple(CameraSpec(name, 48, 64) for name in cameras),
        50_000_000,
    )


def observation(seed: int, **changes: Any) -> Observation:
    random = np.random.default_rng(seed)
    base = Observation(
        id=seed,
        step=10 * seed,
        capture_ns=1,
        state=random.uniform(-1, 1, 5).astype(np.float32),
        frames={n: random.integers(0, 256, (1, 48, 64, 3), np.uint8) for n in ("front", "wrist")},
        committed=np.zeros((0, 4), np.float32),
        planned=np.zeros((0, 4), np.float32),
        delay=0,
        deadline_ns=0,
    )
    return replace(base, **changes)


def served(policy: LeRobotPolicy, cameras: dict[str, str] | None = None) -> Any:
    from vla.adapters.served import ServedLeRobot

    return ServedLeRobot(policy, cameras)


def engine(policy: LeRobotPolicy, **settings: Any) -> Any:
    return served(policy).engine(ServeConfig(**settings))


def whose(session: int) -> Whose:
    return Whose(session, "")


def chunk(parts: Iterator) -> np.ndarray:
    parts = list(parts)
    order = np.argsort(np.concatenate([p.steps for p in parts]))
    return np.concatenate([p.actions for p in parts])[order]


@pytest.mark.parametrize("kind", KINDS)
def test_served_actions_are_lerobots(kind: str, loaded: dict[str, LeRobotPolicy], monkeypatch):
    """Over the wire, with LeRobot's processors: what its own policy and pipelines give."""
    policy = loaded[kind]
    asked = observation(3)
    with (
        LocalServer(served(policy)) as server,
        GrpcLink(server.address, robot(), robot_id="r", prompt=PROMPT, config=PATIENT) as link,
    ):
        link.submit(asked)
        link.wait(20)
        (piece,) = link.poll(0)
    images = {
        f"observation.images.{name}": torch.from_numpy(frame[0]).permute(2, 0, 1)[None] / 255
        for name, frame in asked.frames.items()
    }
    state = torch.from_numpy(asked.state)[None]
    batch = policy.pre({**images, "observation.state": state, "task": [PROMPT]})
    noise = engine(policy).noise(asked.id)
    original = policy.adapter.policy
    if kind == "xvla":
        monkeypatch.setattr(torch, "randn", lambda *shape, **options: noise.clone())
        expected = original.predict_action_chunk(batch)
    else:
        expected = original.predict_action_chunk(batch, noise=noise)
    expected = policy.post(expected[0])
    assert piece.final
    assert piece.steps.tolist() == list(range(30, 36))
    np.testing.assert_allclose(piece.actions, expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_actions_come_first_with_has(kind: str, loaded: dict[str, LeRobotPolicy]):
    parts = list(
        engine(loaded[kind], schedule="has").using(whose(0)).stream(observation(1), PROMPT)
    )
    assert parts[0].expert_steps == 1
    assert parts[0].steps.tolist() == [10]
    assert sorted(s for p in parts for s in p.steps.tolist()) == list(range(10, 16))
    assert [p.final for p in parts] == [False] * (len(parts) - 1) + [True]


@pytest.mark.parametrize("kind", KINDS)
def test_a_prefix_is_continued_in_the_robots_units(kind: str, loaded: dict[str, LeRobotPolicy]):
    from vla.adapters.capabilities import Tuning

    tuned = engine(replace(loaded[kind], tuning=Tuning(max_delay=3))).using(whose(0))
    rows = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)
    asked = observation(2, committed=rows, delay=2)
    parts = [list(tuned.stream(asked, PROMPT, STRATEGIES["prefix"])) for _ in range(2)]
    assert [p.steps.tolist() for p in parts[0]] == [[22, 23, 24, 25]]
    np.testing.assert_array_equal(chunk(iter(parts[0])), chunk(iter(parts[1])))
    moved = replace(asked, committed=rows + 0.5)
    other = chunk(tuned.stream(moved, PROMPT, STRATEGIES["prefix"]))
    assert np.abs(other - chunk(iter(parts[0]))).max() > 1e-4


@pytest.mark.parametrize("kind", ["smolvla", "pi0", "pi05"])
@pytest.mark.parametrize("name", ["rtc", "rtc_identity"])
def test_a_guide_draws_the_chunk_to_the_old_one(
    kind: str, name: str, loaded: dict[str, LeRobotPolicy]
):
    session = engine(loaded[kind]).using(whose(0))
    free = chunk(session.stream(observation(1), PROMPT))
    old = (free + 0.3).astype(np.float32)
    asked = observation(1, committed=old[:2], planned=old[2:5], delay=2)
    guided = chunk(session.stream(asked, PROMPT, STRATEGIES[name]))
    assert np.abs(guided[:2] - old[:2]).mean() < 0.5 * np.abs(free[:2] - old[:2]).mean()


def test_sessions_have_processors_of_their_own_and_one_copy_of_the_weights(
    loaded: dict[str, LeRobotPolicy],
):
    policy = loaded["pi0"]
    shared = engine(policy)
    one, other = shared.using(whose(1)), shared.using(whose(2))
    assert one.session._pre is not other.session._pre
    assert one.session._adapter is other.session._adapter
    assert shared.using(whose(1)).session is one.session
    # Interleaved, each has what it has alone.
    alone = chunk(engine(policy).using(whose(0)).stream(observation(1), PROMPT))
    parts = one.stream(observation(1), PROMPT)
    chunk(other.stream(observation(2), "push"))
    np.testing.assert_allclose(chunk(parts), alone, atol=1e-6)


def test_the_session_unused_for_longest_is_forgotten(loaded: dict[str, LeRobotPolicy]):
    shared = engine(loaded["smolvla"], max_sessions=2)
    first = shared.using(whose(1)).session
    shared.using(whose(2))
    assert shared.using(whose(1)).session is first
    shared.using(whose(3))
    assert shared.using(whose(1)).session is first
    assert len(shared._sessions) == 2
    shared.forget(1)
    assert list(shared._sessions) == [3]


@pytest.mark.parametrize("kind", KINDS)
def test_unchanged_frames_change_nothing_but_the_time(kind: str, loaded: dict[str, LeRobotPolicy]):
    policy = loaded[kind]
    session = engine(policy).using(whose(0))
    chunk(session.stream(observation(1), PROMPT))
    before = policy.adapter.tower.runs
    again = observation(1, state=np.full(5, 0.4, np.float32))
    kept = chunk(session.stream(again, PROMPT))
    assert policy.adapter.tower.runs == before
    fresh = chunk(engine(policy).using(whose(0)).stream(again, PROMPT))
    np.testing.assert_allclose(kept, fresh, atol=1e-6)


def test_what_lerobot_raises_is_told_to_that_robot_alone(loaded: dict[str, LeRobotPolicy]):
    session = engine(loaded["smolvla"]).using(whose(0))
    whole = session.session._pre

    class Strict:
        steps = ()

        def __call__(self, given: Any) -> Any:
            raise ValueError("a processor's own check")

    session.session._pre = Strict()
    with pytest.raises(OnsetError, match="a processor's own check") as caught:
        chunk(session.stream(observation(1), PROMPT))
    assert caught.value.code == ErrorCode.INTERNAL
    session.session._pre = whole
    assert len(chunk(session.stream(observation(1), PROMPT))) == 6


def test_the_server_describes_what_it_can(loaded: dict[str, LeRobotPolicy]):
    with LocalServer(served(loaded["smolvla"]), schedule="has") as server:
        said = describe(server.address)
    assert said.prompts == ()
    assert (said.horizon, said.expert_steps, said.max_delay) == (6, 10, 5)
    assert [c.name for c in said.robot.cameras] == ["front", "wrist"]
    assert "rtc" in said.strategies
    assert "prefix" not in said.strategies


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (robot(cameras=("front", "side")), ("['front', 'side']", "['front', 'wrist']")),
        (robot(states=6), ("6: ['joint0.pos'", "5, in the policy's order")),
        (robot(actions=3), ("3: ['joint0.pos'", "4, in the policy's order")),
    ],
)
def test_another_robot_is_refused_with_both_lists(given, words, loaded):
    with pytest.raises(OnsetError) as caught:
        served(loaded["smolvla"]).check_robot(given)
    assert caught.value.code == ErrorCode.BAD_NAMES
    assert caught.value.fatal
    assert words[0] in caught.value.given
    assert words[1] in caught.value.allowed


def test_frames_of_the_past_are_left_out(loaded: dict[str, LeRobotPolicy]):
    policy = loaded["smolvla"]
    past = replace(robot(), cameras=tuple(replace(c, lags=(0, 2)) for c in robot().cameras))
    served(policy).check_robot(past)
    with pytest.raises(OnsetError, match="newest frame"):
        served(policy).check_robot(
            replace(past, cameras=tuple(replace(c, lags=(2, 0)) for c in past.cameras))
        )
    asked = observation(1)
    longer = {n: np.concatenate([f, np.zeros_like(f)]) for n, f in asked.frames.items()}
    ours = engine(policy).stream(replace(asked, frames=longer), PROMPT)
    np.testing.assert_array_equal(chunk(ours), chunk(engine(policy).stream(asked, PROMPT)))


def test_cameras_are_mapped_by_name(loaded: dict[str, LeRobotPolicy]):
    from vla.adapters.served import camera_map

    policy = loaded["smolvla"]
    keys = ("observation.images.front", "observation.images.wrist")
    swapped = served(policy, camera_map([f"a={keys[1]}", f"b={keys[0]}"]))
    swapped.check_robot(robot(cameras=("b", "a")))
    asked = observation(1)
    turned = {"b": asked.frames["front"], "a": asked.frames["wrist"]}
    ours = (
        swapped.engine(ServeConfig()).using(whose(0)).stream(replace(asked, frames=turned), PROMPT)
    )
    plain = engine(policy).using(whose(0)).stream(asked, PROMPT)
    np.testing.assert_array_equal(chunk(ours), chunk(plain))
    for pairs in (["a=observation.images.front"], [f"a={keys[0]}", f"b={keys[0]}"]):
        with pytest.raises(OnsetError, match="each of"):
            served(policy, camera_map(pairs))
    for pairs in (["front"], ["=x"], [f"a={keys[0]}", f"a={keys[1]}"]):
        with pytest.raises(OnsetError, match="CAMERA="):
            camera_map(pairs)


def test_a_schedule_that_is_not_supported_is_refused_at_the_start(loaded):
    with pytest.raises(OnsetError, match="one-step head: no"):
        served(loaded["pi0"]).describe(ServeConfig(schedule="one_step"))
