"""What each strategy makes of an observation, in the engine and over the wire.

index of the steps     k   k+1  k+2 | k+3  k+4  k+5  k+6
committed, planned     a0  a1   a2  | a3   a4   a5   a6      d = 3
prefix                 *   *    *     0    0    0    ...
forecast                              0    0    0    ...
"""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from controller.client import describe
from controller.errors import OnsetError
from controller.strategy import STRATEGIES
from onset.v1 import policy_pb2 as pb
from tests.vla.helpers import (
    HORIZON,
    PROMPTS,
    LocalServer,
    Wire,
    chunk_of,
    inputs_of,
    link_to,
    observation,
    tiny_normaliser,
)
from vla.chunking import make_condition
from vla.engine import Engine
from vla.guidance import Guide, rtc_weights
from vla.sampler import Sampler
from vla.schedule import AVERAGE, SCHEDULES
from vla.serve.config import ServeConfig
from vla.serve.config import describe as description_of

D, MOST = 3, 4  # the delay in these tests, and the greatest one trained for
OLD = np.random.default_rng(0).uniform(0, 1, (12, 2)).astype(np.float32)
FORECAST = np.array([0.9, 0.1, -0.4], np.float32)
SCALES = tiny_normaliser()
TRAINED = [s.name for s in STRATEGIES.values() if s.committed or s.late]
LATE = [s.name for s in STRATEGIES.values() if s.late]
WALKED = [name for name in SCHEDULES if name not in AVERAGE]
GUIDED = [s.name for s in STRATEGIES.values() if s.guided]


def seen(id: int = 3, **changes):
    """An observation with three committed actions, four planned ones and a forecast."""
    given = {"delay": D, "committed": OLD[:D], "planned": OLD[D : D + 4], "forecast": FORECAST}
    return observation(id, **(given | changes))


def condition(name: str, asked, most: int = MOST):
    return make_condition(STRATEGIES[name], asked, SCALES, most)


def normalised(actions: np.ndarray, state: np.ndarray) -> np.ndarray:
    """The arm's action is relative to its joint, the gripper's is absolute."""
    mean, std = (t.numpy()[: len(actions)] for t in (SCALES.chunk_mean, SCALES.chunk_std))
    return (actions - [state[0], 0.0] - mean) / std


# What the condition is

