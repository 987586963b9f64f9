"""Linear layers by oneDNN instead of the BLAS that torch takes for float32, which leaves half of some
processors' vectors unused.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

ROWS = 192
FASTER = 1.15  # the gain from which the other library is taken


def has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def pack(weight: Tensor) -> Tensor:
    """Equals `operations.pack`: the blocks that oneDNN reads, for about as many rows as a chunk of the
    bundled world has.
    """
    return torch.ops.mkldnn._reorder_linear_weight.default(weight.contiguous(), ROWS)


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "none") -> Tensor:
    """X (..., inputs) by weight (outputs, inputs), in any strides. No gradient. activation: "none" or
    "swish".
    """
    return torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, activation, [], "")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Equals `operations.linear`."""
    if torch.is_grad_enabled():
        return _Linear.apply(x, weight, bias)
    if weight.dtype != x.dtype:
        weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    return multiply(x, weight, bias)


def silu_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Equals `operations.silu_linear`."""
    if torch.is_grad_enabled():
        return F.silu(linear(x, weight, bias))
    return multiply(x, weight.to(x.dtype), bias.to(x.dtype), "swish")


def linear_onto(base: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Equals `operations.linear_onto`."""
    if torch.is_grad_enabled():
        return base + linear(x, weight, bias)
    weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    return torch.ops.mkldnn._linear_pointwise.binary(x, base, weight, bias, "add")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        narrow = weight.to(x.dtype)
        ctx.save_for_backward(x, narrow)
        ctx.of_weight = weight.dtype
        ctx.of_bias = None if bias is None else bias.dtype
        return multiply(x, narrow, None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows, inputs = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        grad_x = multiply(grad, weight.t()) if ctx.needs_input_grad[0] else None
        # torch's own product of bfloat16 is oneDNN's as well, and faster for two transposed factors
        product = multiply(rows.t(), inputs.t()) if x.dtype == torch.float32 else rows.t() @ inputs
        grad_bias = rows.sum(0, dtype=torch.float32).to(ctx.of_bias) if ctx.of_bias else None
        return grad_x, product.to(ctx.of_weight), grad_bias
