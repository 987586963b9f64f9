"""The operations that a network is made of, as a table: modules call them through it and never ask which
implementation they got.

Activations have the dtype in which the network computes; weights may be wider (training in bfloat16 keeps
them in float32). Letters: B batch, T latent frames, S tokens per frame, N tokens, L keys, h heads, D head
size, C width, E channels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..network.gated_delta import delta_rule, short_conv
from ..network.rays import mean_growth, move
from ..network.rope import rotate


@dataclass(frozen=True)
class Operations:
    """One implementation of everything that the blocks compute; `PLAIN` has the reference of each, with its
    documentation.
    """

    pack: Callable[[Tensor], Tensor]
    linear: Callable[..., Tensor]
    silu_linear: Callable[..., Tensor]
    linear_onto: Callable[..., Tensor]
    rms_norm: Callable[..., Tensor]
    modulate: Callable[..., Tensor]
    gated_sum: Callable[..., Tensor]
    gated_mix: Callable[..., Tensor]
    rotate: Callable[..., Tensor]
    move: Callable[..., Tensor]
    mean_growth: Callable[..., Tensor]
    short_conv: Callable[..., Tensor]
    delta_rule: Callable[..., tuple[Tensor, Tensor, Tensor | None]]
    attend: Callable[..., Tensor]


def pack(weight: Tensor) -> Tensor:
    """A weight (outputs, inputs) that stays as it is, in the layout that `linear` multiplies fastest with."""
    return weight


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """X (..., inputs), weight (outputs, inputs), bias (outputs) -> (..., outputs), in the dtype of x."""
    return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


def silu_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`linear`, then silu."""
    return F.silu(linear(x, weight, bias))


def linear_onto(base: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Base (..., outputs) plus `linear` of x."""
    return base + linear(x, weight, bias)


def rms_norm(x: Tensor, weight: Tensor, eps: float, relu: bool = False, scale: float = 1.0) -> Tensor:
    """X (..., C) over its root mean square, times weight (C); then relu if asked; then times `scale`."""
    out = F.rms_norm(x, x.shape[-1:], weight.to(x.dtype), eps)
    out = F.relu(out) if relu else out
    return out if scale == 1 else out * scale


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm of x (B, T, S, C) without affine part, then the frame's own scale and shift (B, T, 1, C)."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale).to(x.dtype)


def gated_sum(gate: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """silu(gate) * (a + b), all (B, T, S, C), in float32 at least."""
    wide = torch.promote_types(gate.dtype, torch.float32)
    return (F.silu(gate).to(wide) * (a.to(wide) + b.to(wide))).to(gate.dtype)


def gated_mix(x: Tensor, grid: tuple[int, int], weight: Tensor, bias: Tensor) -> Tensor:
    """Depthwise 3 x 3 convolution of every frame of x (B, T, S, E), then the first half of the channels times
    silu of the second.

    weight (E, 1, 3, 3), bias (E) -> (B, T, S, E/2).
    """
    # (B, T, S, E) -> (B T, E, H, W) in channels-last memory: nothing is copied
    images = x.flatten(0, 1).unflatten(1, grid).permute(0, 3, 1, 2)
    mixed = F.conv2d(images, weight.to(x.dtype), bias.to(x.dtype), padding=1, groups=x.shape[-1])
    a, b = mixed.permute(0, 2, 3, 1).reshape(x.shape).chunk(2, -1)
    return a * F.silu(b)


def attend(
    q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], scale: float, mask: Tensor | None = None
) -> Tensor:
    """Softmax attention to keys and values that may lie in several pieces, one after the other.

    q (B, N, h, D), pieces (B, h, L, D), mask (B, 1, 1, all L) with False for padding -> (B, N, h, D).
    """
    k, v = (x[0] if len(x) == 1 else torch.cat(list(x), 2) for x in (keys, values))
    return F.scaled_dot_product_attention(q.transpose(1, 2), k, v, attn_mask=mask, scale=scale).transpose(
        1, 2
    )


PLAIN = Operations(
    pack=pack,
    linear=linear,
    silu_linear=silu_linear,
    linear_onto=linear_onto,
    rms_norm=rms_norm,
    modulate=modulate,
    gated_sum=gated_sum,
    gated_mix=gated_mix,
    rotate=rotate,
    move=move,
    mean_growth=mean_growth,
    short_conv=short_conv,
    delta_rule=delta_rule,
    attend=attend,
)


@runtime_checkable
class Computes(Protocol):
    """A module that computes by the table."""

    ops: Operations


class Packed:
    """Base of modules that multiply with a matrix made of their `weight`: a packed copy, used as long as the
    weight is what it was.
    """

    ops = PLAIN
    weight: Tensor
    bias: nn.Parameter | None
    packed: tuple[Tensor, int, int] | None = None

    def unpacked(self) -> Tensor:
        """The matrix (outputs, inputs), as it is stored."""
        return self.weight

    def pack(self) -> None:
        """Pack the matrix if the weight is frozen; forget the packed one otherwise."""
        frozen = not self.weight.requires_grad
        self.packed = (
            (self.ops.pack(self.unpacked()), self.weight._version, self.weight.data_ptr()) if frozen else None
        )

    @property
    def matrix(self) -> Tensor:
        """The operand of `linear`."""
        if self.packed is not None and self.packed[1:] == (self.weight._version, self.weight.data_ptr()):
            return self.packed[0]
        return self.unpacked()

    def forward_silu(self, x: Tensor) -> Tensor:
        """Silu of the layer's output, for a layer with a bias."""
        return self.ops.silu_linear(x, self.matrix, self.bias)

    def forward_onto(self, base: Tensor, x: Tensor) -> Tensor:
        """`base` plus the layer's output."""
        return self.ops.linear_onto(base, x, self.matrix, self.bias)


class Linear(Packed, nn.Linear):
    """A linear layer that computes by the table."""

    def forward(self, input: Tensor) -> Tensor:  # the name is torch's
        return self.ops.linear(input, self.matrix, self.bias)


class RMSNorm(nn.RMSNorm):
    """An RMS norm that computes by the table."""

    ops = PLAIN

    def forward(self, x: Tensor, relu: bool = False, scale: float = 1.0) -> Tensor:
        return self.ops.rms_norm(x, self.weight, self.eps, relu, scale)