# Start, whether the state is the forecast, the committed actions that are the prefix, guide.
CONDITIONS = {
    "sync": (0, False, (0, 0), None),
    "naive": (0, False, (0, 0), None),
    "blend": (0, False, (0, 0), None),
    "rtc": (0, False, (0, 0), "vjp"),
    "rtc_identity": (0, False, (0, 0), "identity"),
    "prefix": (0, False, (0, D), None),
    "last_command": (D, True, (0, 0), None),
    "forecast": (D, True, (0, 0), None),
    "oracle": (D, True, (0, 0), None),
    "onset": (D, True, (0, 0), None),
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_condition_is_what_the_strategy_says(name):
    start, late, (first, last), rule = CONDITIONS[name]
    asked = seen()
    made = condition(name, asked)
    assert (made.start, made.prefix_length) == (start, last - first)
    state = FORECAST if late else asked.state
    np.testing.assert_array_equal(made.state, state)
    if made.prefix is not None:
        np.testing.assert_allclose(
            made.prefix[0], normalised(OLD[first:last], state), atol=1e-5, rtol=0
        )
    assert (made.guide.rule if made.guide else None) == rule


@pytest.mark.parametrize("name", GUIDED)
@pytest.mark.parametrize("planned", [2, 4, 9])
def test_the_guide_is_the_old_chunk_where_it_stands(name, planned):
    asked = seen(planned=OLD[D : D + planned])
    guide = condition(name, asked).guide
    assert guide is not None
    count = min(D + planned, HORIZON - 1)  # one index at least is free
    target, weights = np.zeros((HORIZON, 2)), np.zeros(HORIZON)
    target[:count] = normalised(OLD[:count], asked.state)
    weights[:D] = 1.0
    for i in range(D, count):
        c = (count - i) / (count - D + 1)
        weights[i] = c * (math.exp(c) - 1) / (math.e - 1)
    np.testing.assert_allclose(guide.target[0], target, atol=1e-5, rtol=0)
    np.testing.assert_allclose(guide.weights, weights, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", GUIDED)
def test_an_old_chunk_that_ends_before_the_new_one_takes_over_guides_nothing(name):
    none = np.zeros((0, 2), np.float32)
    for committed in (OLD[:D], OLD[: D - 1], none):
        assert condition(name, seen(committed=committed, planned=none)).guide is None


def test_fewer_actions_than_the_delay_are_continued_from_the_first_on():
    asked = seen(committed=OLD[: D - 1])
    prefix = condition("prefix", asked).prefix
    assert prefix is not None
    np.testing.assert_allclose(prefix[0], normalised(OLD[: D - 1], asked.state), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", TRAINED)
def test_without_committed_actions_there_is_no_prefix(name):
    assert condition(name, seen(committed=np.zeros((0, 2), np.float32))).prefix is None


@pytest.mark.parametrize("name", LATE)
def test_a_late_chunk_without_a_forecast_is_refused(name):
    with pytest.raises(OnsetError, match="observation.forecast: given none; allowed: .*" + name):
        condition(name, seen(forecast=None))
    # Where it begins with its pictures, the measured state is the one.
    at_once = seen(forecast=None, delay=0, committed=OLD[:0])
    np.testing.assert_array_equal(condition(name, at_once).state, at_once.state)


@pytest.mark.parametrize("name", STRATEGIES)
def test_only_what_is_trained_has_a_greatest_delay(name):
    asked = seen(delay=MOST + 1)
    if name in TRAINED:
        with pytest.raises(OnsetError, match=r"observation.delay: given 5; allowed: 0\.\.4"):
            condition(name, asked)
    else:
        assert condition(name, asked, most=0).start == 0


# The engine


def whole(engine: Engine, asked, name: str):
    """The first step of the chunk, its steps and actions in order."""
    parts = list(engine.stream(asked, PROMPTS[0], STRATEGIES[name]))
    steps = np.concatenate([p.steps for p in parts])
    order = np.argsort(steps)
    return parts[0].start_step, steps[order], np.concatenate([p.actions for p in parts])[order]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_late_chunk_is_the_present_one_of_the_forecast_state(delayed, schedule):
    engine, asked = Engine(delayed, schedule=schedule), seen()
    start, steps, actions = whole(engine, asked, "forecast")
    assert start == asked.step + D
    np.testing.assert_array_equal(steps, start + np.arange(HORIZON))
    # The embedding of its beginning is not trained yet, and so says nothing.
    present = whole(engine, replace(asked, state=FORECAST), "naive")
    np.testing.assert_array_equal(actions, present[2])
    # Once it is, a late chunk is another one.
    model = copy.deepcopy(delayed.model)
    torch.nn.init.normal_(model.start.weight)
    other = whole(Engine(replace(delayed, model=model), schedule=schedule), asked, "forecast")
    assert np.abs(other[2] - actions).max() > 1e-3


@pytest.mark.parametrize("name", GUIDED)
@pytest.mark.parametrize("schedule", WALKED)
def test_a_guided_chunk_is_the_samplers_with_the_old_chunk_for_its_guide(delayed, name, schedule):
    engine, asked = Engine(delayed, schedule=schedule), seen()
    start, steps, actions = whole(engine, asked, name)
    assert start == asked.step
    np.testing.assert_array_equal(steps, start + np.arange(HORIZON))
    target = torch.zeros(1, HORIZON, 2)
    target[0, : D + 4] = torch.from_numpy(normalised(OLD[: D + 4], asked.state))
    guide = Guide(target, rtc_weights(HORIZON, D, 1), "vjp" if name == "rtc" else "identity")
    with torch.inference_mode():
        context = delayed.model.encode(inputs_of(engine, asked))
    noise = torch.randn(1, HORIZON, 2, generator=torch.Generator().manual_seed(asked.id))
    for ripe in Sampler(delayed.model, engine.schedule).run(context, noise, guide=guide):
        expected = SCALES.actions(ripe.values[0].numpy(), asked.state, ripe.indices)
        np.testing.assert_allclose(actions[ripe.indices], expected, atol=1e-5)
    assert np.abs(actions - whole(engine, asked, "naive")[2]).max() > 1e-3


@pytest.mark.parametrize("name", GUIDED)
@pytest.mark.parametrize("schedule", AVERAGE)
def test_an_average_velocity_is_not_guided(delayed, name, schedule):
    with pytest.raises(OnsetError, match="guide: given a guide, with a schedule of average"):
        whole(Engine(delayed, schedule=schedule), seen(), name)


# Over the wire


@pytest.fixture(scope="module")
def delayed_server(delayed):
    with LocalServer(delayed) as running:
        yield running


@pytest.mark.parametrize("name", ["forecast", "onset", "rtc"])
def test_a_session_is_answered_as_its_strategy_says(delayed_server, delayed, name):
    asked = seen()
    with link_to(delayed_server, strategy=name) as link:
        link.submit(asked)
        piece = chunk_of(link)
    start, steps, actions = whole(Engine(delayed), asked, name)
    assert (piece.start_step, piece.final) == (start, True)
    np.testing.assert_array_equal(piece.steps, steps)
    np.testing.assert_allclose(piece.actions, actions, atol=1e-5)


OFFERS = [("tiny", name) for name in WALKED]
OFFERS += [(policy, name) for policy in ("mean_flow", "delayed") for name in SCHEDULES]


@pytest.mark.parametrize(("policy", "schedule"), OFFERS)
def test_only_what_the_checkpoint_can_do_is_offered(request, policy, schedule):
    checkpoint = request.getfixturevalue(policy)
    offered = description_of(checkpoint, ServeConfig(schedule=schedule)).strategies
    kept = {"sync", "naive", "blend"}
    if schedule in WALKED:
        kept |= {*GUIDED}
    if policy != "tiny":
        kept |= {"prefix"}
    if policy == "delayed":
        kept |= {*LATE}
    assert offered == tuple(name for name in STRATEGIES if name in kept)


def test_the_server_says_what_it_offers(delayed_server):
    description = describe(delayed_server.address)
    assert (description.strategies, description.max_delay) == (tuple(STRATEGIES), MOST)


BAD = {
    "delay": ({"delay": MOST + 1}, "observation.delay", "5", "0..4"),
    "forecast": ({"forecast": None}, "observation.forecast", "none", "the state expected at"),
}


@pytest.mark.parametrize("bad", BAD)
def test_what_can_not_be_conditioned_on_is_refused_and_the_session_goes_on(delayed_server, bad):
    changes, field, given, allowed = BAD[bad]
    with Wire(delayed_server.address) as wire:
        wire.open(strategy="onset")
        wire.send(seen(3, **changes))
        error = wire.error()
        code = pb.ErrorCode.Value("ERROR_CODE_BAD_VALUE")
        assert (error.code, error.fatal, error.observation_id) == (code, False, 3)
        assert (error.field, error.given) == (field, given)
        assert error.allowed.startswith(allowed)
        wire.send(seen(4))
        assert wire.next().slice.observation_id == 4
