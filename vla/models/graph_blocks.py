"""A transformer block as part of a graph, for one sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from torch import nn

from vla.graph import Graph
from vla.models.layers import Block

# Keys and values, (1, heads, M, D / heads) each, to those that are read, with N rows each.
Among = Callable[[str, str], tuple[str, str]]


def attend(graph: Graph, block: Block, x: str, among: Among, first: int = 0) -> str:
    """Takes rows through a block.

    Args:
        graph: Where to.
        block: The block.
        x: Rows. Shape (M, D).
        among: Makes of the rows' own keys and values those that are read.
        first: Rows before it are read by the others, and are not in the result.

    Returns:
        The block's rows. Shape (M - first, D).
    """
    width, heads = block.query.out_features, block.heads
    bias, matrix = block.projection()
    rows = graph.linear(norm(graph, block.norm_attention, x), matrix, bias)
    query, key, value = graph.nodes("Split", 3, rows, axis=1, num_outputs=3)
    key, value = among(*(apart(graph, each, heads, width) for each in (key, value)))
    if first:
        query, x = (graph.slice(each, first) for each in (query, x))
    query = graph.reshape(query, 1, -1, width)
    read = graph.node(
        "MultiHeadAttention", query, key, value, num_heads=heads, domain="com.microsoft"
    )
    x = graph.node("Add", x, linear(graph, block.out, graph.reshape(read, -1, width)))
    up, _, down = block.mlp
    hidden = graph.node("Gelu", linear(graph, up, norm(graph, block.norm_mlp, x)))
    return graph.node("Add", x, linear(graph, down, hidden))


def apart(graph: Graph, rows: str, heads: int, width: int) -> str:
    """Rows with their heads apart. (M, D) to (1, heads, M, D / heads)."""
    rows = graph.reshape(rows, 1, -1, heads, width // heads)
    return graph.node("Transpose", rows, perm=[0, 2, 1, 3])


def linear(graph: Graph, module: nn.Module, rows: str) -> str:
    """Rows (n, K) through a linear layer."""
    module = cast(nn.Linear, module)
    return graph.linear(rows, module.weight.t(), module.bias)


def norm(graph: Graph, module: nn.LayerNorm, rows: str) -> str:
    """Rows (n, D), normalised."""
    return graph.normalise(rows, module.weight, module.bias, module.eps)
