"""The built-in model's prefix for one robot, over all rows or over some.

    patches that are active --embed--> x --+
    words, readout queries ----------------+--> layer: write keys and values of x's rows into the
                                                slot, read all rows of the slot, write x

Rows that are not active keep the keys and values of an earlier frame, at every layer. The whole
prefix is the same code with all rows active, so a cache is compared with the best that is without.

On the processor it runs as a graph, in one call. What may be cancelled runs layer by layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from vla.cache.asked import Beginning
from vla.cache.prefix_graph import describe_prefix, describe_summary
from vla.cache.prefix_layers import Camera, LastLayer, Layer, Readout, Summary, normalised
from vla.graph import Compiled
from vla.models.layers import Block
from vla.models.small import PatchEmbedding, SmallVLA
from vla.policy import Context


@dataclass(frozen=True)
class PromptRows:
    """What an instruction is to the prefix.

    Attributes:
        rows: What the patches' embeddings are added to, then words and readout queries.
            Shape (N + T, D).
        scales: Per camera, what the pixels' product is scaled by. Shape (2 D,).
        shifts: Per camera. Shape (2 D,).
        instruction: Its embedding. Shape (D,).
    """

    rows: Tensor
    scales: tuple[Tensor, ...]
    shifts: tuple[Tensor, ...]
    instruction: Tensor


class Slot:
    """One encoding, in buffers made once, and the views of them that every encoding needs.

    Attributes:
        keys_values: Per layer: keys, then values, of image rows, words and queries.
            Shape (L, 2, heads, N + T, D / heads).
        images: Image rows, normalised, then each patch's place in its picture, 0..1.
            Shape (N, D + 2).
        found: What the readout found, as the summary takes it up. Shape (1, 2 D).
        summary: Of it and of where the chunk begins. Shape (1, D).
        layers: Views of ``keys_values``. Each of shape (2, heads, N + T, D / heads).
        context: Views of it, as in ``Context``. Each of shape (1, 2, heads, N + T, D / heads).
        parts: Views of it: each layer's keys, and values. Shape (1, heads, N + T, D / heads).
        rows: View of ``images`` without the places. Shape (N, D).
        read: Views of ``images``: the rows transposed (D, N), and by camera (C, P, D + 2).
    """

    def __init__(self, keys_values: Tensor, images: Tensor, cameras: int) -> None:
        self.keys_values, self.images = keys_values, images
        _, _, heads, _, each = keys_values.shape
        width = heads * each
        self.found, self.summary = (keys_values.new_empty(1, n * width) for n in (2, 1))
        self.layers = tuple(keys_values)
        self.context = tuple(kv[None] for kv in self.layers)
        self.parts = tuple(kv.split(1) for kv in self.layers)
        self.rows = images[:, :width]
        self.read = (self.rows.t(), images.view(cameras, -1, width + 2))

    def copy_from(self, other: Slot) -> None:
        """Takes everything over."""
        self.keys_values.copy_(other.keys_values)
        self.images.copy_(other.images)
        self.found.copy_(other.found)
        self.summary.copy_(other.summary)

    @property
    def nbytes(self) -> int:
        """Size [bytes]."""
        tensors = (self.keys_values, self.images, self.found, self.summary)
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
                Camera(cast(PatchEmbedding, p), lags)
                for p, lags in zip(model.patches, c.lags, strict=True)
            ]
            *inner, last = cast(list[Block], list(model.prefix))
            self._layers, self._last = [Layer(block) for block in inner], LastLayer(last)
            self._summary = Summary(model)
            taken = self._summary.enter, self._summary.enter_bias
            self._readout = Readout(model.readout, len(c.cameras), *taken)
            self._anywhere = Beginning(
                torch.zeros(1, c.state_dim, device=self.device),
                torch.zeros(1, dtype=torch.int64, device=self.device),
            )
        self._compiled: _Compiled | None = None
        if self.device.type == "cpu":
            self._compiled = self._compile(torch.get_num_threads())

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
        rows = torch.cat([*(c.place for c in self._cameras), words, model.queries + instruction])
        scales = tuple(1 + scale for scale, _ in both)
        return PromptRows(rows, scales, tuple(shift for _, shift in both), instruction)

    def slot(self) -> Slot:
        """Buffers for one encoding; what is in them is arbitrary."""
        c = self.config
        images = torch.empty(self.rows, c.width + 2, device=self.device)
        images[:, c.width :] = self._readout.centres
        shape = (c.depth, 2, c.heads, self.rows + self.texts, c.width // c.heads)
        return Slot(torch.empty(shape, device=self.device), images, len(c.cameras))

    def encode(
        self,
        slot: Slot,
        prompt: PromptRows,
        patches: Sequence[Tensor],
        active: Tensor | None = None,
        old: Slot | None = None,
        begins: Beginning | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> None:
        """Computes rows into a slot.

        Args:
            slot: What is in it does not matter.
            prompt: The instruction's rows, which are always computed.
            patches: Per camera the active patches, uint8. Shape (m, lags * 3 * p * p).
            active: Which rows of the slot they are, then the instruction's. All when None.
                Shape (M + T,), int64.
            old: Another slot, which has the rows that are not active.
            begins: Where the chunk to come does; anywhere when None, until ``begin`` says it.
            cancelled: Asked before each layer.

        Raises:
            Cancelled: By the caller; the slot is half written.
        """
        begins = begins or self._anywhere
        if self._compiled is not None and cancelled is None:
            graph = self._compiled.whole if active is None else self._compiled.some
            given, found = _bound(slot, prompt, patches, active, old)
            graph.run(given | self._beginning(begins), found)
            return
        if old is not None:
            slot.copy_from(old)
        x = prompt.rows.clone() if active is None else prompt.rows.index_select(0, active)
        end = 0
        for camera, pixels, scale, shift in zip(
            self._cameras, patches, prompt.scales, prompt.shifts, strict=True
        ):
            begin, end = end, end + len(pixels)
            if end > begin:
                camera.embed(pixels, scale, shift, x[begin:end])
        for number, layer in enumerate(self._layers):
            if cancelled is not None and cancelled():
                raise Cancelled
            layer.through(x, slot.layers[number], active)
        if cancelled is not None and cancelled():
            raise Cancelled
        rows = normalised(x)
        self._last.write(rows, slot.layers[-1], active)
        chosen = None if active is None else active[:end]
        slot.found.copy_(self._readout.read(rows, slot.rows, slot.read, chosen))
        slot.summary.copy_(self._summary.of(slot.found, *begins))

    def _compile(self, threads: int) -> _Compiled:
        """Now, and not while a robot waits."""
        blocks = cast(list[Block], list(self._model.prefix))[:-1]
        parts = self._cameras, blocks, self._last, self._readout, self._summary
        whole, some = (
            describe_prefix(self.config, *parts, whole=all_rows) for all_rows in (True, False)
        )
        summary = describe_summary(self.config, self._summary)
        return _Compiled(*(graph.compile(threads) for graph in (whole, some, summary)))

    def begin(self, slot: Slot, begins: Beginning) -> None:
        """Has a slot that is wholly computed told of another beginning."""
        if self._compiled is not None:
            given = {"found": slot.found} | self._beginning(begins)
            self._compiled.summary.run(given, {"summary": slot.summary})
        else:
            slot.summary.copy_(self._summary.of(slot.found, *begins))

    def _beginning(self, begins: Beginning) -> dict[str, Tensor]:
        """Inputs of a graph."""
        given = {"state": begins.state}
        return given | {"start": begins.start} if self._summary.starts else given

    def context(self, slot: Slot) -> Context:
        """What the expert reads: views into the slot, good until it is written or begun again."""
        return Context(slot.context, slot.summary, self.rows)

    def seen(self, slot: Slot) -> Tensor:
        """A slot's image rows as the model's own readout sees them. Shape (N, D)."""
        scale, shift = self._readout.seen
        return slot.rows * scale + shift


@dataclass(frozen=True)
class _Compiled:
    """The prefix over all rows and over some, and the summary."""

    whole: Compiled
    some: Compiled
    summary: Compiled


def _bound(
    slot: Slot,
    prompt: PromptRows,
    patches: Sequence[Tensor],
    active: Tensor | None,
    old: Slot | None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Inputs, but for the beginning, and outputs of a graph; arguments as in ``encode``."""
    given = {"prompt": prompt.rows}
    for number, pixels in enumerate(patches):
        given[f"pixels_{number}"] = pixels
        given[f"scale_{number}"] = prompt.scales[number]
        given[f"shift_{number}"] = prompt.shifts[number]
    if active is not None and old is not None:
        given |= {"active": active, "old_images": old.images}
        given |= _parts(old, "old_")
    found = _parts(slot, "")
    found |= {"images": slot.images, "found": slot.found, "summary": slot.summary}
    return given, found


def _parts(slot: Slot, what: str) -> dict[str, Tensor]:
    """A slot's keys and values, by the names of a graph."""
    return {
        f"{what}{name}_{number}": rows
        for number, both in enumerate(slot.parts)
        for name, rows in zip(("keys", "values"), both, strict=True)
    }
