"""Graphs against the same arithmetic in torch, and what they refuse."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vla.helpers import HORIZON
from vla.cache.asked import Beginning
from vla.cache.prefix import PrefixEncoder
from vla.graph import Graph
from vla.models.expert_graph import ExpertGraph
from vla.models.graph_blocks import attend
from vla.models.layers import Block
from vla.policy import Context

ROUNDING = 2e-5


def rows_graph() -> Graph:
    """The last three of some rows, through a layer, normalised."""
    torch.manual_seed(0)
    graph = Graph()
    rows = graph.slice(graph.input("rows", ("n", 4)), -3)
    rows = graph.linear(rows, torch.randn(4, 6), torch.randn(6))
    rows = graph.normalise(graph.node("Gelu", rows), torch.ones(6), torch.zeros(6), 1e-5)
    graph.output("found", rows, (3, 6))
    return graph


@pytest.mark.parametrize("n", [3, 5])
def test_operations_are_those_of_torch(n) -> None:
    compiled, found = rows_graph().compile(1), torch.empty(3, 6)
    rows = torch.randn(n, 4)
    compiled.run({"rows": rows}, {"found": found})
    torch.manual_seed(0)
    expected = F.layer_norm(F.gelu(rows[-3:] @ torch.randn(4, 6) + torch.randn(6)), (6,))
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        (torch.zeros(5, 5), torch.zeros(3, 6)),
        (torch.zeros(5, 4, dtype=torch.int64), torch.zeros(3, 6)),
        (torch.zeros(4, 5).t(), torch.zeros(3, 6)),
        (torch.zeros(5, 4), torch.zeros(6, 3).t()),
        (torch.zeros(5, 4), torch.zeros(2, 6)),
        (torch.zeros(5, 4), torch.zeros(4, 6)),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_beside_it_written(rows, found) -> None:
    before = found.clone()
    with pytest.raises(RuntimeError):
        rows_graph().compile(1).run({"rows": rows}, {"found": found})
    assert torch.equal(found, before)


def test_what_is_missing_is_refused() -> None:
    with pytest.raises(RuntimeError, match="rows"):
        rows_graph().compile(1).run({}, {"found": torch.zeros(3, 6)})


@pytest.mark.parametrize("first", [0, 1])
def test_a_block_is_the_models(first) -> None:
    torch.manual_seed(1)
    block, graph = Block(32, 4).eval(), Graph()
    for norm in (block.norm_attention, block.norm_mlp):
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    keys, values = (graph.input(name, (1, 4, "old", 8)) for name in ("keys", "values"))

    def among(*own: str) -> tuple[str, str]:
        mine, theirs = own
        return (
            graph.node("Concat", keys, mine, axis=2),
            graph.node("Concat", values, theirs, axis=2),
        )

    graph.output(
        "rows", attend(graph, block, graph.input("x", ("n", 32)), among, first), ("out", 32)
    )
    x, old, found = torch.randn(5, 32), torch.randn(1, 2, 4, 7, 8), torch.empty(5 - first, 32)
    graph.compile(1).run({"x": x, "keys": old[:, 0], "values": old[:, 1]}, {"rows": found})
    with torch.no_grad():
        normal = block.norm_attention(x[None])
        own = F.linear(normal, block.key_value.weight, block.key_value.bias)
        mine = own.view(1, 5, 2, 4, 8).permute(2, 0, 3, 1, 4)
        read = [torch.cat([old[:, n], mine[n]], dim=2) for n in range(2)]
        expected = block(x[None, first:], normal[:, first:], *read)[0]
    assert torch.allclose(found, expected, atol=ROUNDING)


def context_of(checkpoint, seed: int) -> Context:
    """An arbitrary context."""
    c = checkpoint.meta.model
    generator = torch.Generator().manual_seed(seed)
    shape = (1, 2, c.heads, 9, c.width // c.heads)
    rows = tuple(torch.randn(shape, generator=generator) for _ in range(c.depth))
    return Context(rows, torch.randn(1, c.width, generator=generator), 6)


TIMES = st.lists(st.floats(0, 1, width=32), min_size=HORIZON, max_size=HORIZON)


@settings(max_examples=40, deadline=None)
@given(tau=TIMES, left=TIMES, seed=st.integers(0, 99))
def test_a_step_of_the_expert_is_the_models(mean_flow, tau, left, seed) -> None:
    """By t times the velocity: near t = 0 the velocity is a small difference over a small time."""
    model, context = mean_flow.model, context_of(mean_flow, seed)
    graph = ExpertGraph(model)
    start = torch.tensor([tau])
    end, time = start * torch.tensor([left]), start.clamp(min=1e-5)[..., None]
    x = torch.randn(1, HORIZON, 2, generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        for mine, theirs in (
            (graph.velocity(x, start, context), model.velocity(x, start, context)),
            (
                graph.average_velocity(x, start, end, context),
                model.average_velocity(x, start, end, context),
            ),
        ):
            assert torch.allclose(mine * time, theirs * time, atol=ROUNDING)


def test_gradients_and_several_samples_are_the_models_own(mean_flow) -> None:
    graph, context = ExpertGraph(mean_flow.model), context_of(mean_flow, 0)
    x, tau = torch.randn(1, HORIZON, 2), torch.rand(1, HORIZON)
    with torch.no_grad():
        expected = mean_flow.model.velocity(x, tau, context)
        both = Context(
            tuple(kv.expand(2, -1, -1, -1, -1) for kv in context.keys_values),
            context.summary.expand(2, -1),
            context.image_rows,
        )
        two = graph.velocity(x.expand(2, -1, -1), tau.expand(2, -1), both)
        assert torch.allclose(two, expected.expand_as(two), atol=ROUNDING)
    bent = graph.velocity(x.requires_grad_(), tau, context)
    assert torch.equal(bent, expected)
    assert torch.autograd.grad(bent.sum(), x)[0].abs().sum() > 0


@settings(max_examples=30, deadline=None)
@given(chosen=st.sets(st.integers(0, 7)), whole=st.booleans(), seed=st.integers(0, 99))
def test_the_prefix_in_one_call_is_the_prefix_layer_by_layer(tiny, chosen, whole, seed) -> None:
    prefix, c = PrefixEncoder(tiny.model), tiny.meta.model
    torch.manual_seed(seed)
    with torch.inference_mode():
        prompt = prefix.prompt(torch.randint(0, c.words, (c.max_words,)))
        old, once, layered = (prefix.slot() for _ in range(3))
        old.keys_values.normal_()
        old.rows.normal_()
        rows = torch.arange(8) if whole else torch.tensor(sorted(chosen), dtype=torch.int64)
        patches = [
            torch.randint(0, 256, (int((rows // 4 == n).sum()), lags * 432), dtype=torch.uint8)
            for n, lags in enumerate(c.lags)
        ]
        texts = torch.arange(8, 8 + prefix.texts)
        given = (prompt, patches) if whole else (prompt, patches, torch.cat([rows, texts]), old)
        begins = Beginning(torch.randn(1, c.state_dim), torch.randint(0, c.max_start + 1, (1,)))
        prefix.encode(once, *given, begins=begins)
        prefix.encode(layered, *given, begins=begins, cancelled=lambda: False)
        for name in ("keys_values", "images", "found", "summary"):
            assert torch.allclose(getattr(once, name), getattr(layered, name), atol=ROUNDING), name
        others = [n for n in range(8) if n not in set(rows.tolist())]
        kept = (slot.keys_values[..., others, :] for slot in (once, old))
        assert torch.equal(*kept)
