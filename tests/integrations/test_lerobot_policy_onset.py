"""LeRobot's side of the remote policy, against the real server with an engine that answers by rule.

An answer's action for step s is (s, state[0], mean of the frame, length of the prompt).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from controller.errors import ErrorCode, OnsetError
from controller.messages import Description
from controller.strategy import STRATEGIES, Strategy
from controller.types import CameraSpec, Dimension, Observation, RobotSpec
from tests.vla.helpers import LocalServer
from vla.chunking import ChunkMemory
from vla.finished import Finished

HORIZON = 5
ROBOT = RobotSpec(
    "any",
    tuple(Dimension(f"state.{i}", "1", -9, 9) for i in range(3)),
    tuple(Dimension(f"action.{i}", "1", -999, 999) for i in range(4)),
    (CameraSpec("front", 16, 20),),
    50_000_000,
)


class Rule:
    """A policy that is served, and what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Observation, str, Strategy]] = []
        self.prompts: tuple[str, ...] = ()
        self.tail = threading.Event()
        self.tail.set()

    def describe(self, config: Any) -> Description:
        return Description(
            "rule", "0", self.prompts, HORIZON, ROBOT, tuple(STRATEGIES), 2, 0, HORIZON - 1
        )

    def check_robot(self, robot: RobotSpec) -> None:
        if robot.name == "wrong":
            raise OnsetError(ErrorCode.BAD_NAMES, "open.robot", robot.name, "any", fatal=True)

    def check_prompt(self, field: str, prompt: str) -> None:
        if prompt == "sing":
            raise OnsetError(ErrorCode.UNKNOWN_PROMPT, field, prompt, "no songs")

    def engine(self, config: Any) -> Rule:
        return self

    def stream(
        self,
        observation: Observation,
        prompt: str,
        strategy: Strategy,
        memory: ChunkMemory | None = None,
        **_: Any,
    ) -> Iterator[Finished]:
        if observation.deadline_ns == 0 and observation.frames["front"].any():
            self.asked.append((observation, prompt, strategy))
        left = observation.delay if strategy.committed else 0
        steps = np.arange(left, HORIZON) + observation.step
        seen = (observation.state[0], observation.frames["front"].mean(), len(prompt))
        rows = np.array([(step, *seen) for step in steps], np.float32)
        yield Finished(observation.step, steps[:1], rows[:1], False, 1, 1, 1, 0)
        self.tail.wait(10)
        yield Finished(observation.step, steps[1:], rows[1:], True, 1, 1, 2, 0)


@pytest.fixture
def rule() -> Rule:
    return Rule()


@pytest.fixture
def address(rule: Rule):
    with LocalServer(rule) as server:
        yield server.address


@pytest.fixture
def make(address: str):
    """Makes remote policies, and closes them."""
    from lerobot_policy_onset.configuration_onset import OnsetConfig
    from lerobot_policy_onset.modeling_onset import OnsetPolicy

    made: list[OnsetPolicy] = []

    def one(**settings: Any) -> OnsetPolicy:
        made.append(OnsetPolicy(OnsetConfig(server=address, device="cpu", **settings)))
        return made[-1]

    yield one
    for policy in made:
        policy.close()


def batch(rows: int = 1, state: float = 0.5, level: int = 51, task: Any = "pick") -> dict:
    images = torch.full((rows, 3, 16, 20), level / 255)
    states = torch.full((rows, 3), state) + torch.arange(rows)[:, None]
    return {
        "observation.state": states,
        "observation.images.front": images,
        "task": [task] * rows if isinstance(task, str) else task,
    }


def test_each_step_s_action_comes_in_turn_and_a_chunk_is_asked_for_once(make, rule):
    policy = make()
    policy.reset()
    for step in range(2 * HORIZON):
        action = policy.select_action(batch(state=step / 10))
        asked = step - step % HORIZON
        np.testing.assert_allclose(action[0].numpy(), [step, asked / 10, 51, 4], rtol=1e-6)
    assert [o.step for o, _, _ in rule.asked] == [0, HORIZON]


def test_the_first_action_is_not_kept_for_the_last(make, rule):
    policy = make()
    policy.reset()
    rule.tail.clear()
    assert policy.select_action(batch())[0, 0] == 0
    rule.tail.set()
    assert policy.select_action(batch())[0, 0] == 1


def test_fewer_actions_are_executed_on_request(make, rule):
    policy = make(n_action_steps=2)
    policy.reset()
    for _ in range(5):
        policy.select_action(batch())
    assert [o.step for o, _, _ in rule.asked] == [0, 2, 4]


def test_rows_of_a_batch_are_sessions(make, rule):
    policy = make()
    policy.reset()
    action = policy.select_action(batch(rows=3, task=["a", "bb", "ccc"]))
    np.testing.assert_allclose(action[:, 1], [0.5, 1.5, 2.5])
    np.testing.assert_allclose(action[:, 3], [1, 2, 3])
    assert sorted(p for _, p, _ in rule.asked) == ["a", "bb", "ccc"]


