"""The built-in model's prefix as a graph: on the processor it is one call."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from vla.cache.prefix_layers import EPSILON, Camera, LastLayer, Readout, Summary
from vla.graph import Graph
from vla.models.graph_blocks import apart, attend
from vla.models.layers import Block
from vla.models.small import SmallVLAConfig


def describe_prefix(
    config: SmallVLAConfig,
    cameras: Sequence[Camera],
    blocks: Sequence[Block],
    last: LastLayer,
    readout: Readout,
    summary: Summary,
    whole: bool,
) -> Graph:
    """The graph of ``PrefixEncoder.encode``.

    Args:
        config: The model's.
        cameras: One for each of its cameras.
        blocks: All layers but the last.
        last: The last one.
        readout: What reads image rows.
        summary: What takes up what it found.
        whole: Whether all rows are computed; only then are there no older ones to go in.

    Returns:
        Inputs ``prompt`` (N + T, D), per camera ``pixels_<n>`` (m, K), ``scale_<n>`` and
        ``shift_<n>`` (2 D,), ``state`` (1, S), with starts ``start`` (1,), and unless it is whole
        ``active`` (M + T,), per layer ``old_keys_<n>`` and ``old_values_<n>``, and ``old_images``
        (N, D + 2); outputs ``keys_<n>``, ``values_<n>``, ``images``, ``found`` and ``summary``.
        All are as ``Slot`` has them.
    """
    graph, width = Graph(), config.width
    rows = config.grid**2 * len(config.cameras)
    texts = config.max_words + config.readouts
    prompt = graph.input("prompt", (rows + texts, width))
    tokens = []
    for number, (camera, lags) in enumerate(zip(cameras, config.lags, strict=True)):
        shape = (f"active_{number}", lags * 3 * config.patch**2)
        pixels = graph.input(f"pixels_{number}", shape, torch.uint8)
        scale, shift = (graph.input(f"{n}_{number}", (2 * width,)) for n in ("scale", "shift"))
        tokens.append(camera.describe(graph, pixels, scale, shift))
    places, words = graph.nodes("Split", 2, prompt, graph.constant([rows, texts]), axis=0)
    at = chosen = ""
    if not whole:
        active = graph.input("active", ("active",), torch.int64)
        chosen = graph.slice(graph.node("Unsqueeze", active, graph.constant([1])), 0, -texts)
        places = graph.node("GatherND", places, chosen)
        # Of each head, where its active rows stand: 0, head, row. Shape (1, heads, M + T, 3).
        at = graph.node("Mul", graph.reshape(active, 1, 1, -1, 1), graph.constant([0, 0, 1]))
        heads = torch.arange(config.heads)[:, None, None] * torch.tensor([0, 1, 0])
        at = graph.node("Add", at, graph.constant(heads[None]))
    image = tokens[0] if len(tokens) == 1 else graph.node("Concat", *tokens, axis=0)
    x = graph.node("Concat", graph.node("Add", places, image), words, axis=0)

    shape = (1, config.heads, rows + texts, width // config.heads)

    def among(name: str, own: str) -> str:
        """Notes rows with their heads apart among those of an earlier frame, and gives all."""
        if not whole:
            own = graph.node("ScatterND", graph.input(f"old_{name}", shape), at, own)
        graph.output(name, own, shape)
        return own

    def both(number: int, keys: str, values: str) -> tuple[str, str]:
        return among(f"keys_{number}", keys), among(f"values_{number}", values)

    for number, block in enumerate(blocks):
        x = attend(graph, block, x, partial(both, number))
    ones, zeros = torch.ones(width), torch.zeros(width)
    x = graph.normalise(x, ones, zeros, EPSILON)
    read = graph.nodes("Split", 2, last.describe(graph, x), axis=1, num_outputs=2)
    both(len(blocks), *(apart(graph, part, config.heads, width) for part in read))
    images, centres = graph.slice(x, 0, -texts), graph.constant(readout.centres)
    if not whole:
        centres = graph.node("GatherND", centres, chosen)
    images = graph.node("Concat", images, centres, axis=1)
    if not whole:
        images = graph.node(
            "ScatterND", graph.input("old_images", (rows, width + 2)), chosen, images
        )
    graph.output("images", images, (rows, width + 2))
    queries = graph.slice(x, -config.readouts)
    found = readout.describe(graph, images, queries)
    graph.output("found", found, (1, 2 * width))
    summary.describe(graph, found)
    return graph


def describe_summary(config: SmallVLAConfig, summary: Summary) -> Graph:
    """The graph of ``PrefixEncoder.begin``.

    Returns:
        Inputs ``found`` (1, 2 D), ``state`` (1, S), and with starts ``start`` (1,); output
        ``summary`` (1, D).
    """
    graph = Graph()
    summary.describe(graph, graph.input("found", (1, 2 * config.width)))
    return graph
