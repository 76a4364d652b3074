"""Branches: how they are drawn, what they hold against a slow loop, and one encoding for all."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.errors import OnsetError
from controller.servo import ServoModel
from sim.collect import write_shard
from tests.vla.helpers import HORIZON, PROMPTS, ROBOT
from vla.models.small import SmallVLA
from vla.policy import PolicyInput
from vla.train import losses as training
from vla.train.data import Batch, Branches, Demonstrations
from vla.train.losses import Draws, PlaceHead, branch, losses
from vla.train.offsets import PRESENT, Offsets
from vla.train.times import Mixture, Times, draw_points
from vla.transforms import Normaliser, Tokeniser

MOST = 4  # what the tiny policy is made for
PERIOD_S = 0.04
LENGTHS = (9, 3, 14)
TOKENS = Tokeniser.of(PROMPTS)
# The gripper of this robot stalls, its arm does not.
SERVO = ServoModel(
    ("pan.pos", "grip.pos"),
    ("rad", "1"),
    np.array([120.0, 60.0]),
    np.array([20.0, 14.0]),
    np.array([40.0, 9.0]),
    np.array([np.inf, 0.2]),
)


# What is drawn

share = st.floats(0, 1)
offsets = st.tuples(st.integers(1, 5), st.integers(0, 20), share, share, share, st.integers(1, 9))


@settings(deadline=None)
@given(drawn=offsets, frames=st.integers(1, 20), seed=st.integers(0, 1000))
def test_a_branch_begins_in_one_of_three_ways_within_the_greatest_delay(drawn, frames, seed):
    count, d_max, present, late, early, most = drawn
    made = Offsets(count, d_max, present, late, early * (1 - late), most)
    start, prefix = made.draw(frames, torch.Generator().manual_seed(seed))
    assert start.shape == prefix.shape == (frames, count)
    assert start.dtype == prefix.dtype == torch.int64
    assert (start >= 0).all()
    assert (prefix >= 0).all()
    assert (start + prefix <= d_max).all()
    assert ((prefix == 0) | (start == 0) | (prefix <= most)).all()


def test_the_shares_are_those_that_are_named():
    made = Offsets(count=4, d_max=10, present=0.25, late=0.5, early=0.2, prefix=2)
    start, prefix = (t.flatten() for t in made.draw(50_000, torch.Generator().manual_seed(0)))
    delay = start + prefix
    counts = torch.bincount(delay, minlength=11) / len(delay)
    expected = torch.tensor([0.25] + [0.075] * 10)
    torch.testing.assert_close(counts, expected, atol=5e-3, rtol=0)
    # With a delay past the longest prefix the three ways can be told apart, at each delay alike.
    for d in (3, 6, 10):
        here = prefix[delay == d]
        shares = [(here == n).float().mean().item() for n in (0, d, 1, 2)]
        assert shares == pytest.approx([0.5, 0.2, 0.15, 0.15], abs=0.02)
    # A prefix is not longer than the delay.
    assert (prefix[delay == 1] <= 1).all()


def test_by_default_chunks_begin_with_their_frames():
    start, prefix = PRESENT.draw(50, torch.Generator().manual_seed(0))
    assert start.shape == (50, 1)
    assert not start.any()
    assert not prefix.any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 0}, "offsets.count: given 0; allowed: 1..64"),
        ({"d_max": -1}, "offsets.d_max"),
        ({"prefix": 0}, "offsets.prefix"),
        ({"present": 1.5}, "offsets.present, late, early"),
        ({"late": 0.7, "early": 0.4}, "late and early sum up to at most 1"),
    ],
)
def test_offsets_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(OnsetError, match=message):
        Offsets(**changes)


# What a branch holds


def replan(position, velocity, visible, age_s, state):
    """No expert: a number of its own for whatever it is given."""
    scene = 2 * position.sum((1, 2)) + 3 * velocity.sum((1, 2)) + 5 * visible.sum(1) + 7 * age_s
    return state[:, None, :2] + scene[:, None, None] + 0.1 * np.arange(HORIZON)[:, None]


def make_episode(rng: np.random.Generator, steps: int) -> dict[str, np.ndarray]:
    """Unrelated numbers everywhere, so that nothing is right by chance."""

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=(steps, *shape)).astype(np.float32)

    frames = {
        f"frames_{c.name}": rng.integers(0, 256, (steps, 24, 24, 3), dtype=np.uint8)
        for c in ROBOT.cameras
    }
    return frames | {
        "state": normal(4),
        "action": normal(2),
        "chunk": normal(HORIZON, 2),
        "uv": rng.uniform(size=(steps, 2, 1, 2)).astype(np.float32),
        "inside": rng.uniform(size=(steps, 2, 1)) < 0.8,
        "position": normal(1, 3),
        "velocity": normal(1, 3),
        "visible": rng.uniform(size=(steps, 1)) < 0.8,
    }


@pytest.fixture(scope="module")
def episodes():
    rng = np.random.default_rng(0)
    return [make_episode(rng, steps) for steps in LENGTHS]


@pytest.fixture
def read(episodes, tmp_path):
    """Reads the episodes as demonstrations; the scales are theirs."""

    def make(**changes) -> tuple[Demonstrations, Normaliser]:
        lags = {c.name: c.lags for c in ROBOT.cameras}
        data = Demonstrations(("front", "wrist"), lags, PERIOD_S, **changes)
        path = tmp_path / "round0_000.npz"
        write_shard(path, [(e, PROMPTS[i % 2]) for i, e in enumerate(episodes)])
        data.add(path)
        return data, data.fit(torch.tensor([1.0, 0.0]))

    return make


def forecast(episode, step: int, start: int, servo: ServoModel | None) -> np.ndarray:
    """The state at a branch's beginning, of this row alone."""
    now, actions = episode["state"][step], episode["action"]
    if start == 0:
        return now
    if servo is None:
        return episode["state"][step + start]
    before = actions[step - 1] if step else now[:2]
    ahead = actions[step : step + start]
    position, velocity = servo.roll(now[None, :2], now[None, 2:], before[None], ahead[None], 0.04)
    return np.concatenate([position[0, -1], velocity[0, -1]])