def test_a_reset_begins_a_new_episode_with_its_prompt(make, rule):
    policy = make()
    for task in ("pick", "place it"):
        policy.reset()
        for step in range(3):
            action = policy.select_action(batch(task=task))
            np.testing.assert_allclose(action[0, [0, 3]], [step, len(task)])
    assert [(o.step, p) for o, p, _ in rule.asked] == [(0, "pick"), (0, "place it")]
    assert rule.asked[1][0].id > rule.asked[0][0].id


def test_a_prompt_that_changes_on_the_way_travels(make, rule):
    policy = make(n_action_steps=1)
    policy.reset()
    for task in ("pick", "pick", "place it"):
        policy.select_action(batch(task=task))
    assert [p for _, p, _ in rule.asked] == ["pick", "pick", "place it"]


def test_threads_have_sessions_of_their_own(make, rule):
    policy = make()
    found: dict[int, list[float]] = {}

    def drive(number: int) -> None:
        policy.reset()
        found[number] = [
            float(policy.select_action(batch(state=number))[0, i])
            for i in (0, 0, 1)  # two steps, then the state
        ]
        policy.close()

    threads = [threading.Thread(target=drive, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert found == {i: [0.0, 1.0, float(i)] for i in range(3)}


@pytest.mark.parametrize("strategy", ["rtc_identity", "prefix"])
def test_committed_and_planned_actions_travel(make, rule, strategy):
    policy = make(strategy=strategy)
    policy.reset()
    first = policy.predict_action_chunk(batch(), inference_delay=0, prev_chunk_left_over=None)
    assert first.shape == (1, HORIZON, 4)
    old = torch.arange(1.0, 13.0).reshape(3, 4)
    filled = torch.cat([old, torch.zeros(4, 4)])  # as LeRobot hands it over
    chunk = policy.predict_action_chunk(batch(), inference_delay=2, prev_chunk_left_over=filled)
    asked, _, used = rule.asked[-1]
    assert used.name == strategy
    assert asked.delay == 2
    np.testing.assert_allclose(asked.committed, old[:2])
    np.testing.assert_allclose(asked.planned, old[2:])
    assert chunk.shape == (1, HORIZON, 4)
    if strategy == "prefix":
        np.testing.assert_allclose(chunk[0, :2], old[:2])
    assert asked.step > rule.asked[0][0].step


def test_what_lerobot_asks_of_a_policy(make):
    from lerobot.policies.factory import get_policy_class, make_policy_config
    from lerobot.rollout.inference.rtc import supports_rtc_inference

    policy = make()
    assert supports_rtc_inference(policy)
    assert type(policy) is get_policy_class("onset")
    assert make_policy_config("onset", device="cpu").type == "onset"
    assert list(policy.parameters()) == []


def test_the_written_directory_is_one_that_lerobot_loads(address, tmp_path: Path):
    from lerobot.configs import PreTrainedConfig
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors
    from lerobot_policy_onset.__main__ import Args, main

    assert main(Args(tmp_path, address, keys=("observation.image",))) == 0
    config = PreTrainedConfig.from_pretrained(tmp_path)
    policy = get_policy_class("onset").from_pretrained(tmp_path, config=config)
    assert policy.config.server == address
    assert list(config.input_features) == ["observation.state", "observation.image"]
    device = {"device_processor": {"device": "cpu"}}
    pre, post = make_pre_post_processors(
        config, str(tmp_path), preprocessor_overrides=device, postprocessor_overrides=device
    )
    given = batch()
    given["observation.image"] = given.pop("observation.images.front")
    policy.reset()
    action = post(policy.select_action(pre(given)))
    np.testing.assert_allclose(action[0], [0, 0.5, 51, 4], rtol=1e-6)
    policy.close()


def test_it_says_what_does_not_fit(make, rule):
    from lerobot_policy_onset.configuration_onset import OnsetConfig

    policy = make()
    with pytest.raises(OnsetError, match=r"2 numbers.*3: \['state.0'"):
        policy.select_action(batch() | {"observation.state": torch.zeros(1, 2)})
    with pytest.raises(OnsetError, match=r"server's cameras \['front'\]"):
        policy.select_action(
            batch()
            | {f"observation.images.{n}": torch.zeros(1, 3, 4, 4) for n in "ab"}
            | {"observation.images.front": "no tensor"}
        )
    with pytest.raises(OnsetError, match="--policy.prompt"):
        policy.select_action(batch(task=""))
    with pytest.raises(OnsetError, match="no songs"):
        policy.select_action(batch(task="sing"))
    with pytest.raises(OnsetError, match="weights are the server's"):
        policy.forward({})
    with pytest.raises(OnsetError, match="forecast"):
        OnsetConfig(strategy="forecast", device="cpu")
    with pytest.raises(OnsetError, match="webp"):
        OnsetConfig(encoding="webp", device="cpu")
