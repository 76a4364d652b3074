"""The built-in model's prefix for one robot, over all rows or over some.

    patches that are active --embed--> x --+
    words, readout queries ----------------+--> layer: write keys and values of x's rows into the
                                                slot, read all rows of the slot, write x

Rows that are not active keep the keys and values of an earlier frame, at every layer. What depends
on weights or prompt alone is computed once: scaling of pixels is folded into the first matrix,
query, key and value share one product, and the readout's query meets its matrix before the patches
do. The whole prefix takes these gains too, so a cache is compared with the best that is without.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla.models.layers import Block
from vla.models.small import PatchEmbedding, ReadoutHead, SmallVLA
from vla.policy import Context


@dataclass(frozen=True)
class PromptRows:
    """What an instruction is to the prefix.

    Attributes:
        texts: Rows of words, then readout queries. Shape (T, D).
        scales: Per camera, what the pixels' product is scaled by. Shape (2 D,).
        shifts: Per camera. Shape (2 D,).
        instruction: Its embedding. Shape (D,).
    """

    texts: Tensor
    scales: tuple[Tensor, ...]
    shifts: tuple[Tensor, ...]
    instruction: Tensor


@dataclass
class Slot:
    """One encoding, in buffers made once.

    Attributes:
        keys_values: Per layer: keys, then values, of image rows, words and queries.
            Shape (L, N + T, 2 D).
        images: Image rows as the readout sees them, then each patch's place in its picture,
            0..1. Shape (N, D + 2).
        feature: What the readout found. Shape (1, R, D).
    """

    keys_values: Tensor
    images: Tensor
    feature: Tensor

    def copy_from(self, other: Slot) -> None:
        """Takes everything over."""
        self.keys_values.copy_(other.keys_values)
        self.images.copy_(other.images)
        self.feature.copy_(other.feature)

    @property
    def nbytes(self) -> int:
        """Size [bytes]."""
        tensors = (self.keys_values, self.images, self.feature)
        return sum(t.numel() * t.element_size() for t in tensors)


class Cancelled(Exception):
    """Something more urgent came while everything was computed again."""


class PrefixEncoder:
    """Runs a ``SmallVLA``'s prefix into slots. Holds weights, and nothing of any session."""

    def __init__(self, model: SmallVLA) -> None:
        self._model, self.config = model, model.config
        c = model.config
        self.patches = c.grid * c.grid  # P
        self.rows = self.patches * len(c.cameras)  # N
        self.texts = c.max_words + c.readouts  # T
        with torch.no_grad():
            self._cameras = [
                _Camera(cast(PatchEmbedding, p), lags)
                for p, lags in zip(model.patches, c.lags, strict=True)
            ]
            self._layers = [_Layer(cast(Block, block)) for block in model.prefix]
            self._readout = _Readout(model.readout, len(c.cameras))
            enter, _, leave = model.state_in
            self._enter, self._leave = _product(enter), _product(leave)

    @property
    def device(self) -> torch.device:
        return self._model.queries.device

    def prompt(self, tokens: Tensor) -> PromptRows:
        """The rows of an instruction. Token ids: shape (W,), int64."""
        model = self._model
        words, instruction = (rows[0] for rows in model.instruct(tokens[None]))
        both = [
            cast(PatchEmbedding, p).modulation(instruction).chunk(2, dim=-1) for p in model.patches
        ]
        texts = torch.cat([words, model.queries + instruction])
        scales = tuple(1 + scale for scale, _ in both)
        return PromptRows(texts, scales, tuple(shift for _, shift in both), instruction)

    def slot(self) -> Slot:
        """Buffers for one encoding; what is in them is arbitrary."""
        c = self.config
        images = torch.empty(self.rows, c.width + 2, device=self.device)
        images[:, c.width :] = self._readout.centres
        return Slot(
            torch.empty(c.depth, self.rows + self.texts, 2 * c.width, device=self.device),
            images,
            torch.empty(1, c.readouts, c.width, device=self.device),
        )

    def encode(
        self,
        slot: Slot,
        prompt: PromptRows,
        patches: Sequence[Tensor],
        chosen: Sequence[Tensor] | None = None,
        active: Tensor | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> None:
        """Computes rows into a slot.

        Args:
            slot: Holds the other rows already.
            prompt: The instruction's rows, which are always computed.
            patches: Per camera the active patches, float 0..255. Shape (m, lags * 3 * p * p).
            chosen: Per camera which patches they are. Shape (m,), int64. All when None.
            active: The same as rows of the slot, then the rows of ``prompt``. Shape (M + T,).
            cancelled: Asked before each layer.

        Raises:
            Cancelled: By the caller; the slot is half written.
        """
        images = [
            camera.embed(
                pixels, prompt.scales[i], prompt.shifts[i], None if chosen is None else chosen[i]
            )
            for i, (camera, pixels) in enumerate(zip(self._cameras, patches, strict=True))
        ]
        x = torch.cat([*images, prompt.texts])
        last = len(self._layers) - 1
        for number, layer in enumerate(self._layers):
            if cancelled is not None and cancelled():
                raise Cancelled
            if number < last:
                x = layer.through(x, slot.keys_values[number], active)
            else:  # the expert reads keys and values only
                layer.write(x, slot.keys_values[number], active)
        self._readout.read(x, slot, len(x) - len(prompt.texts), active)

    def context(self, slot: Slot, state: Tensor, start: Tensor) -> Context:
        """What the expert reads: views into the slot, good until it is written again.

        Args:
            slot: Wholly computed.
            state: As in ``PolicyInput``. Shape (1, S).
            start: As in ``PolicyInput``. Shape (1,).
        """
        views = [_heads(kv, self.config.heads) for kv in slot.keys_values]
        summary = self._summary(slot.feature, state, start)
        return Context(tuple(k for k, _ in views), tuple(v for _, v in views), summary, self.rows)

    def _summary(self, feature: Tensor, state: Tensor, start: Tensor) -> Tensor:
        """As ``SmallVLA.summarise``."""
        hidden = torch.addmm(
            self._enter[0], torch.cat([state, feature.flatten(1)], 1), self._enter[1]
        )
        if self.config.max_start:
            scale, shift = self._model.start.weight.index_select(0, start).chunk(2, dim=-1)
            hidden = torch.addcmul(hidden + shift, hidden, scale)
        return torch.addmm(self._leave[0], F.gelu(hidden), self._leave[1])


class _Camera:
    """A ``PatchEmbedding`` whose scaling of pixels and lags is folded into its first matrix."""

    def __init__(self, embedding: PatchEmbedding, lags: int) -> None:
        weight = embedding.pixels.weight.detach().unflatten(1, (lags, -1)) * 2.0
        # It sees newest - 0.5 and newest - lagged, each of 0..1; here all are 0..255.
        matrix = torch.cat([weight.sum(1, keepdim=True), -weight[:, 1:]], dim=1).flatten(1) / 255.0
        self._pixels = matrix.t()
        self._bias = embedding.pixels.bias.detach() - 0.5 * weight[:, 0].sum(-1)
        self._out = _product(embedding.out)
        self._position = embedding.position.detach()

    def embed(self, pixels: Tensor, scale: Tensor, shift: Tensor, chosen: Tensor | None) -> Tensor:
        """Patches (m, K) to image tokens (m, D)."""
        x = torch.addmm(self._bias, pixels, self._pixels)
        x = F.gelu(torch.addcmul(shift, x, scale))
        position = self._position
        position = position if chosen is None else position.index_select(0, chosen)
        return torch.addmm(self._out[0], x, self._out[1]).add_(position)


class _Layer:
    """A prefix block with one product for query, key and value.

    Products are written out: a module's call costs as much as a small product.
    """

    def __init__(self, block: Block) -> None:
        projections = (block.query, block.key_value)
        self._project = torch.cat([p.weight.detach() for p in projections]).t().contiguous()
        self._project_bias = torch.cat([p.bias.detach() for p in projections])
        self._heads, self._width = block.heads, block.query.out_features
        self._norm, self._norm_mlp = _norm(block.norm_attention), _norm(block.norm_mlp)
        self._out = _product(block.out)
        self._up, self._down = _product(block.mlp[0]), _product(block.mlp[2])

    def through(self, x: Tensor, keys_values: Tensor, active: Tensor | None) -> Tensor:
        """Rows (n, D) of this layer to those of the next; notes their keys and values."""
        shape, width = (self._width,), self._width
        projected = torch.addmm(
            self._project_bias, F.layer_norm(x, shape, *self._norm), self._project
        )
        _write(keys_values, projected[:, width:], active)
        keys, values = _heads(keys_values, self._heads)
        query = projected[:, :width].view(len(x), self._heads, -1).transpose(0, 1)[None]
        read = F.scaled_dot_product_attention(query, keys, values)
        read = read[0].transpose(0, 1).reshape(len(x), width)
        x = torch.addmm(self._out[0], read, self._out[1]).add_(x)
        hidden = torch.addmm(self._up[0], F.layer_norm(x, shape, *self._norm_mlp), self._up[1])
        return x.add_(torch.addmm(self._down[0], F.gelu(hidden), self._down[1]))

    def write(self, x: Tensor, keys_values: Tensor, active: Tensor | None) -> None:
        """Notes the rows' keys and values."""
        rows = F.layer_norm(x, (self._width,), *self._norm)
        bias, matrix = self._project_bias[self._width :], self._project[:, self._width :]
        _write(keys_values, torch.addmm(bias, rows, matrix), active)


class _Readout:
    """``ReadoutHead`` for one sample, with the patches in as few products as there can be.

    A score is a product of patch and query through a matrix: the query meets the matrix first. An
    offset is linear in the patch, so its mean is that of the mean patch, and goes into the matrix
    that takes the mean patch up.
    """

    centres: Tensor

    def __init__(self, head: ReadoutHead, cameras: int) -> None:
        readouts, width, c = head.readouts, head.norm_query.normalized_shape[0], cameras
        self.centres = head.centres.repeat(cameras, 1)
        self._norm_image, self._norm_query = _norm(head.norm_image), _norm(head.norm_query)
        score = head.score.weight.detach().unflatten(0, (readouts, width))
        bias = head.score.bias.detach().unflatten(0, (readouts, width, 1))
        self._score = torch.cat([score, bias], dim=-1) * width**-0.5  # (R, D, D + 1)
        enter = cast(nn.Linear, head.feature[0])
        # Its columns: per camera (uv, seen, level), then the query.
        weight = enter.weight.detach()
        per_camera = weight[:, : c * (width + 3)].unflatten(1, (c, width + 3))
        uv, seen, level = per_camera.split((2, width, 1), dim=-1)
        offset = head.offset.weight.detach().unflatten(0, (readouts, 2)) * (4 / head.grid)
        shift = head.offset.bias.detach().unflatten(0, (readouts, 2)) * (4 / head.grid) - 2
        through = torch.einsum("kcx,rxd->rkcd", uv, offset) + seen
        place = (uv * 4).expand(readouts, -1, -1, -1)
        mean = torch.cat([through, place], dim=-1).flatten(2)  # (R, 2 D, C (D + 2))
        rest = torch.cat([level.flatten(1) * 0.1, weight[:, c * (width + 3) :]], dim=-1)
        matrix = torch.cat([mean, rest.expand(readouts, -1, -1)], dim=-1)
        self._enter = matrix.transpose(1, 2).contiguous()  # (R, C (D + 2) + C + D, 2 D)
        self._enter_bias = (torch.einsum("kcx,rx->rk", uv, shift) + enter.bias.detach())[:, None]
        self._leave = _product(cast(nn.Linear, head.feature[2]))
        self._cameras, self._readouts, self._width = cameras, readouts, width

    def read(self, x: Tensor, slot: Slot, images: int, active: Tensor | None) -> None:
        """Notes the image rows among x, and finds what the queries at its end look for."""
        shape, width = (self._width,), self._width
        fresh = F.layer_norm(x[:images], shape, *self._norm_image)
        _write(slot.images[:, :width], fresh, None if active is None else active[:images])
        queries = F.layer_norm(x[len(x) - self._readouts :], shape, *self._norm_query)
        sought = torch.bmm(queries[:, None], self._score)[:, 0]  # (R, D + 1)
        scores = torch.addmm(sought[:, width:], sought[:, :width], slot.images[:, :width].t())
        scores = scores.view(self._readouts, self._cameras, -1)
        weights = scores.softmax(-1)
        # The logarithm of the sum of exponentials, from the patch that has the most of it.
        level = scores.amax(-1) - weights.amax(-1).log_()
        places = slot.images.view(self._cameras, -1, width + 2)
        seen = torch.bmm(weights.transpose(0, 1), places).transpose(0, 1)  # (R, C, D + 2)
        evidence = torch.cat([seen.reshape(self._readouts, -1), level, queries], dim=-1)
        hidden = torch.baddbmm(self._enter_bias, evidence[:, None], self._enter)
        slot.feature[0] = torch.addmm(self._leave[0], F.gelu(hidden)[:, 0], self._leave[1])


def _norm(norm: nn.LayerNorm) -> tuple[Tensor, Tensor, float]:
    return norm.weight.detach(), norm.bias.detach(), norm.eps


def _product(linear: nn.Module) -> tuple[Tensor, Tensor]:
    """Bias, and the matrix to multiply rows with."""
    linear = cast(nn.Linear, linear)
    return linear.bias.detach(), linear.weight.detach().t()


def _write(keys_values: Tensor, fresh: Tensor, active: Tensor | None) -> None:
    if active is None:
        keys_values.copy_(fresh)
    else:
        keys_values.index_copy_(0, active, fresh)


def _heads(keys_values: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Rows (n, 2 D) as keys and values, each a view of shape (1, heads, n, D / heads)."""
    both = keys_values.view(len(keys_values), 2, heads, -1).permute(1, 2, 0, 3)
    return both[:1], both[1:]