def labels(episode, step: int, start: int, prefix: int, plans) -> np.ndarray:
    """Executed actions, and the plan behind them. Shape (H, A)."""
    later = step + start + prefix
    plan = episode["chunk"][later]
    if plans is not None:
        scene = (episode[name][step][None] for name in ("position", "velocity", "visible"))
        age_s = np.array([(later - step) * PERIOD_S])
        plan = plans(*scene, age_s, episode["state"][later][None])[0]
    rows = [episode["action"][step + start + i] for i in range(prefix)]
    return np.array(rows + [plan[i] for i in range(HORIZON - prefix)])


@pytest.mark.parametrize("plans", [None, replan], ids=["planned then", "planned again"])
@pytest.mark.parametrize("servo", [None, SERVO], ids=["measured", "servo"])
def test_branches_are_those_of_a_slow_loop(read, episodes, servo, plans):
    data, scales = read(servo=servo, replan=plans)
    # Every step of every episode, with every beginning.
    kinds = [(d - p, p) for d in range(MOST + 1) for p in range(d + 1)]
    rows = np.arange(sum(LENGTHS))
    start, prefix = (np.tile(column, (len(rows), 1)) for column in np.array(kinds).T)
    made = data.rows(rows, start, prefix, scales, TOKENS)
    assert made.branches.count == len(kinds)
    mean, std = scales.chunk_mean.numpy(), scales.chunk_std.numpy()
    number = 0
    for length, episode in zip(LENGTHS, episodes, strict=True):
        for step in range(length):
            for begin, committed in kinds:
                one = {n: v[number] for n, v in vars(made.branches).items() if n != "count"}
                number += 1
                assert (one["start"], one["prefix"]) == (begin, committed)
                assert one["valid"] == (step + begin + committed < length)
                if not one["valid"]:
                    continue
                state = forecast(episode, step, begin, servo)
                want = (state - scales.state_mean.numpy()) / scales.state_std.numpy()
                np.testing.assert_allclose(one["state"], want, atol=1e-5)
                chunk = labels(episode, step, begin, committed, plans)
                want = (chunk - [state[0], 0.0] - mean) / std
                np.testing.assert_allclose(one["chunk"], want, atol=1e-4)
    assert number == len(made.branches.valid)
    # The frame's own state is the measured one, whatever its branches have.
    measured = np.concatenate([e["state"] for e in episodes])
    torch.testing.assert_close(made.inputs.state, scales.state(torch.from_numpy(measured)))
    assert not made.inputs.start.any()


