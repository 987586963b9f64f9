"""Rotary positions and the move between ray frames. Both are linear, and the gradient is the same operation
with the transposed map.
"""

from typing import Any

import torch
from torch import Tensor

from .library import function
from .norms import rows_of


def rotate(x: Tensor, table: Tensor, sign: float = 1.0) -> Tensor:
    """Equals `rope.rotate`."""
    return move(x, None, table, sign)


def move(x: Tensor, matrices: Tensor | None, table: Tensor, sign: float = 1.0) -> Tensor:
    """Equals `rays.move`; without matrices all of a head is turned. Cameras get no gradient."""
    matrices, table = None if matrices is None else matrices.float().contiguous(), table.float().contiguous()
    if torch.is_grad_enabled():
        return _Move.apply(x, matrices, table, sign)
    return _move(x, matrices, table, sign)


def _move(x: Tensor, matrices: Tensor | None, table: Tensor, sign: float) -> Tensor:
    heads, size = x.shape[-2:]
    rows, stride = rows_of(x.flatten(-2))
    out = torch.empty(x.shape, dtype=x.dtype, device="cpu")
    function("move", x.dtype, size)(
        rows, stride, matrices, table, out, x.numel() // (heads * size), heads, size, sign
    )
    return out


class _Move(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, matrices: Tensor | None, table: Tensor, sign: float) -> Tensor:
        ctx.save_for_backward(matrices, table)
        ctx.sign = sign
        return _move(x, matrices, table, sign)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        matrices, table = ctx.saved_tensors
        transposed = None if matrices is None else matrices.mT.contiguous()
        return _move(grad, transposed, table, -ctx.sign), None, None, None
