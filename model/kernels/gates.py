"""The two gates of a block: of the attention's output, and of the feed-forward with its depthwise
convolution.
"""

from typing import Any

import torch
from torch import Tensor

from .library import function
from .norms import rows_of


def gated_sum(gate: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Equals `operations.gated_sum`."""
    if torch.is_grad_enabled():
        return _GatedSum.apply(gate, a, b)
    return _gated_sum(gate, a.contiguous(), b.contiguous())


def gated_mix(x: Tensor, grid: tuple[int, int], weight: Tensor, bias: Tensor) -> Tensor:
    """Equals `operations.gated_mix`."""
    if torch.is_grad_enabled():
        return _GatedMix.apply(x, grid, weight, bias)
    return _gated_mix(x.contiguous(), grid, weight.float(), bias.float(), None)


def _gated_sum(gate: Tensor, a: Tensor, b: Tensor) -> Tensor:
    gate, stride = rows_of(gate)
    out = torch.empty_like(a)
    function("gated_sum", gate.dtype, a.shape[-1])(
        gate, stride, a, b, out, a.numel() // a.shape[-1], a.shape[-1]
    )
    return out


class _GatedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, a: Tensor, b: Tensor) -> Tensor:
        gate, a, b = gate.contiguous(), a.contiguous(), b.contiguous()
        ctx.save_for_backward(gate, a, b)
        return _gated_sum(gate, a, b)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        gate, a, b = ctx.saved_tensors
        of_gate, of_sum = torch.empty_like(gate), torch.empty_like(gate)
        function("gated_sum_backward", gate.dtype, gate.shape[-1])(
            grad.contiguous(), gate, a, b, of_gate, of_sum, gate.numel()
        )
        return of_gate, of_sum, of_sum


def _gated_mix(
    x: Tensor, grid: tuple[int, int], weight: Tensor, bias: Tensor, mixed: Tensor | None
) -> Tensor:
    channels = x.shape[-1]
    out = torch.empty(*x.shape[:-1], channels // 2, dtype=x.dtype, device="cpu")
    function("gated_mix", x.dtype, channels // 2)(
        x, weight, bias, mixed, out, x.shape[0] * x.shape[1], *grid, channels
    )
    return out


class _GatedMix(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, grid: tuple[int, int], weight: Tensor, bias: Tensor) -> Tensor:
        x = x.contiguous()
        mixed = torch.empty_like(x)
        ctx.save_for_backward(x, mixed, weight)
        ctx.grid = grid
        return _gated_mix(x, grid, weight.float(), bias.float(), mixed)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, mixed, weight = ctx.saved_tensors
        of_mixed, of_x = torch.empty_like(x), torch.empty_like(x)
        of_weight = torch.zeros(weight.shape, dtype=torch.float32, device="cpu")
        of_bias = torch.zeros(x.shape[-1], dtype=torch.float32, device="cpu")
        sizes = x.shape[0] * x.shape[1], *ctx.grid, x.shape[-1]
        call = function("gated_mix_backward", x.dtype, x.shape[-1] // 2)
        call(grad.contiguous(), x, mixed, weight.float(), of_mixed, of_x, of_weight, of_bias, *sizes)
        return of_x, None, of_weight.to(weight.dtype), of_bias.to(weight.dtype)