def test_the_planner_is_asked_once_with_the_scene_of_the_frame_and_the_state_of_later(
    read, episodes
):
    asked = []

    def spy(*arguments):
        asked.append(arguments)
        return replan(*arguments)

    data, scales = read(replan=spy)
    rows, start, prefix = np.array([0, 11]), np.array([[2, 0], [1, 0]]), np.array([[1, 0], [0, 2]])
    data.rows(rows, start, prefix, scales, TOKENS)
    ((position, velocity, visible, age_s, state),) = asked
    first, last = episodes[0], episodes[1]
    scenes = [(first, 0)] * 2 + [(last, 2)] * 2  # row 11 is the last step of the second episode
    for name, given_ in (("position", position), ("velocity", velocity), ("visible", visible)):
        np.testing.assert_array_equal(given_, [e[name][i] for e, i in scenes])
    np.testing.assert_allclose(age_s, np.array([3, 0, 1, 2]) * PERIOD_S)
    # Past the end of an episode, where a branch does not count, its last state stands.
    later = [first["state"][3], first["state"][0], last["state"][2], last["state"][2]]
    np.testing.assert_array_equal(state, later)


# What is learnt from it


def tuned(delayed) -> SmallVLA:
    """The tiny policy with a state of four, and a beginning that matters."""
    torch.manual_seed(0)
    model = SmallVLA(replace(delayed.meta.model, state_dim=4))
    torch.nn.init.normal_(model.start.weight, std=0.3)
    torch.nn.init.normal_(model.jump.weight, std=0.2)
    return model


def drawn(read, frames: int, made: Offsets) -> Batch:
    """Some frames with their branches."""
    data, scales = read(servo=SERVO, replan=replan)
    return data.batch(frames, made, scales, TOKENS, torch.Generator().manual_seed(1))


def in_double(model: SmallVLA, batch: Batch) -> tuple[SmallVLA, Batch]:
    """Both in double precision."""
    for patches in model.patches:  # pixels become single precision before they get there
        patches.pixels.register_forward_pre_hook(lambda _, x: (x[0].double(),))
    inputs = replace(batch.inputs, state=batch.inputs.state.double())
    branches = replace(
        batch.branches, state=batch.branches.state.double(), chunk=batch.branches.chunk.double()
    )
    return model.double(), replace(batch, inputs=inputs, branches=branches)


