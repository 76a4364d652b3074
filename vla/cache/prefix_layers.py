"""The pieces of the built-in model's prefix for one robot, as few operations as it takes.

The rows of one frame are so few that an operation costs as much by being called as by its
arithmetic. So whatever depends on weights alone is put together once, in double precision: scaling
of pixels into the first matrix, scale and shift of a normalisation into the matrix behind it, one
product after another into one. In-place operations save a copy each.

Each piece runs in torch, and ``describe`` says the same as part of a graph.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla.graph import FLOAT, Graph
from vla.models.layers import Block, by_head
from vla.models.small import PatchEmbedding, ReadoutHead, SmallVLA

EPSILON = 1e-5  # of every normalisation in the model


class Camera:
    """A ``PatchEmbedding`` whose scaling of pixels and lags is folded into its first matrix.

    Attributes:
        place: What is added to each patch's token: its position and the last bias. Shape (P, D).
    """

    def __init__(self, embedding: PatchEmbedding, lags: int) -> None:
        weight = embedding.pixels.weight.detach().double().unflatten(1, (lags, -1)) * 2.0
        # It sees newest - 0.5 and newest - lagged, each of 0..1; here all are 0..255.
        matrix = torch.cat([weight.sum(1, keepdim=True), -weight[:, 1:]], dim=1).flatten(1) / 255.0
        self._pixels = matrix.float().t()
        bias = embedding.pixels.bias.detach() - 0.5 * weight[:, 0].sum(-1)
        self._bias = bias.float()
        out, self._out = product(embedding.out)
        self.place = embedding.position.detach() + out

    def embed(self, pixels: Tensor, scale: Tensor, shift: Tensor, tokens: Tensor) -> None:
        """Adds patches (m, K), uint8, to image tokens (m, D) that hold their place."""
        x = torch.addcmul(shift, torch.addmm(self._bias, pixels.float(), self._pixels), scale)
        tokens.addmm_(F.gelu(x), self._out)

    def describe(self, graph: Graph, pixels: str, scale: str, shift: str) -> str:
        """What patches add to their tokens. Shape (m, D)."""
        pixels = graph.node("Cast", pixels, to=FLOAT)
        x = graph.linear(pixels, self._pixels, self._bias)
        x = graph.node("Gelu", graph.node("Add", graph.node("Mul", x, scale), shift))
        return graph.node("MatMul", x, graph.constant(self._out))


class Layer:
    """A prefix block with one product for query, key and value.

    Products are written out: a module's call costs as much as a small product.
    """

    def __init__(self, block: Block) -> None:
        self._project_bias, self._project = block.projection()
        self._heads, self._width = block.heads, block.query.out_features
        self._norm, self._norm_mlp = _norm(block.norm_attention), _norm(block.norm_mlp)
        self._out_bias, self._out = product(block.out)
        self._up_bias, self._up = product(block.mlp[0])
        self._down_bias, self._down = product(block.mlp[2])

    def through(self, x: Tensor, slot: Tensor, active: Tensor | None) -> None:
        """Takes rows (n, D) to those of the next layer, in place; notes their keys and values.

        Args:
            x: Shape (n, D).
            slot: Where keys and values of the rows are noted. Shape (2, heads, N + T, D / heads).
            active: Which rows of the slot x's are; all when None. Shape (n,).
        """
        width, shape = self._width, (self._width,)
        rows = torch.layer_norm(x, shape, *self._norm, EPSILON)
        projected = torch.addmm(self._project_bias, rows, self._project)
        write(slot, projected[:, width:], active)
        each = width // self._heads
        query = projected.as_strided((1, self._heads, len(x), each), (0, each, 3 * width, 1))
        read = F.scaled_dot_product_attention(query, slot[:1], slot[1:])
        read = read.transpose(1, 2).reshape(len(x), width)
        x.addmm_(read, self._out).add_(self._out_bias)
        rows = torch.layer_norm(x, shape, *self._norm_mlp, EPSILON)
        hidden = F.gelu(torch.addmm(self._up_bias, rows, self._up))
        x.addmm_(hidden, self._down).add_(self._down_bias)


class LastLayer:
    """Keys and values of the last block: the expert reads no more of it."""

    def __init__(self, block: Block) -> None:
        self._matrix, self._bias = _behind(block.norm_attention, *product(block.key_value))

    def write(self, rows: Tensor, slot: Tensor, active: Tensor | None) -> None:
        """Notes keys and values of normalised rows (n, D); ``slot`` as in ``Layer``."""
        write(slot, torch.addmm(self._bias, rows, self._matrix), active)

    def describe(self, graph: Graph, rows: str) -> str:
        """Keys and values of normalised rows. Shape (n, 2 D)."""
        return graph.linear(rows, self._matrix, self._bias)


class Readout:
    """``ReadoutHead`` for one sample, up to the first matrix of the summary behind it.

    A score is a product of patch and query through a matrix: the query meets the matrix first. An
    offset is linear in the patch, so its mean is that of the mean patch, and goes into the matrix
    that takes the mean patch up.

    Attributes:
        centres: Each patch's place in its picture, 0..1. Shape (N, 2).
        seen: Scale and shift that make of normalised image rows what ``ReadoutHead`` sees.
    """

    def __init__(self, head: ReadoutHead, cameras: int, enter: Tensor, enter_bias: Tensor) -> None:
        """Args:
        head: The model's.
        cameras: C.
        enter: What takes the readouts up behind it. Shape (R D, 2 D).
        enter_bias: Shape (2 D,).
        """
        readouts, width, c = head.readouts, head.norm_query.normalized_shape[0], cameras
        self._cameras, self._readouts, self._width = cameras, readouts, width
        self.centres = head.centres.repeat(cameras, 1)
        self.seen = _norm(head.norm_image)
        scale, shift = (part.double() for part in self.seen)
        query_scale, query_shift = (part.double() for part in _norm(head.norm_query))

        score = _weight(head.score).unflatten(0, (readouts, width)) * width**-0.5
        bias = _bias(head.score).unflatten(0, (readouts, width, 1)) * width**-0.5
        # Of a normalised query, what to multiply a normalised patch with, and what to add.
        sought = torch.cat([score * scale, score @ shift[:, None] + bias], dim=-1)
        self._sought = (query_scale[:, None] * sought).float()  # (R, D, D + 1)
        self._sought_bias = (query_shift @ sought)[:, None].float()

        first = cast(nn.Linear, head.feature[0])
        # Its columns: per camera (uv, seen, level), then the query.
        per_camera = _weight(first)[:, : c * (width + 3)].unflatten(1, (c, width + 3))
        uv, seen, level = per_camera.split((2, width, 1), dim=-1)
        query = _weight(first)[:, c * (width + 3) :]
        offset = _weight(head.offset).unflatten(0, (readouts, 2)) * (4 / head.grid)
        moved = _bias(head.offset).unflatten(0, (readouts, 2)) * (4 / head.grid) - 2
        through = torch.einsum("kcx,rxd->rkcd", uv, offset) + seen
        place = (uv * 4).expand(readouts, -1, -1, -1)
        mean = torch.cat([through * scale, place], dim=-1).flatten(2)  # (R, 2 D, C (D + 2))
        rest = torch.cat([level.flatten(1) * 0.1, query * query_scale], dim=-1)
        matrix = torch.cat([mean, rest.expand(readouts, -1, -1)], dim=-1)
        self._evidence = matrix.transpose(1, 2).float().contiguous()  # (R, C (D + 2) + C + D, 2 D)
        bias = torch.einsum("kcx,rx->rk", uv, moved) + torch.einsum("rkcd,d->rk", through, shift)
        self._evidence_bias = (bias + query @ query_shift + _bias(first))[:, None].float()

        last = cast(nn.Linear, head.feature[2])
        enter = enter.double().unflatten(0, (readouts, width))
        self._found = (_weight(last).t() @ enter).flatten(0, 1).float()  # (R 2 D, 2 D)
        self._found_bias = (enter_bias + _bias(last) @ enter.sum(0)).float()

    def read(
        self, rows: Tensor, images: Tensor, views: tuple[Tensor, Tensor], active: Tensor | None
    ) -> Tensor:
        """Notes the image rows, and finds what the queries look for. Shape (1, 2 D).

        Args:
            rows: Normalised rows: images, words, queries. Shape (n, D).
            images: Where image rows are noted. Shape (N, D).
            views: Of it: transposed (D, N); and with each patch's place (C, P, D + 2).
            active: Which image rows of the slot they are; all when None. Shape (m,).
        """
        readouts, width = self._readouts, self._width
        queries = rows[-readouts:]
        if active is None:
            images.copy_(rows[: len(images)])
        else:
            images.index_copy_(0, active, rows[: len(active)])
        sought = torch.baddbmm(self._sought_bias, queries[:, None], self._sought)[:, 0]
        scores = torch.addmm(sought[:, width:], sought[:, :width], views[0])
        scores = scores.view(readouts, self._cameras, -1)
        shares = scores.log_softmax(-1)
        level = scores[..., 0] - shares[..., 0]  # the logarithm of the sum of exponentials
        seen = torch.bmm(shares.exp_().transpose(0, 1), views[1])  # (C, R, D + 2)
        seen = seen.transpose(0, 1).reshape(readouts, -1)
        evidence = torch.cat([seen, level, queries], dim=-1)[:, None]
        hidden = F.gelu(torch.baddbmm(self._evidence_bias, evidence, self._evidence))
        return torch.addmm(self._found_bias, hidden.view(1, -1), self._found)

    def describe(self, graph: Graph, images: str, queries: str) -> str:
        """What the queries look for. Shape (1, 2 D).

        Args:
            graph: Where to.
            images: All image rows, normalised, with each patch's place. Shape (N, D + 2).
            queries: Normalised rows. Shape (R, D).
        """
        readouts, cameras, width = self._readouts, self._cameras, self._width
        sought = _each(graph, graph.reshape(queries, -1, 1, width), self._sought, self._sought_bias)
        sought = graph.reshape(sought, readouts, width + 1)
        sought, shift = graph.nodes("Split", 2, sought, graph.constant([width, 1]), axis=1)
        seen, _ = graph.nodes("Split", 2, images, graph.constant([width, 2]), axis=1)
        scores = graph.node("MatMul", sought, graph.node("Transpose", seen, perm=[1, 0]))
        scores = graph.reshape(graph.node("Add", scores, shift), readouts, cameras, -1)
        axis = graph.constant([2])
        level = graph.node("ReduceLogSumExp", scores, axis, keepdims=0)
        shares = graph.node("Transpose", graph.node("Softmax", scores, axis=2), perm=[1, 0, 2])
        patches = graph.reshape(images, cameras, -1, width + 2)
        seen = graph.node("Transpose", graph.node("MatMul", shares, patches), perm=[1, 0, 2])
        seen = graph.reshape(seen, readouts, -1)
        evidence = graph.node("Concat", seen, level, queries, axis=1)
        evidence = graph.node("Unsqueeze", evidence, graph.constant([1]))
        hidden = graph.node("Gelu", _each(graph, evidence, self._evidence, self._evidence_bias))
        return graph.linear(graph.reshape(hidden, 1, -1), self._found, self._found_bias)


class Summary:
    """What the expert is told in one row: what was found, and where the chunk begins.

    Attributes:
        enter: The matrix that takes the readouts up. Shape (R D, 2 D).
        enter_bias: Its bias. Shape (2 D,).
    """

    def __init__(self, model: SmallVLA) -> None:
        c = model.config
        self._states, self._width = c.state_dim, c.width
        enter, _, leave = model.state_in
        self.enter_bias, matrix = product(enter)
        self._state, self.enter = matrix[: c.state_dim], matrix[c.state_dim :]
        self._leave_bias, self._leave = product(leave)
        self._start: Tensor | None = None
        if c.max_start:
            scale, shift = model.start.weight.detach().chunk(2, dim=-1)
            self._start = torch.cat([1 + scale, shift], dim=-1)

    @property
    def starts(self) -> bool:
        """Whether it asks when the chunk begins."""
        return self._start is not None

    def of(self, found: Tensor, state: Tensor, start: Tensor) -> Tensor:
        """The row. Shape (1, D).

        Args:
            found: By the readout, as the first matrix takes it up. Shape (1, 2 D).
            state: As in ``PolicyInput``. Shape (1, S).
            start: As in ``PolicyInput``. Shape (1,).
        """
        hidden = torch.addmm(found, state, self._state)
        if self._start is not None:
            scale, shift = self._start.index_select(0, start).chunk(2, dim=-1)
            hidden = torch.addcmul(shift, hidden, scale)
        return torch.addmm(self._leave_bias, F.gelu(hidden), self._leave)

    def describe(self, graph: Graph, found: str) -> None:
        """Output ``summary``, with inputs ``state`` and, where it asks for it, ``start``."""
        state = graph.input("state", (1, self._states))
        hidden = graph.node("Gemm", state, graph.constant(self._state), found)
        if self._start is not None:
            start = graph.input("start", (1,), torch.int64)
            both = graph.node("Gather", graph.constant(self._start), start, axis=0)
            scale, shift = graph.nodes("Split", 2, both, axis=1, num_outputs=2)
            hidden = graph.node("Add", graph.node("Mul", hidden, scale), shift)
        row = graph.linear(graph.node("Gelu", hidden), self._leave, self._leave_bias)
        graph.output("summary", row, (1, self._width))


def product(linear: nn.Module) -> tuple[Tensor, Tensor]:
    """Bias, and the matrix to multiply rows with."""
    linear = cast(nn.Linear, linear)
    return linear.bias.detach(), linear.weight.detach().t()


def normalised(x: Tensor) -> Tensor:
    """Rows (n, D) without mean and with unit spread."""
    return torch.layer_norm(x, x.shape[1:], None, None, EPSILON)


def write(slot: Tensor, fresh: Tensor, active: Tensor | None) -> None:
    """Notes keys and values (n, 2 D), of all rows or of the active ones.

    ``slot`` is as in ``Layer``.
    """
    fresh = by_head(fresh, slot.shape[1])
    if active is None:
        slot.copy_(fresh)
    else:
        slot.index_copy_(2, active, fresh)


def _each(graph: Graph, rows: str, matrices: Tensor, bias: Tensor) -> str:
    """Rows (R, 1, K), each times its own matrix (R, K, M), plus a bias that broadcasts."""
    product = graph.node("MatMul", rows, graph.constant(matrices))
    return graph.node("Add", product, graph.constant(bias))


def _behind(norm: nn.LayerNorm, bias: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Matrix and bias of a product behind a normalisation, for rows that are only normalised."""
    scale, shift = (part.double() for part in _norm(norm))
    whole = (scale[:, None] * matrix).float(), (bias + shift @ matrix.double()).float()
    return whole[0].contiguous(), whole[1]


def _norm(norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    return norm.weight.detach(), norm.bias.detach()


def _weight(linear: nn.Module) -> Tensor:
    return cast(nn.Linear, linear).weight.detach().double()


def _bias(linear: nn.Module) -> Tensor:
    return cast(nn.Linear, linear).bias.detach().double()
