"""The refiner's network: the video half of LTX-2's transformer, under the names of its published files
(model/README.md section 10.3).

It reads noisy latents and a prompt, and attends to keys and values that earlier passes have left. Cameras are
no input: what moves how is in the latents. The layers of sound, a third of the published numbers, are neither
built nor read.

Letters: B batch, n latent frames, S tokens per latent frame, N = n S tokens, L text tokens, h heads, D head
size, C width.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..state import KeysValues

TIME_FEATURES = 256
MASKED = -10000.0  # added to the scores of text tokens that are none
RopeType = Literal["interleaved", "split"]


@dataclass(frozen=True)
class RefinerConfig:
    """Sizes of a refiner's network and how it is run; {} is the published size.

    The first group has the names of diffusers' `LTX2VideoTransformer3DModel`, whose `config.json` stands
    beside the weights. The second is not in that file.

    Attributes:
        sigmas: noise levels of the sampler, from the one that stage 1 is noised to down to 0.
        block: latent frames that are refined together.
        window: latent frames that are seen at most: the sink, which is the first of the session, and so many
            refined ones.
        fps: frames per second that times are counted in.
    """

    in_channels: int = 128
    num_attention_heads: int = 32
    attention_head_dim: int = 128
    num_layers: int = 48
    caption_channels: int = 3840
    norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_type: RopeType = "interleaved"
    vae_scale_factors: tuple[int, int, int] = (8, 32, 32)
    pos_embed_max_pos: int = 20
    base_height: int = 2048
    base_width: int = 2048
    causal_offset: int = 1
    timestep_scale_multiplier: float = 1000

    sigmas: tuple[float, ...] = (0.909375, 0.725, 0.421875, 0.0)
    block: int = 3
    window: int = 11
    fps: float = 16

    def __post_init__(self) -> None:
        for name in ("in_channels", "num_attention_heads", "attention_head_dim", "num_layers", "block"):
            if getattr(self, name) < 1:
                raise ValueError(f"got {name} {getattr(self, name)}; wanted at least 1")
        if self.attention_head_dim % 2:
            raise ValueError(f"got attention_head_dim {self.attention_head_dim}; wanted an even number")
        if self.rope_type not in ("interleaved", "split"):
            raise ValueError(f"got rope_type {self.rope_type!r}; wanted 'interleaved' or 'split'")
        if self.window < 1:
            raise ValueError(f"got window {self.window}; wanted the sink, 1, and refined frames")
        falls = all(a > b for a, b in zip(self.sigmas, self.sigmas[1:], strict=False))
        if len(self.sigmas) < 2 or not falls or self.sigmas[-1] != 0 or not 0 < self.sigmas[0] <= 1:
            raise ValueError(f"got sigmas {self.sigmas}; wanted levels that fall from 1 or less to 0")

    @property
    def width(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    @property
    def start_sigma(self) -> float:
        """The level that stage 1's latents are noised to."""
        return self.sigmas[0]

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> "RefinerConfig":
        """Of the `config.json` beside the weights.

        Raises:
            ValueError: settings of another LTX-2 that this network is not, or that do not fit together.
        """
        for name, wanted in _FIXED.items():
            if settings.get(name, wanted) != wanted:
                raise ValueError(f"got {name} {settings[name]!r}; wanted {wanted!r}, as LTX-2.0 has it")
        width = settings.get("num_attention_heads", cls.num_attention_heads) * settings.get(
            "attention_head_dim", cls.attention_head_dim
        )
        alike = {"out_channels": settings.get("in_channels", cls.in_channels), "cross_attention_dim": width}
        for name, same in alike.items():
            if settings.get(name) not in (None, same):
                raise ValueError(f"got {name} {settings[name]}; wanted {same}, or none")
        known = {field.name for field in fields(cls)}
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in settings.items()
            if name in known
        }
        return cls(**values)


_FIXED = {
    "patch_size": 1,
    "patch_size_t": 1,
    "gated_attn": False,
    "cross_attn_mod": False,
    "qk_norm": "rms_norm_across_heads",
    "norm_elementwise_affine": False,
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "attention_out_bias": True,
    "use_prompt_embeddings": True,
}
"""What LTX-2.0 has and this network is; 2.3 and 2.5 differ."""


class Rotation(NamedTuple):
    """Cosines and sines ([B,] h, N, D/2) of the places of N tokens, alike in all rows or not."""

    cos: Tensor
    sin: Tensor

    def tokens(self, begin: int, end: int | None = None) -> "Rotation":
        """Those of some of the tokens."""
        return Rotation(self.cos[..., begin:end, :], self.sin[..., begin:end, :])


