"""The built-in model's expert as a graph: on the processor a step for one robot is one call."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from vla.flow import NO_TIME
from vla.graph import Compiled, Graph
from vla.models.graph_blocks import attend, linear, norm
from vla.models.layers import Block, frequencies
from vla.models.small import SmallVLA
from vla.policy import Context, PolicyInput


class ExpertGraph:
    """A model whose steps for one sample run as a graph.

    It is a ``MeanFlowPolicy`` where the model is one. Where x needs gradients, the model runs.
    """

    def __init__(self, model: SmallVLA) -> None:
        self._model, threads = model, torch.get_num_threads()
        # Now, and not while a robot waits.
        self._velocity = build(model, jumps=False).compile(threads)
        self._average: Compiled | None = None
        if model.config.mean_flow:
            self._average = build(model, jumps=True).compile(threads)

    @property
    def horizon(self) -> int:
        return self._model.horizon

    @property
    def action_dim(self) -> int:
        return self._model.action_dim

    def encode(self, inputs: PolicyInput) -> Context:
        return self._model.encode(inputs)

    def velocity(self, x: Tensor, tau: Tensor, context: Context) -> Tensor:
        if len(x) != 1 or x.requires_grad:
            return self._model.velocity(x, tau, context)
        return _run(self._velocity, x, {"tau": tau}, context)

    def average_velocity(self, x: Tensor, start: Tensor, end: Tensor, context: Context) -> Tensor:
        if self._average is None or len(x) != 1 or x.requires_grad:
            return self._model.average_velocity(x, start, end, context)
        return _run(self._average, x, {"tau": start, "jump": start - end}, context)


def _run(graph: Compiled, x: Tensor, times: dict[str, Tensor], context: Context) -> Tensor:
    given = {"x": x[0], "summary": context.summary}
    given |= {name: time.reshape(-1, 1) for name, time in times.items()}
    for number, both in enumerate(context.keys_values):
        # What stands as the prefix's graph leaves it is not copied.
        keys, values = both.contiguous().unbind(1)
        given |= {f"keys_{number}": keys, f"values_{number}": values}
    velocity = torch.empty_like(x)
    graph.run(given, {"velocity": velocity[0]})
    return velocity


def build(model: SmallVLA, jumps: bool) -> Graph:
    """A step of the expert for one sample, as ``SmallVLA.clean`` and ``velocity_from_clean``.

    Args:
        model: The model.
        jumps: Whether it takes the length of each index's jump, and gives the average velocity.

    Returns:
        Inputs ``x`` (H, A), ``tau`` (H, 1), ``jump`` (H, 1) if any, ``summary`` (1, D), and per
        layer ``keys_<n>`` and ``values_<n>`` (1, heads, N, D / heads); output ``velocity`` (H, A).
    """
    c, graph = model.config, Graph()
    x, tau = graph.input("x", (c.horizon, c.action_dim)), graph.input("tau", (c.horizon, 1))
    given = graph.node("Concat", x, _embedding(graph, model, tau), axis=1)
    enter, _, leave = model.action_in
    hidden = linear(graph, enter, given)
    hidden = graph.node("Mul", hidden, graph.node("Sigmoid", hidden))
    h = graph.node("Add", linear(graph, leave, hidden), graph.constant(model.action_position))
    if jumps:
        jump = _embedding(graph, model, graph.input("jump", (c.horizon, 1)))
        still = torch.cat([torch.zeros(c.width // 2), torch.ones(c.width // 2)])
        jump = graph.node("Sub", jump, graph.constant(still))
        learnt = graph.node("MatMul", jump, graph.constant(model.jump.weight.t()))
        h = graph.node("Add", h, learnt)
    summary = graph.input("summary", (1, c.width))
    h = graph.node("Concat", summary, graph.node("Add", h, summary), axis=0)
    blocks = cast(list[Block], list(model.expert))
    for number, block in enumerate(blocks):
        shape = (1, c.heads, "rows", c.width // c.heads)
        shared = [graph.input(f"{name}_{number}", shape) for name in ("keys", "values")]

        def among(keys: str, values: str, shared: list[str] = shared) -> tuple[str, str]:
            first, second = (
                graph.node("Concat", *pair, axis=2)
                for pair in zip(shared, (keys, values), strict=True)
            )
            return first, second

        # Nobody reads what becomes of the summary.
        h = attend(graph, block, h, among, first=1 if block is blocks[-1] else 0)
    clean = linear(graph, cast(nn.Module, model.action_out), norm(graph, model.norm_out, h))
    time = graph.node("Max", tau, graph.constant(torch.tensor(NO_TIME)))
    velocity = graph.node("Div", graph.node("Sub", x, clean), time)
    graph.output("velocity", velocity, (c.horizon, c.action_dim))
    return graph


def _embedding(graph: Graph, model: SmallVLA, time: str) -> str:
    """``vla.models.layers.time_embedding`` of times (H, 1). Shape (H, D)."""
    each = frequencies(model.config.width, model.shortest, model.action_position)
    angle = graph.node("Mul", time, graph.constant(each))
    return graph.node("Concat", graph.node("Sin", angle), graph.node("Cos", angle), axis=1)
