r"""The built-in small flow VLA.

    frames --patches--> image tokens --\
    words  ----------> word tokens -----+-- bidirectional prefix --> keys, values per layer
    readout queries -------------------/            |                       |
                                                    v                       v
    state ------------------------------> summary --+--> action tokens, one flow time each
                                                         (expert) --> clean action --> velocity

Each patch is embedded by itself, so an image token depends on its own pixels and on the
instruction until the first attention. The state is not in the prefix: a still scene gives the same
prefix whatever the arm does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from vla.flow import velocity_from_clean
from vla.models.layers import Block, time_embedding
from vla.policy import Context, PolicyInput


@dataclass(frozen=True)
class SmallVLAConfig:
    """Sizes of the model.

    Attributes:
        cameras: Camera names, in order.
        lags: Frames per camera, in the same order.
        image_size: Height and width of a frame [px].
        patch: Height and width of a patch [px].
        width: D.
        depth: Layers of the prefix and of the expert.
        heads: Attention heads.
        horizon: H.
        state_dim: S.
        action_dim: A.
        words: Vocabulary size, with 0 for padding.
        max_words: W, the longest instruction.
        readouts: R, the things an instruction refers to.
        mean_flow: Whether the expert is conditioned on the length of its jump as well, and so
            knows average velocities.
        max_start: Greatest number of steps by which a chunk may begin after its images.
    """

    cameras: tuple[str, ...]
    lags: tuple[int, ...]
    image_size: int = 96
    patch: int = 12
    width: int = 128
    depth: int = 3
    heads: int = 4
    horizon: int = 32
    state_dim: int = 12
    action_dim: int = 6
    words: int = 32
    max_words: int = 10
    readouts: int = 1
    mean_flow: bool = False
    max_start: int = 0

    @property
    def grid(self) -> int:
        return self.image_size // self.patch


@dataclass(frozen=True)
class Readout:
    """Where the model looks for what the instruction refers to.

    Attributes:
        scores: Logits over the patches of each camera. Shape (B, C, R, P).
        uv: Position in the picture, 0..1 from the top left. Shape (B, C, R, 2).
        feature: Shape (B, R, D).
    """

    scores: Tensor
    uv: Tensor
    feature: Tensor


class SmallVLA(nn.Module):
    """See the module's docstring. A ``FlowPolicy``; a ``MeanFlowPolicy`` where configured."""

    def __init__(self, config: SmallVLAConfig) -> None:
        super().__init__()
        self.config = config
        c, width = config, config.width
        self.patches = nn.ModuleList(
            PatchEmbedding(lags, c.patch, c.grid, width) for lags in c.lags
        )
        self.word = nn.Embedding(c.words, width, padding_idx=0)
        self.word_position = nn.Parameter(torch.randn(c.max_words, width) * 0.02)
        self.instruction = nn.Sequential(
            nn.Linear(c.max_words * width, width), nn.GELU(), nn.Linear(width, width), nn.GELU()
        )
        self.queries = nn.Parameter(torch.randn(c.readouts, width) * 0.02)
        self.prefix = nn.ModuleList(Block(width, c.heads) for _ in range(c.depth))
        self.readout = ReadoutHead(c)

        self.state_in = nn.Sequential(
            nn.Linear(c.state_dim + c.readouts * width, 2 * width),
            nn.GELU(),
            nn.Linear(2 * width, width),
        )
        if c.max_start:
            # Zero: at first a chunk takes the images for the present ones.
            self.start = nn.Embedding(c.max_start + 1, 4 * width)
            nn.init.zeros_(self.start.weight)
        self.action_in = nn.Sequential(
            nn.Linear(c.action_dim + width, width), nn.SiLU(), nn.Linear(width, width)
        )
        if c.mean_flow:
            # Zero: at first every average velocity is the velocity.
            self.jump = nn.Linear(width, width, bias=False)
            nn.init.zeros_(self.jump.weight)
        self.action_position = nn.Parameter(torch.randn(c.horizon, width) * 0.02)
        self.expert = nn.ModuleList(Block(width, c.heads) for _ in range(c.depth))
        self.norm_out = nn.LayerNorm(width)
        self.action_out = nn.Linear(width, c.action_dim)

    @property
    def horizon(self) -> int:
        return self.config.horizon

    @property
    def action_dim(self) -> int:
        return self.config.action_dim

    @property
    def shortest(self) -> float:
        """Shortest period of the features of a flow time."""
        # Features of a field that is differentiated by time must not swing within a step.
        return 0.5 if self.config.mean_flow else 0.004

    def encode(self, inputs: PolicyInput) -> Context:
        return self.encode_with_readout(inputs)[0]

    def encode_with_readout(self, inputs: PolicyInput) -> tuple[Context, Readout]:
        """``encode``, and the readout that training supervises."""
        x, image_rows = self.embed(inputs)
        keys_values: list[Tensor] = []
        for i, block in enumerate(cast(list[Block], self.prefix)):
            rows = block.norm_attention(x)
            keys_values.append(block.keys_values(rows))
            # The expert reads keys and values only: the last block needs no rows of its own.
            if i + 1 < len(self.prefix):
                x = block(x, rows, *keys_values[-1].unbind(1))
        readout = self.readout(x[:, :image_rows], x[:, -self.config.readouts :])
        summary = self.summarise(readout.feature, inputs.state, inputs.start)
        return Context(tuple(keys_values), summary, image_rows), readout

    def embed(self, inputs: PolicyInput) -> tuple[Tensor, int]:
        """Rows before the first layer, and how many are image tokens; they come first.

        Shape (B, N + W + R, D).
        """
        words, instruction = self.instruct(inputs.tokens)
        images = [
            patches(inputs.images[name], instruction)
            for name, patches in zip(self.config.cameras, self.patches, strict=True)
        ]
        queries = self.queries.expand(len(words), -1, -1) + instruction[:, None]
        x = torch.cat([*images, words, queries], dim=1)
        return x, sum(image.shape[1] for image in images)

    def instruct(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids (B, W) to word rows (B, W, D), and the instruction's embedding (B, D)."""
        words = (self.word(tokens) + self.word_position) * (tokens > 0)[..., None]
        return words, self.instruction(words.flatten(1))

    def summarise(self, feature: Tensor, state: Tensor, start: Tensor) -> Tensor:
        """What the images show and where the arm will be when the chunk begins. Shape (B, D).

        Args:
            feature: Of the readout. Shape (B, R, D).
            state: As in ``PolicyInput``. Shape (B, S).
            start: As in ``PolicyInput``. Shape (B,).
        """
        enter, gelu, leave = self.state_in
        hidden = enter(torch.cat([state, feature.flatten(1)], dim=-1))
        if self.config.max_start:
            # Scaled, not only shifted: how far a thing moves on is a product of speed and time.
            scale, shift = self.start(start).chunk(2, dim=-1)
            hidden = hidden * (1 + scale) + shift
        return leave(gelu(hidden))

    def velocity(self, x: Tensor, tau: Tensor, context: Context) -> Tensor:
        return velocity_from_clean(x, self.clean(x, tau, context), tau)

    def average_velocity(self, x: Tensor, start: Tensor, end: Tensor, context: Context) -> Tensor:
        return velocity_from_clean(x, self.clean(x, start, context, start - end), start)

    def clean(self, x: Tensor, tau: Tensor, context: Context, jump: Tensor | None = None) -> Tensor:
        """The clean chunk that the expert expects behind x. Shapes as in ``velocity``.

        Several draws in a row may share a sample's keys and values, of which there are fewer then;
        each draw has its summary.

        With a jump, the point where a straight line through the jump's end would meet t = 0.

        In training an index whose time is 0 is left as it is in x, without its share of the work:
        nobody is to learn from it.

        Args:
            x: Shape (B, H, A).
            tau: Shape (B, H).
            context: From ``encode``.
            jump: Length of each index's jump in flow time; 0 for all when None. Shape (B, H).
        """
        width = self.config.width
        time = time_embedding(tau, width, self.shortest)
        h = self.action_in(torch.cat([x, time], dim=-1)) + self.action_position
        if jump is not None:
            # Minus its value at 0, so that no jump at all is the velocity, whatever is learnt.
            still = time_embedding(jump.new_zeros(()), width, self.shortest)
            h = h + self.jump(time_embedding(jump, width, self.shortest) - still)
        # The summary is a token of its own, and is added to each action token as well.
        h = torch.cat([context.summary[:, None], h + context.summary[:, None]], dim=1)
        blocks = cast(list[Block], self.expert)
        for block, shared in zip(blocks, context.keys_values, strict=True):
            rows = block.norm_attention(h)
            keys, values = behind(shared, block.keys_values(rows)).unbind(1)
            if block is not blocks[-1]:
                h = block(h, rows, keys, values)
        # Nobody reads what becomes of the summary.
        h, read = h[:, 1:], blocks[-1].attend(rows[:, 1:], keys, values)
        if not self.training:
            return self._actions(h, read)
        # Nor what becomes of indices whose time is 0: a sixth of them, as they are drawn.
        noisy = tau > 0
        return x.masked_scatter(noisy[..., None], self._actions(h[noisy], read[noisy]))

    def _actions(self, h: Tensor, read: Tensor) -> Tensor:
        """Tokens and what they read in the last layer, (..., D) each, to actions (..., A)."""
        last = cast(Block, self.expert[-1])
        return self.action_out(self.norm_out(last.feed_forward(h, read)))


def behind(shared: Tensor, own: Tensor) -> Tensor:
    """Rows of their own behind those that several draws of a sample share.

    Shapes (B / n, ..., N, D) and (B, ..., M, D) to (B, ..., N + M, D).
    """
    if len(shared) == len(own):
        return torch.cat([shared, own], dim=-2)
    own = own.unflatten(0, (len(shared), -1))
    shared = shared[:, None].expand(-1, own.shape[1], *shared.shape[1:])
    return torch.cat([shared, own], dim=-2).flatten(0, 1)


class PatchEmbedding(nn.Module):
    """Frames of one camera to image tokens: the newest frame, and its change since each lag."""

    def __init__(self, lags: int, patch: int, grid: int, width: int) -> None:
        super().__init__()
        self.patch = patch
        self.pixels = nn.Linear(lags * 3 * patch * patch, 2 * width)
        self.modulation = nn.Linear(width, 4 * width)
        self.out = nn.Linear(2 * width, width)
        self.position = nn.Parameter(torch.randn(grid * grid, width) * 0.02)

    def forward(self, frames: Tensor, instruction: Tensor) -> Tensor:
        """uint8 frames (B, lags, h, w, 3) and (B, D) to tokens (B, patches, D)."""
        x = frames.float().div(255.0)
        x = torch.cat([x[:, :1] - 0.5, x[:, :1] - x[:, 1:]], dim=1) if x.shape[1] > 1 else x - 0.5
        b, lags, h, w, _ = x.shape
        p = self.patch
        x = x.reshape(b, lags, h // p, p, w // p, p, 3).permute(0, 2, 4, 1, 3, 5, 6)
        x = self.pixels(x.reshape(b, (h // p) * (w // p), -1) * 2.0)
        scale, shift = self.modulation(instruction)[:, None].chunk(2, dim=-1)
        x = nn.functional.gelu(x * (1 + scale) + shift)
        return self.out(x) + self.position


class ReadoutHead(nn.Module):
    """Soft arg-max over patches with an offset inside the patch."""

    centres: Tensor

    def __init__(self, config: SmallVLAConfig) -> None:
        super().__init__()
        self.readouts, self.cameras, self.grid = config.readouts, len(config.cameras), config.grid
        width = config.width
        self.norm_image, self.norm_query = nn.LayerNorm(width), nn.LayerNorm(width)
        self.score = nn.Linear(width, config.readouts * width)
        self.offset = nn.Linear(width, config.readouts * 2)
        self.feature = nn.Sequential(
            nn.Linear(self.cameras * (2 + width + 1) + width, 2 * width),
            nn.GELU(),
            nn.Linear(2 * width, width),
        )
        centre = (torch.arange(self.grid) + 0.5) / self.grid
        centres = torch.stack(torch.meshgrid(centre, centre, indexing="xy"), dim=-1).reshape(-1, 2)
        self.register_buffer("centres", centres, persistent=False)

    def forward(self, images: Tensor, queries: Tensor) -> Readout:
        """Image rows (B, C P, D) and query rows (B, R, D)."""
        return self.look(self.norm_image(images), queries)

    def look(self, images: Tensor, queries: Tensor) -> Readout:
        """``forward`` with image rows that are normalised already."""
        queries = self.norm_query(queries)
        images = images.unflatten(1, (self.cameras, -1))  # (B, C, P, D)
        keys = self.score(images).unflatten(-1, (self.readouts, -1))  # (B, C, P, R, D)
        scores = torch.einsum("bcprd,brd->bcrp", keys, queries) / images.shape[-1] ** 0.5
        weight = scores.softmax(-1)
        offset = self.offset(images).unflatten(-1, (self.readouts, 2))  # (B, C, P, R, 2)
        place = self.centres[:, None] + offset / self.grid
        uv = torch.einsum("bcrp,bcprx->bcrx", weight, place)
        seen = torch.einsum("bcrp,bcpd->bcrd", weight, images)
        level = scores.logsumexp(-1, keepdim=True) * 0.1  # low when it is nowhere in the picture
        evidence = torch.cat([uv * 4 - 2, seen, level], dim=-1).transpose(1, 2).flatten(2)
        return Readout(scores, uv, self.feature(torch.cat([evidence, queries], dim=-1)))
