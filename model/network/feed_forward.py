"""The gated convolutional feed-forward with temporal taps (model/README.md section 7)."""

from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from ..config import TransformerConfig
from ..kernels.operations import PLAIN, Packed
from .execution import Execution, Spans

Convolution = TypeVar("Convolution", bound=nn.Module)


class Pointwise(Packed, nn.Module):
    """A convolution of kernel 1, stored as one and computed as a Linear over the last axis."""

    def __init__(self, inputs: int, outputs: int, spatial: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, *[1] * spatial))
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None

    def unpacked(self) -> Tensor:
        return self.weight.flatten(1)  # (outputs, inputs, 1, ..) -> (outputs, inputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.ops.linear(x, self.matrix, self.bias)

    def reset_parameters(self) -> None:
        nn.init.xavier_uniform_(self.unpacked())
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class Wrapped(nn.Module, Generic[Convolution]):
    """Published names have one level between the feed-forward and its convolutions."""

    def __init__(self, conv: Convolution) -> None:
        super().__init__()
        self.conv = conv


class TemporalTaps(Packed, nn.Conv2d):
    """A convolution over three frames, stored as one and computed as a Linear over their channels, frame by
    frame.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width, width, (3, 1), bias=False)

    def unpacked(self) -> Tensor:
        return self.weight[..., 0].transpose(1, 2).flatten(1)  # (C, C, 3, 1) -> (C, 3 C), tap-major


class FeedForward(nn.Module):
    """Expand, mix neighbours, gate, contract; then the temporal taps."""

    ops = PLAIN

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width, hidden = config.width, config.ffn_width
        self.inverted_conv = Wrapped(Pointwise(width, 2 * hidden, 2))
        self.depth_conv = Wrapped(nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden))
        self.point_conv = Wrapped(Pointwise(hidden, width, 2, bias=False))
        self.t_conv = TemporalTaps(width)

    def forward(
        self, x: Tensor, grid: tuple[int, int], execution: Execution, tail: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Map x (B, T, S, C) and the tail (B, S, C) of the previous chunk, or None, to (output like x, tail
        of the last frame).
        """
        r = self.spatial(x, grid)
        before, after = execution.edges(r, 1, None if tail is None else tail[:, None])
        return self.temporal(r, execution.spans, before, after), r[:, -1]

    def spatial(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Every frame by itself: expand, mix neighbours, gate, contract."""
        expand, mix = self.inverted_conv.conv, self.depth_conv.conv
        hidden = expand.forward_silu(x)  # (B, T, S, 2 hidden)
        return self.point_conv.conv(self.ops.gated_mix(hidden, grid, mix.weight, mix.bias))

    def temporal(self, r: Tensor, spans: Spans, before: Tensor | None, after: Tensor | None) -> Tensor:
        """r_f + W_0 r_{f-1} + W_1 r_f + W_2 r_{f+1}; the right neighbour ends with its span, the left one
        does not.

        r (B, T, S, C); `before` and `after` (B, 1, S, C) lie outside, None for zeros.
        """
        zero = torch.zeros_like(r[:, :1])
        known = torch.cat([zero if before is None else before, r, zero if after is None else after], 1)
        left, right = known[:, :-2], known[:, 2:]
        if len(spans) > 1:
            ended = [part for a, b in spans[:-1] for part in (r[:, a + 1 : b], zero)]
            right = torch.cat([*ended, right[:, spans[-1][0] :]], 1)
        return self.ops.linear_onto(r, torch.cat([left, r, right], -1), self.t_conv.matrix)

    def reset_parameters(self) -> None:
        self.inverted_conv.conv.reset_parameters()
        self.point_conv.conv.reset_parameters()
        # Xavier's rule would count all channels as inputs of a depthwise filter; each output sees nine
        # numbers only.
        self.depth_conv.conv.reset_parameters()
        nn.init.zeros_(self.depth_conv.conv.get_parameter("bias"))
        nn.init.zeros_(self.t_conv.weight)  # like the other temporal filters, the identity at first