class RefinerNetwork(nn.Module):
    """Velocities of the latents of a few frames, given a prompt and what earlier passes have left."""

    def __init__(self, config: RefinerConfig):
        super().__init__()
        self.config, width = config, config.width
        self.proj_in = nn.Linear(config.in_channels, width)
        self.caption_projection = _Captions(config.caption_channels, width)
        self.time_embed = _TimeEmbedding(width)
        self.transformer_blocks: Any = nn.ModuleList(_Block(config) for _ in range(config.num_layers))
        self.scale_shift_table = nn.Parameter(torch.randn(2, width) / width**0.5)
        self.proj_out = nn.Linear(width, config.in_channels)

    def forward(
        self,
        latents: Tensor,
        sigma: Tensor,
        text: Tensor,
        mask: Tensor,
        window: Rotation,
        past: Sequence[KeysValues] | None = None,
    ) -> tuple[Tensor, tuple[KeysValues, ...]]:
        """One pass.

        Args:
            latents: (B, c, n, H, W) at the noise level `sigma`.
            sigma: (B,) of each row; 0 is clean.
            text: (B, L, C) as `read_text` made it.
            mask: (B, L) bool, True where there is a token.
            window: rotation of the tokens of `past` and then of `latents`.
            past: what earlier passes have left and every block sees beside its own; one per block.

        Returns:
            the velocity like `latents`, float32, and what the blocks leave.
        """
        _, _, frames, height, width = latents.shape
        x = self.proj_in(latents.to(self.proj_in.weight.dtype).flatten(2).mT)  # (B, N, C)
        modulation, embedded = self.time_embed(self.config.timestep_scale_multiplier * sigma, x.dtype)
        bias = torch.where(mask, 0.0, MASKED)[:, None, None].to(x.dtype)
        left = []
        for i, block in enumerate(self.transformer_blocks):
            x, keys_values = block(x, modulation, text, bias, window, None if past is None else past[i])
            left.append(keys_values)
        shift, scale = (self.scale_shift_table + embedded[:, None]).unbind(1)  # (B, C) each
        x = F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None]
        velocity = self.proj_out(x).mT.unflatten(2, (frames, height, width))
        return velocity.float(), tuple(left)

    def read_text(self, features: Tensor) -> Tensor:
        """Features of a prompt (B, L, W) as the blocks read them, (B, L, C)."""
        return self.caption_projection(features.to(self.proj_in.weight.dtype))

    def rotate_to(self, places: Sequence[int], grid: tuple[int, int], device: torch.device) -> Rotation:
        """Rotation of all tokens of latent frames at `places`, the index of each in its session."""
        return _rotation(self.config, tuple(places), grid, device)


class _Block(nn.Module):
    """Self-attention, attention to the prompt, feed-forward; the first and the last modulated by the noise
    level.
    """

    def __init__(self, config: RefinerConfig):
        super().__init__()
        width = config.width
        self.attn1, self.attn2 = _Attention(config), _Attention(config)
        self.ff = _FeedForward(width)
        self.scale_shift_table = nn.Parameter(torch.randn(6, width) / width**0.5)
        self.eps = config.norm_eps

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        text: Tensor,
        bias: Tensor,
        window: Rotation,
        past: KeysValues | None,
    ) -> tuple[Tensor, KeysValues]:
        table = (self.scale_shift_table + modulation)[:, :, None]  # (B, 6, 1, C)
        shift, scale, gate, shift_ff, scale_ff, gate_ff = table.unbind(1)
        attended, left = self.attn1.to_itself(self._norm(x) * (1 + scale) + shift, window, past)
        x = x + attended * gate
        x = x + self.attn2.to_text(self._norm(x), text, bias)
        return x + self.ff(self._norm(x) * (1 + scale_ff) + shift_ff) * gate_ff, left

    def _norm(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], eps=self.eps)


