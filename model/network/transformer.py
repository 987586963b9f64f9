"""The network: embed, blocks, head; one parameter set, three execution rules (paper section 3;
model/README.md sections 3 to 7).

`forward` runs a whole clip, bidirectional or chunk-causal. `stream` and `commit` run one chunk on top of a
carried state: the first reads it to predict a velocity, the second absorbs the finished chunk and returns the
next state. What differs between the rules is only `spans`, the horizons within which frames see their future,
and whether there is a past.

Letters: B batch, T latent frames, H x W latent grid, S = H * W tokens per frame, L text tokens, h heads, D
head size, C width.
"""

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import TransformerConfig
from ..contexts import CameraContext, TextContext
from ..kernels.operations import PLAIN, Computes, Linear, Operations, Packed, RMSNorm
from ..kernels.quantized import wide_activations
from ..kernels.select import SMALL_WIDTH, select_operations
from ..state import BlockState, TransformerState
from .block import Block
from .execution import Execution, Rule, Segment, whole_clip
from .execution import chunk_sizes as chunk_sizes
from .execution import chunk_spans as chunk_spans
from .feed_forward import Pointwise
from .rays import ray_matrices
from .rope import camera_angles, rope_angles, rope_table

PLUCKER_CHANNELS = 48


class Transformer(nn.Module):
    """SANA-WM's diffusion transformer. Parameters carry the names and shapes of the published checkpoints."""

    blocks: Sequence[Block]
    pos_embed: Tensor

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.t_embedder = TimeEmbedding(width)
        self.t_block = nn.Sequential(nn.SiLU(), Linear(width, 6 * width))
        self.x_embedder = PatchEmbedding(config.in_channels, width)
        self.y_embedder = CaptionEmbedding(config)
        self.attention_y_norm = RMSNorm(width, eps=1e-5)
        self.plucker_embedder = PatchEmbedding(PLUCKER_CHANNELS, width)
        self.raymap_embedder = PatchEmbedding(3, width)  # in every published file, read by none of the rules
        self.blocks = cast(Sequence[Block], nn.ModuleList(Block(config, i) for i in range(config.depth)))
        self.final_layer = FinalLayer(width, config.in_channels)
        self.register_buffer(
            "pos_embed", torch.zeros(1, config.input_size**2, width)
        )  # rotary positions replaced it
        if self.pos_embed.device.type != "meta":
            self.reset_parameters()
        self.compute_dtype: torch.dtype | None = None
        self.wide_at: frozenset[int] = (
            frozenset()
        )  # timesteps at which quantised layers take activations as they are

    def prepare(
        self, compute_dtype: torch.dtype | None = None, operations: Operations | None = None
    ) -> "Transformer":
        """Choose the operations for the device that the weights are on. Call it again after they have moved.

        Args:
            compute_dtype: of activations, None for that of the weights. Training in bfloat16 keeps float32
                weights.
            operations: these in place of the fastest for the device.
        """
        self.compute_dtype = compute_dtype
        sizes = self.config.width, self.config.head_dim, self.config.ffn_width
        ops = operations or select_operations(*sizes, self.pos_embed.device, self.dtype)
        if not self.training:
            for block in self.blocks:
                # as the feed-forward multiplies with it, where it is not packed
                block.mlp.t_conv.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # torch declares no memory_format
        for module in self.modules():
            if isinstance(module, Computes):
                module.ops = ops
            if (
                isinstance(module, Packed) and self.config.width <= SMALL_WIDTH
            ):  # a second copy of the weights
                module.pack()
        return self

    # ---- contexts: what depends on neither latents nor noise level

    def text_context(self, text: Tensor, mask: Tensor) -> TextContext:
        """Keys and values of every block from text (B, L, text_width) and mask (B, L) with 0 or False for
        padding.
        """
        y = self.attention_y_norm(self.y_embedder.y_proj(text.to(self.dtype)))
        keys, values = zip(*(block.text_context(y) for block in self.blocks), strict=True)
        return TextContext(keys, values, mask.bool()[:, None, None])

    def camera_context(self, camera: Tensor, plucker: Tensor, first_frame: int | Tensor = 0) -> CameraContext:
        """Computes what depends on cameras and positions: camera (B, T, 20) and plucker (B, 48, T, H, W),
        both from camera_inputs.py.

        `first_frame` is the absolute index of the first latent frame, one number or (B,) int64. Geometry is
        computed in float32 at least. ValueError if the batch sizes do not fit.
        """
        batch, frames, (height, width) = camera.shape[0], camera.shape[1], plucker.shape[-2:]
        head_dim, dtype = self.config.head_dim, self.dtype
        precise = torch.promote_types(dtype, torch.float32)
        rays, rays_inv = ray_matrices(camera.to(precise), height, width)
        start = torch.as_tensor(first_frame, device=camera.device).reshape(-1)
        if start.numel() not in (1, batch):
            raise ValueError(f"first_frame has {start.numel()} entries for a batch of {batch}")
        angles = rope_angles(start, frames, height, width, head_dim)
        rows = plucker.to(dtype).flatten(3).permute(0, 2, 3, 1)  # (B, 48, T, H, W) -> (B, T, S, 48)
        embed = self.plucker_embedder.proj
        bias = cast(Tensor, embed.bias)  # every embedder has one
        return CameraContext(
            rays=rays,
            rays_mT=rays.mT.contiguous(),
            rays_inv=rays_inv,
            rope=rope_table(angles, precise).expand(batch, -1, -1, -1, -1),
            rope_cam=rope_table(camera_angles(angles, head_dim), precise).expand(batch, -1, -1, -1, -1),
            plucker=tuple(block.ray_context(rows, embed.unpacked(), bias) for block in self.blocks),
            grid=(height, width),
        )

    # ---- execution rules

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        text: TextContext,
        cameras: CameraContext,
        rule: Rule = "bidirectional",
        segment: Segment | None = None,
    ) -> Tensor:
        """Velocity (noise minus clean) of a whole clip, same shape as x.

        x (B, C_in, T, H, W); timestep (B, T) in 0..1000, cut to whole numbers, 0 for clean frames. Under
        "bidirectional" all frames see each other; under "chunk_causal" a frame sees its chunk and everything
        before. With a `segment` these are the frames that this rank holds of a longer clip; the `first_frame`
        of `cameras` must then be `segment.first`.
        """
        execution = whole_clip(rule, x.shape[2], self.config.chunk, segment)
        tokens, embedding, _ = self._run(x, timestep, text, cameras, execution, None)
        return self.final_layer(tokens, embedding, cameras.grid)

    def stream(
        self,
        x: Tensor,
        timestep: Tensor,
        text: TextContext,
        cameras: CameraContext,
        state: TransformerState | None,
    ) -> Tensor:
        """Velocity of one chunk x (B, C_in, T, H, W) that follows `state` (None: it opens the session). Only
        reads.

        The `first_frame` of `cameras` must be `state.next_frame`.
        """
        execution = Execution(((0, x.shape[2]),), streaming=True)
        tokens, embedding, _ = self._run(x, timestep, text, cameras, execution, state)
        return self.final_layer(tokens, embedding, cameras.grid)

    def commit(
        self, x: Tensor, text: TextContext, cameras: CameraContext, state: TransformerState | None
    ) -> TransformerState:
        """The clean pass: the state after the finished chunk x (B, C_in, T, H, W), run at timestep 0."""
        batch, _, frames = x.shape[:3]
        clean = torch.zeros(batch, frames, dtype=torch.float32, device=x.device)
        execution = Execution(((0, frames),), streaming=True, keep=True)
        _, _, blocks = self._run(x, clean, text, cameras, execution, state)
        begin = torch.zeros(batch, dtype=torch.int64, device=x.device) if state is None else state.next_frame
        return TransformerState(blocks, begin + frames)

    def _run(
        self,
        x: Tensor,
        timestep: Tensor,
        text: TextContext,
        cameras: CameraContext,
        execution: Execution,
        state: TransformerState | None,
    ) -> tuple[Tensor, Tensor, tuple[BlockState, ...]]:
        if tuple(x.shape[-2:]) != cameras.grid or x.shape[2] != cameras.rays.shape[1]:
            given, wanted = (x.shape[2], *x.shape[-2:]), (cameras.rays.shape[1], *cameras.grid)
            raise ValueError(f"the latent has (T, H, W) = {given}, the cameras have {wanted}")
        with wide_activations(bool(self.wide_at) and int(timestep.max()) in self.wide_at):
            return self._run_blocks(x, self.t_embedder(timestep), text, cameras, execution, state)

    def _run_blocks(
        self,
        x: Tensor,
        embedding: Tensor,  # (B, T, C)
        text: TextContext,
        cameras: CameraContext,
        execution: Execution,
        state: TransformerState | None,
    ) -> tuple[Tensor, Tensor, tuple[BlockState, ...]]:
        modulation = self.t_block(embedding).unflatten(-1, (6, -1))  # (B, T, 6, C)
        tokens = self.x_embedder(
            x.to(self.dtype).flatten(3).permute(0, 2, 3, 1)
        )  # (B, C_in, T, H, W) -> (B, T, S, C)
        kept = []
        for i, block in enumerate(self.blocks):
            past = state.blocks[i] if state is not None else None
            tokens, block_state = block(tokens, modulation, text, cameras, execution, past)
            kept.append(block_state)
        return tokens, embedding, tuple(kept)

    # ---- weights

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of activations."""
        return self.compute_dtype or self.final_layer.linear.weight.dtype

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Values that training from scratch starts from (model/README.md section 11.2)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, Pointwise):
                module.reset_parameters()
        mlp, projection = self.t_embedder.mlp, self.y_embedder.y_proj
        for linear in (mlp[0], mlp[2], self.t_block[1], projection.fc1, projection.fc2):
            nn.init.normal_(linear.get_parameter("weight"), std=0.02)
        nn.init.constant_(self.attention_y_norm.weight, 0.01)
        for table in (
            self.final_layer.scale_shift_table,
            *(block.scale_shift_table for block in self.blocks),
        ):
            nn.init.normal_(table, std=self.config.width**-0.5)
        for block in self.blocks:
            block.attn.reset_parameters()
            block.mlp.reset_parameters()
            # Zero here only: were the embedder zero too, as in the recipe that starts from a released
            # checkpoint, neither factor of the product would ever get a gradient.
            nn.init.zeros_(block.plucker_proj.weight)
            nn.init.zeros_(block.plucker_proj.get_parameter("bias"))


class PatchEmbedding(nn.Module):
    """One latent cell to one token: (..., inputs) -> (..., C)."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.proj = Pointwise(inputs, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class TimeEmbedding(nn.Module):
    """Timesteps (B, T) to (B, T, C): 128 cosines and 128 sines, then a two-layer network."""

    FEATURES = 256

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(Linear(self.FEATURES, width), nn.SiLU(), Linear(width, width))

    def forward(self, timestep: Tensor) -> Tensor:
        half = self.FEATURES // 2
        # The official network sees whole numbers only; multi-step samplers land between them.
        t = timestep.trunc().float()
        rates = torch.exp(
            -math.log(10000.0) / half * torch.arange(half, dtype=torch.float32, device=t.device)
        )
        angles = t[..., None] * rates
        first = cast(Linear, self.mlp[0])
        return self.mlp(torch.cat([angles.cos(), angles.sin()], -1).to(first.weight.dtype))


class CaptionProjection(nn.Module):
    def __init__(self, text_width: int, width: int) -> None:
        super().__init__()
        self.fc1 = Linear(text_width, width)
        self.fc2 = Linear(width, width)

    def forward(self, text: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(text), approximate="tanh"))


class CaptionEmbedding(nn.Module):
    """Text features (B, L, text_width) to (B, L, C) by `y_proj`."""

    y_embedding: Tensor

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.y_proj = CaptionProjection(config.text_width, config.width)
        self.register_buffer(
            "y_embedding", torch.zeros(config.text_tokens, config.text_width)
        )  # a null caption, unused


class FinalLayer(nn.Module):
    ops = PLAIN

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.empty(2, width))
        self.linear = Linear(width, outputs)

    def forward(self, tokens: Tensor, embedding: Tensor, grid: tuple[int, int]) -> Tensor:
        """Head: tokens (B, T, S, C), time embedding (B, T, C) -> velocity (B, C_in, T, H, W)."""
        shift, scale = (self.scale_shift_table + embedding[:, :, None])[:, :, :, None].unbind(2)
        out = self.linear(self.ops.modulate(tokens, shift, scale))  # (B, T, S, C_in)
        return out.permute(0, 3, 1, 2).unflatten(-1, grid)
