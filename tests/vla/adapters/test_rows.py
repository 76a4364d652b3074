"""Prefix rows that are kept: all of them anew is dense, and what is kept is what it says."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from controller.client import GrpcLink
from controller.errors import OnsetError
from tests.vla.adapters.test_served import PATIENT, PROMPT, chunk, observation, robot, served, whose
from tests.vla.helpers import LocalServer
from vla.cache.config import CacheConfig, CacheMode
from vla.serve.config import ServeConfig

if TYPE_CHECKING:
    from tests.vla.adapters.tiny import Tiny
    from vla.adapters.load import LeRobotPolicy

KINDS = ("smolvla", "pi0", "pi05")
COUNT = {"smolvla": 8, "pi0": 32, "pi05": 32}  # image tokens of two cameras


def engine(policy: LeRobotPolicy, mode: str = "pixel", rows: float | None = 0.25, **changes: Any):
    cache = CacheConfig(CacheMode(mode), rows, **changes)
    return served(policy).engine(ServeConfig(cache=cache))


def moved(seed: int, step: int, camera: str = "front", rows: slice = slice(0, 12)):
    """The observation of a seed some steps later, a corner of a picture changed."""
    asked = observation(seed)
    frames = {name: frame.copy() for name, frame in asked.frames.items()}
    frames[camera][:, rows, :16] = 255 - frames[camera][:, rows, :16]
    return replace(asked, id=seed + step, step=asked.step + step, frames=frames)


def later(asked: Any, **changes: Any):
    return replace(asked, **({"id": asked.id + 1, "step": asked.step + 1} | changes))


def encoded(policy: LeRobotPolicy, asked: Any) -> Any:
    """The context of all rows, without a cache."""
    from vla.adapters.session import AdapterSession, in_order

    session = AdapterSession(policy, in_order(policy, served(policy).cameras))
    batch, slots = session.batch(asked, asked.state, PROMPT, torch.device("cpu"))
    with torch.inference_mode():
        return policy.adapter.encode(batch, slots)


def context_of(shared: Any, asked: Any, session: int = 0) -> tuple[Any, Any]:
    one = shared.using(whose(session))
    batch, slots = one.session.batch(asked, asked.state, PROMPT, torch.device("cpu"))
    with torch.inference_mode():
        return shared.rows.encode(one.whose, asked, PROMPT, batch, slots)


def difference(one: Any, other: Any) -> float:
    pairs = zip((*one.keys, *one.values), (*other.keys, *other.values), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_all_rows_over_whatever_stood_there_are_dense(kind: str, loaded: dict[str, LeRobotPolicy]):
    from vla.adapters.kv import RowCache, laid

    policy = loaded[kind]
    adapter: Any = policy.adapter
    expected = encoded(policy, observation(1))
    images = {f"observation.images.{n}": f[0] for n, f in observation(1).frames.items()}
    given = {n: torch.from_numpy(f).permute(2, 0, 1)[None] / 255 for n, f in images.items()}
    state = torch.from_numpy(observation(1).state)[None]
    prefix = adapter.embed(policy.pre({**given, "observation.state": state, "task": [PROMPT]}))
    junk = [[torch.randn_like(t) for t in part] for part in (expected.keys, expected.values)]
    every = torch.arange(prefix.rows.shape[1])
    cache = adapter.run_layers(prefix, RowCache(*junk, every), every)
    assert difference(prefix.context(*laid(cache)), expected) <= 1e-5
    # LeRobot's own way is still its own.
    assert difference(encoded(policy, observation(1)), expected) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_share_of_one_is_dense(kind: str, loaded: dict[str, LeRobotPolicy]):
    policy = loaded[kind]
    shared = engine(policy, rows=1.0)
    for asked in (observation(1), moved(1, 1), moved(1, 2, "wrist")):
        context, figures = context_of(shared, asked)
        assert figures.rows == figures.rows_computed == COUNT[kind]
        assert difference(context, encoded(policy, asked)) <= 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_chosen_rows_are_new_and_the_others_are_kept(kind: str, loaded: dict[str, LeRobotPolicy]):
    policy = loaded[kind]
    shared = engine(policy)
    first, _ = context_of(shared, observation(1))
    before = [k.clone() for k in first.keys]
    asked = moved(1, 1)
    context, figures = context_of(shared, asked)
    chosen = shared.rows.chosen
    assert figures.dense_reason == ""
    assert figures.rows_computed == len(chosen) == -(-COUNT[kind] // 4)
    assert figures.max_age == 1
    assert figures.base_id == 1
    assert set(chosen.tolist()) & set(range(COUNT[kind] // 2))  # of the camera that has changed
    kept = np.setdiff1d(np.arange(COUNT[kind]), chosen)
    dense = encoded(policy, asked)
    torch.testing.assert_close(context.keys[0][:, :, chosen], dense.keys[0][:, :, chosen])
    for layer, keys in enumerate(context.keys):
        torch.testing.assert_close(keys[:, :, kept], before[layer][:, :, kept], rtol=0, atol=0)
    assert difference(context, dense) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_words_and_state_are_always_new(kind: str, loaded: dict[str, LeRobotPolicy]):
    policy = loaded[kind]
    shared = engine(policy)
    context_of(shared, observation(1))
    asked = later(moved(1, 1), state=np.full(5, 0.7, np.float32))
    context, _ = context_of(shared, asked)
    dense, texts = encoded(policy, asked), slice(COUNT[kind], None)
    torch.testing.assert_close(context.keys[0][:, :, texts], dense.keys[0][:, :, texts])
    torch.testing.assert_close(context.state, dense.state)


@pytest.mark.parametrize("kind", ["smolvla", "pi0"])
def test_where_no_picture_changes_nothing_is_lost_and_no_image_token_run(
    kind: str, loaded: dict[str, LeRobotPolicy]
):
    policy = loaded[kind]
    shared = engine(policy)
    asked = observation(1)
    context_of(shared, asked)
    for _ in range(20):  # past every age limit: nothing grows old
        asked = later(asked, state=asked.state + 0.1)
        context, figures = context_of(shared, asked)
        assert (figures.rows_computed, figures.max_age, figures.dense_reason) == (0, 0, "")
    assert difference(context, encoded(policy, asked)) <= 1e-5


def test_pi05_computes_rows_anew_where_the_state_moves(loaded: dict[str, LeRobotPolicy]):
    """Its state is text in the prefix, which image tokens see."""
    shared = engine(loaded["pi05"])
    asked = observation(1)
    context_of(shared, asked)
    _, figures = context_of(shared, later(asked))
    assert figures.rows_computed == 0
    _, figures = context_of(shared, later(asked, id=9, step=19, state=asked.state + 0.5))
    assert (figures.rows_computed, figures.max_age) == (8, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_no_row_is_older_than_the_limit(kind: str, loaded: dict[str, LeRobotPolicy]):
    policy = loaded[kind]
    shared = engine(policy, mode="random", max_age=6, slack=False)
    ages = []
    for step in range(30):
        asked = moved(1, step, rows=slice(step, step + 4))
        ages.append(context_of(shared, asked)[1].max_age)
    assert 1 < max(ages) <= 6


@pytest.mark.parametrize("kind", KINDS)
def test_slack_time_makes_everything_new(kind: str, loaded: dict[str, LeRobotPolicy]):
    policy = loaded[kind]
    shared = engine(policy)
    one = shared.using(whose(0))
    for asked in (observation(1), moved(1, 1), moved(1, 2, rows=slice(20, 30))):
        chunk(one.stream(asked, PROMPT))
    shared.settle(lambda: True)
    cache: Any = shared.rows.store.get(0)
    assert cache.ages.max() == 2
    calls = iter([False, False])  # then, in the middle of the layers
    shared.settle(lambda: next(calls, True))
    assert cache.ages.max() == 2
    shared.settle()
    assert cache.ages.max() == 0
    context, figures = context_of(shared, later(asked))
    assert figures.base_id == asked.id
    assert difference(context, encoded(policy, later(asked))) <= 1e-5


def test_sessions_keep_rows_of_their_own_and_are_forgotten(loaded: dict[str, LeRobotPolicy]):
    policy = loaded["pi0"]
    shared = engine(policy)
    first, _ = context_of(shared, observation(1), 1)
    before = [k.clone() for k in first.keys]
    context_of(shared, observation(2), 2)
    context_of(shared, moved(2, 1), 2)
    for keys, old in zip(first.keys, before, strict=True):
        torch.testing.assert_close(keys, old, rtol=0, atol=0)
    assert len(shared.rows.store) == 2
    shared.forget(1)
    assert len(shared.rows.store) == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"step": 5}, "step not after the last one"),
        ({"step": 99}, "frame gap"),
        ({"episode": "another"}, "new episode"),
        ({"prompt": "push"}, "new prompt"),
        ({"cut": True}, "cut or ego-motion"),
    ],
)
def test_any_doubt_is_dense(change: dict[str, Any], reason: str, loaded: dict[str, LeRobotPolicy]):
    policy = loaded["pi0"]
    shared = engine(policy)
    context_of(shared, observation(1))
    asked = later(observation(2) if change.get("cut") else moved(1, 1), step=12)
    asked = replace(asked, id=9, step=change.get("step", 12))
    one = shared.using(replace(whose(0), episode=change.get("episode", "")))
    prompt = change.get("prompt", PROMPT)
    (part,) = one.stream(asked, prompt)
    assert part.cache.dense_reason == reason
    assert part.cache.rows_computed == part.cache.rows == 32


def test_an_error_during_an_update_costs_a_dense_encoding(
    loaded: dict[str, LeRobotPolicy], monkeypatch: pytest.MonkeyPatch
):
    policy = loaded["smolvla"]
    shared = engine(policy)
    context_of(shared, observation(1))
    run = policy.adapter.run_layers

    def broken(prefix: Any, cache: Any = None, active: Any = None) -> Any:
        if active is not None:
            raise RuntimeError("no memory")
        return run(prefix, cache, active)

    monkeypatch.setattr(policy.adapter, "run_layers", broken)
    context, figures = context_of(shared, moved(1, 1))
    assert figures.dense_reason == "error during an update"
    assert difference(context, encoded(policy, moved(1, 1))) <= 1e-5


def test_a_policy_without_such_rows_refuses_with_what_it_supports(
    tinies: dict[str, Tiny], loaded: dict[str, LeRobotPolicy], root: Any
):
    from tests.vla.adapters.tiny import build
    from vla.adapters.load import load_lerobot_policy

    asked = ServeConfig(cache=CacheConfig(CacheMode.PIXEL, 0.5))
    with pytest.raises(OnsetError, match=r"pixel, with xvla; allowed: \['off'\].*'tower'"):
        served(loaded["xvla"]).describe(asked)
    oracle = ServeConfig(cache=CacheConfig(CacheMode.ORACLE, 0.5))
    with pytest.raises(OnsetError, match="oracle, with pi0; allowed: .*'learned', 'pixel'"):
        served(loaded["pi0"]).describe(oracle)
    marked = build("smolvla", root / "marked", tinies["smolvla"].language, prefix_length=64)
    policy = load_lerobot_policy(str(marked.path), language=marked.language)
    with pytest.raises(OnsetError, match=r"cache \['tower'\]"):
        served(policy).describe(asked)
    with pytest.raises(OnsetError, match="with a selector for smolvla"):
        engine(loaded["smolvla"], mode="learned", rows=None)


@pytest.mark.parametrize("kind", KINDS)
def test_a_reply_tells_what_was_computed(kind: str, loaded: dict[str, LeRobotPolicy]):
    cache = CacheConfig(CacheMode.PIXEL, 0.25, slack=False)
    with (
        LocalServer(served(loaded[kind]), cache=cache) as server,
        GrpcLink(server.address, robot(), robot_id="r", prompt=PROMPT, config=PATIENT) as link,
    ):
        told = []
        for asked in (observation(1), moved(1, 1)):
            link.submit(asked)
            link.wait(20)
            told += [piece.cache for piece in link.poll(0)]
    assert [t.rows_computed for t in told] == [COUNT[kind], COUNT[kind] // 4]
    assert [t.dense_reason for t in told] == ["first frame of the session", ""]