def gradients(model: SmallVLA, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("head", ["meanflow", "distil"])
def test_what_lies_past_an_episodes_end_moves_neither_loss_nor_gradient(read, delayed, head):
    model = tuned(delayed)
    teacher, place = copy.deepcopy(model), PlaceHead(model.config.width)
    batch = drawn(read, 12, Offsets(count=3, d_max=MOST))
    out = ~batch.branches.valid
    assert 3 < out.sum() < len(out) - 3

    def learnt(branches: Branches):
        changed, generator = replace(batch, branches=branches), torch.Generator().manual_seed(2)
        draws = Draws(flow=2, jump=3, head=head)
        parts = losses(model, teacher, place, changed, draws, Mixture(), generator)
        return parts, gradients(model, parts.total)

    parts, grads = learnt(batch.branches)
    other = copy.deepcopy(batch.branches)
    other.chunk[out], other.state[out], other.start[out] = 50.0, -20.0, 0
    others, other_grads = learnt(other)
    assert (others.flow, others.jump) == (parts.flow, parts.jump)
    assert parts.flow > 0
    assert parts.jump > 0
    for name, grad in grads.items():
        torch.testing.assert_close(grad, other_grads[name], atol=1e-7, rtol=1e-5, msg=name)
    # And where nothing is left, nothing is learnt.
    empty, _ = learnt(replace(batch.branches, valid=torch.zeros_like(out)))
    assert (empty.flow, empty.jump) == (0.0, 0.0)


@pytest.mark.parametrize("repeats", [1, 2])
def test_one_encoding_for_all_branches_has_the_gradient_of_one_for_each(
    read, delayed, monkeypatch, repeats
):
    """Shared: B frames, each encoded once for its O branches. Separate: B O frames encoded."""
    model, batch = in_double(
        tuned(delayed), drawn(read, 6, Offsets(count=3, d_max=MOST, present=0.0))
    )
    branches = batch.branches.repeat(repeats)
    assert branches.start.unique().numel() > 2
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(branches.chunk.shape, generator=generator, dtype=torch.float64)
    times = draw_points(branches.prefix, HORIZON, Mixture(), generator)

    def flow(context, rows: slice) -> tuple[torch.Tensor, int]:
        """The loss of some branches with their own noise and times, and how much counts in it."""
        part = Branches(**{n: v[rows] for n, v in vars(branches).items() if n != "count"}, count=1)
        here = Times(*(t[rows] for t in vars(times).values()))
        monkeypatch.setattr(training, "_noise", lambda chunk, _: noise[rows])
        monkeypatch.setattr(training, "draw_points", lambda *_: here)
        counted = int((here.free & part.valid[:, None]).sum())
        return training._flow(model, context, part, Mixture(), generator), counted

    shared = branch(model, *model.encode_with_readout(batch.inputs), branches)
    together, total = flow(shared, slice(None))
    grads = gradients(model, together)

    apart = torch.zeros((), dtype=torch.float64)
    for o in range(branches.count):
        rows = slice(o, None, branches.count)  # this branch of every frame
        state, start = branches.state[rows], branches.start[rows]
        inputs = PolicyInput(batch.inputs.images, state, batch.inputs.tokens, start)
        loss, counted = flow(model.encode(inputs), rows)
        apart = apart + loss * counted / total
    assert together.item() == pytest.approx(apart.item(), abs=1e-12)
    separate = gradients(model, apart)
    assert grads.keys() == separate.keys()
    assert max(grad.abs().max() for grad in grads.values()) > 1e-2
    for name, grad in grads.items():
        torch.testing.assert_close(grad, separate[name], atol=1e-9, rtol=0, msg=name)


def test_training_leaves_out_clean_indices_and_changes_nothing_else(read, delayed, monkeypatch):
    """Against the same model when it serves, which works on every index."""
    model, batch = in_double(tuned(delayed), drawn(read, 6, Offsets(count=3, d_max=MOST)))
    branches = batch.branches
    times = draw_points(branches.prefix, HORIZON, Mixture(), torch.Generator().manual_seed(3))
    noise = torch.randn(branches.chunk.shape, dtype=torch.float64)
    monkeypatch.setattr(training, "_noise", lambda *_: noise)
    monkeypatch.setattr(training, "draw_points", lambda *_: times)
    found = {}
    for mode in (True, False):
        model.train(mode)
        context = branch(model, *model.encode_with_readout(batch.inputs), branches)
        clean = model.clean(noise, times.start, context)
        loss = training._flow(model, context, branches, Mixture(), torch.Generator())
        found[mode] = clean, gradients(model, loss)
    (trained, grads), (served, other_grads) = found[True], found[False]
    noisy = times.start > 0
    assert 0 < noisy.double().mean() < 1
    torch.testing.assert_close(trained[noisy], served[noisy])
    torch.testing.assert_close(trained[~noisy], noise[~noisy])
    assert grads.keys() == other_grads.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(grad, other_grads[name], msg=name)
