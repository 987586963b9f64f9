"""RMS norm, and layer norm with a frame's scale and shift, in two passes over memory."""

from typing import Any

import torch
from torch import Tensor

from .library import function


def rms_norm(x: Tensor, weight: Tensor, eps: float, relu: bool = False, scale: float = 1.0) -> Tensor:
    """Equals `operations.rms_norm`."""
    x, stride = rows_of(x)
    if torch.is_grad_enabled():
        return _RMSNorm.apply(x, weight, stride, eps, relu, scale)
    return _normalise(x, weight.float(), stride, eps, relu, scale)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Equals `operations.modulate`."""
    shift, scale = shift.float(), scale.float()
    if torch.is_grad_enabled():
        return _Modulate.apply(x.contiguous(), shift, scale)
    return _modulate(x.contiguous(), *_alike(shift, scale), None)


def rows_of(x: Tensor) -> tuple[Tensor, int]:
    """X (..., C) such that rows lie evenly apart in memory, and how far: chunks of a wider tensor do, and are
    not copied.
    """
    if x.is_contiguous():
        return x, x.shape[-1]
    stride = x.stride(-2)
    for axis in range(x.ndim - 2, 0, -1):
        if x.shape[axis - 1] != 1 and x.stride(axis - 1) != x.stride(axis) * x.shape[axis]:
            return x.contiguous(), x.shape[-1]
    return (x, stride) if x.stride(-1) == 1 else (x.contiguous(), x.shape[-1])


def _normalise(x: Tensor, weight: Tensor, stride: int, eps: float, relu: bool, scale: float) -> Tensor:
    out = torch.empty(x.shape, dtype=x.dtype, device="cpu")
    channels = x.shape[-1]
    function("normalise", x.dtype, channels)(
        x, stride, weight, out, x.numel() // channels, channels, eps, relu, scale
    )
    return out


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, stride: int, eps: float, relu: bool, scale: float
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.rest = stride, eps, relu, scale
        return _normalise(x, weight.float(), stride, eps, relu, scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), (stride, *rest) = ctx.saved_tensors, ctx.rest
        grad, channels = grad.contiguous(), x.shape[-1]
        grad_x = torch.empty(x.shape, dtype=x.dtype, device="cpu")
        grad_weight = torch.zeros(weight.shape, dtype=torch.float32, device="cpu")
        rows = x.numel() // channels
        function("normalise_backward", x.dtype, channels)(
            grad, x, stride, weight.float(), grad_x, grad_weight, rows, channels, *rest
        )
        return grad_x, grad_weight.to(weight.dtype), None, None, None, None


def _alike(shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, int]:
    """Both (B, T, 1, C) with rows equally far apart in memory, and how far: the six of a block are parts of
    one tensor.
    """
    (shift, step), (scale, other) = rows_of(shift.squeeze(-2)), rows_of(scale.squeeze(-2))
    return (
        (shift, scale, step) if step == other else (shift.contiguous(), scale.contiguous(), shift.shape[-1])
    )


def _modulate(x: Tensor, shift: Tensor, scale: Tensor, step: int, statistics: Tensor | None) -> Tensor:
    out = torch.empty_like(x)
    batch, frames, tokens, channels = x.shape
    function("modulate", x.dtype, channels)(
        x, shift, scale, step, out, statistics, batch * frames, tokens, channels
    )
    return out


class _Modulate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        shift, scale, step = _alike(shift, scale)
        statistics = torch.empty(*x.shape[:-1], 2, dtype=torch.float32, device="cpu")
        ctx.save_for_backward(x, scale, statistics)
        ctx.step = step
        return _modulate(x, shift, scale, step, statistics)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        x, scale, statistics = ctx.saved_tensors
        batch, frames, tokens, channels = x.shape
        grad_x, sums = (
            torch.empty_like(x),
            torch.zeros(2, batch, frames, 1, channels, dtype=torch.float32, device="cpu"),
        )
        sizes = batch * frames, tokens, channels
        function("modulate_backward", x.dtype, channels)(
            grad.contiguous(), x, scale, ctx.step, statistics, grad_x, sums[0], sums[1], *sizes
        )
        return grad_x, sums[0], sums[1]
