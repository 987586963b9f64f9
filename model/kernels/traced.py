"""Operations for torch.compile: small products and depthwise convolutions as sums, which it joins with what
stands around them.

Otherwise they would go to a library, one call and one copy of the activations each. The rest of the table is
the reference.
"""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ..network.execution import Spans
from ..network.rope import rotate
from .operations import PLAIN


def gated_mix(x: Tensor, grid: tuple[int, int], weight: Tensor, bias: Tensor) -> Tensor:
    """`operations.gated_mix`."""
    height, width = grid
    images = F.pad(x.unflatten(2, grid), (0, 0, 1, 1, 1, 1))  # (B, T, H + 2, W + 2, E)
    taps = weight.to(x.dtype)
    mixed = bias.to(x.dtype)
    for row in range(3):
        for column in range(3):
            part = images[:, :, row : row + height, column : column + width]
            mixed = mixed + part * taps[:, 0, row, column]
    a, b = mixed.flatten(2, 3).chunk(2, -1)
    return a * F.silu(b)


def short_conv(
    x: Tensor, weight: Tensor, spans: Spans, past: Tensor | None, future: Tensor | None = None
) -> Tensor:
    """`gated_delta.short_conv`."""
    reach = weight.shape[-1] - 1
    taps = F.pad(weight.to(x.dtype), (0, reach), mode="reflect")  # (C, 1, 7)
    zero = x.new_zeros(x.shape[0], reach, *x.shape[2:])
    known = torch.cat([zero if past is None else past, x, zero if future is None else future], 1)
    parts = []
    for begin, end in spans:
        seen = known[:, begin : end + reach]
        after = known[:, end + reach : end + 2 * reach] if end == spans[-1][1] else zero
        span = torch.cat([seen, after], 1)
        parts.append(sum(span[:, j : j + end - begin] * taps[:, 0, j] for j in range(2 * reach + 1)))
    return torch.cat(parts, 1) if len(parts) > 1 else parts[0]


def move(x: Tensor, matrices: Tensor, table: Tensor, sign: float = 1.0) -> Tensor:
    """`rays.move`."""
    half = x.shape[-1] // 2
    groups = x[..., :half].unflatten(-1, (-1, 4))  # (B, T, S, h, D/8, 4)
    moved = (matrices[:, :, :, None, None].to(x.dtype) * groups[..., None, :]).sum(-1)
    return torch.cat([moved.flatten(-2), rotate(x[..., half:], table, sign)], -1)


TRACED = replace(PLAIN, gated_mix=gated_mix, short_conv=short_conv, move=move)