class _Attention(nn.Module):
    def __init__(self, config: RefinerConfig):
        super().__init__()
        width = config.width
        self.heads = config.num_attention_heads
        self.rope_type: RopeType = config.rope_type
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.norm_q, self.norm_k = (nn.RMSNorm(width, eps=config.norm_eps) for _ in range(2))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def to_itself(self, x: Tensor, window: Rotation, past: KeysValues | None) -> tuple[Tensor, KeysValues]:
        """The tokens to each other, and to what came before."""
        left = KeysValues(self._split(self.norm_k(self.to_k(x))), self._split(self.to_v(x)))
        key, value = left.key, left.value
        if past is not None:
            key, value = torch.cat([past.key, key], 2), torch.cat([past.value, value], 2)
        key, query = rotate(key, window, self.rope_type), self._split(self.norm_q(self.to_q(x)))
        query = rotate(query, window.tokens(-x.shape[1]), self.rope_type)
        return self._joined(F.scaled_dot_product_attention(query, key, value)), left

    def to_text(self, x: Tensor, text: Tensor, bias: Tensor) -> Tensor:
        query = self._split(self.norm_q(self.to_q(x)))
        key, value = self._split(self.norm_k(self.to_k(text))), self._split(self.to_v(text))
        return self._joined(F.scaled_dot_product_attention(query, key, value, bias))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, h, N, D)

    def _joined(self, x: Tensor) -> Tensor:
        return self.to_out[0](x.transpose(1, 2).flatten(2))


class _FeedForward(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        wider = _Gelu(width, 4 * width)
        self.net = nn.Sequential(
            wider, nn.Identity(), nn.Linear(4 * width, width)
        )  # published: net.0.proj, net.2

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class _Gelu(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.proj = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x), approximate="tanh")


class _Captions(nn.Module):
    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(inputs, width), nn.Linear(width, width)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear_2(F.gelu(self.linear_1(features), approximate="tanh"))


class _TimeEmbedding(nn.Module):
    """Timesteps (B,) as modulation (B, 6, C) and embedding (B, C)."""

    def __init__(self, width: int):
        super().__init__()
        self.emb = _Sinusoids(width)
        self.linear = nn.Linear(width, 6 * width)

    def forward(self, timestep: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        embedded = self.emb(timestep, dtype)
        return self.linear(F.silu(embedded)).unflatten(1, (6, -1)), embedded


class _Sinusoids(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.timestep_embedder = _Embedder(width)

    def forward(self, timestep: Tensor, dtype: torch.dtype) -> Tensor:
        half = TIME_FEATURES // 2
        rates = torch.exp(torch.arange(half, device=timestep.device) * (-math.log(10000) / half))
        angles = timestep.float()[:, None] * rates
        return self.timestep_embedder(torch.cat([angles.cos(), angles.sin()], 1).to(dtype))


class _Embedder(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(TIME_FEATURES, width), nn.Linear(width, width)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(features)))


def rotate(x: Tensor, rotation: Rotation, kind: RopeType) -> Tensor:
    """Turns pairs of the channels of x (B, h, N, D) by the angles of their tokens' places, in float32.

    Pairs are neighbours ("interleaved") or lie half a head apart ("split").
    """
    axis = -1 if kind == "interleaved" else -2
    first, second = x.float().unflatten(-1, (-1, 2) if axis == -1 else (2, -1)).unbind(axis)
    cos, sin = rotation.cos, rotation.sin
    turned = torch.stack([first * cos - second * sin, second * cos + first * sin], axis)
    return turned.flatten(-2).to(x.dtype)


@lru_cache(maxsize=64)
def _rotation(
    config: RefinerConfig, places: tuple[int, ...], grid: tuple[int, int], device: torch.device
) -> Rotation:
    """A place is the middle of what a token covers: seconds, and pixels down and right, as shares of the
    largest that the base model was made for. In float32 throughout, as published.
    """
    of_time, of_rows, of_columns = config.vae_scale_factors
    starts = torch.meshgrid(
        *(torch.tensor(axis, dtype=torch.float32) for axis in (places, range(grid[0]), range(grid[1]))),
        indexing="ij",
    )
    time, row, column = (torch.stack([start, start + 1]).flatten(1) for start in starts)  # (2, N) from, to
    # the first latent frame holds one frame where others hold eight: what they cover begins before it
    time = (of_time * time + config.causal_offset - of_time).clamp(min=0) / config.fps
    middles = [time.mean(0), (of_rows * row).mean(0), (of_columns * column).mean(0)]
    largest = (config.pos_embed_max_pos, config.base_height, config.base_width)
    shares = torch.stack([middle / size for middle, size in zip(middles, largest, strict=True)], 1)  # (N, 3)

    per_axis = config.width // 6
    powers = torch.linspace(0, 1, per_axis, dtype=torch.float64)
    rates = (config.rope_theta**powers * torch.pi / 2).float()
    angles = ((2 * shares - 1)[:, None] * rates[:, None]).flatten(1)  # (N, 3 C/6), axes fastest
    angles = F.pad(angles, (config.width // 2 - angles.shape[1], 0))  # the first channels stay as they are
    angles = angles.unflatten(1, (config.num_attention_heads, -1)).transpose(0, 1).to(device)  # (h, N, D/2)
    return Rotation(angles.cos(), angles.sin())
