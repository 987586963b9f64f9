"""The depthwise convolution of the keys over time, without copies of its ends."""

from typing import Any

import torch
from torch import Tensor

from ..network.execution import Spans
from .library import function, span_ends
from .norms import rows_of


def short_conv(
    x: Tensor, weight: Tensor, spans: Spans, past: Tensor | None, future: Tensor | None = None
) -> Tensor:
    """Equals `gated_delta.short_conv`."""
    if torch.is_grad_enabled():
        return _ShortConv.apply(x, weight, past, future, spans)
    return _short_conv(x, weight.float(), spans, past, future)


def _short_conv(
    x: Tensor, weight: Tensor, spans: Spans, past: Tensor | None, future: Tensor | None
) -> Tensor:
    x, stride = rows_of(x)
    sides = tuple(None if side is None else side.to(x.dtype).contiguous() for side in (past, future))
    out = torch.empty(x.shape, dtype=x.dtype, device="cpu")
    function("short_conv", x.dtype, x.shape[-1])(
        x, stride, *sides, weight.contiguous(), span_ends(spans), out, *x.shape
    )
    return out


class _ShortConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, past: Tensor | None, future: Tensor | None, spans: Spans
    ) -> Tensor:
        ctx.save_for_backward(x, weight, past, future)
        ctx.spans = spans
        return _short_conv(x, weight.float(), spans, past, future)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, past, future = ctx.saved_tensors
        rows, stride = rows_of(x)
        sides = tuple(None if side is None else side.to(x.dtype).contiguous() for side in (past, future))
        of_x = torch.empty(x.shape, dtype=x.dtype, device="cpu")
        of_sides = tuple(None if s is None else torch.empty_like(s) for s in sides)
        of_weight = torch.zeros(weight.shape, dtype=torch.float32, device="cpu")
        inputs = grad.contiguous(), rows, stride, *sides, weight.float().contiguous(), span_ends(ctx.spans)
        function("short_conv_backward", x.dtype, x.shape[-1])(*inputs, of_x, *of_sides, of_weight, *x.shape)
        of_past, of_future = (
            None if s is None else s.to(side.dtype) for s, side in zip(of_sides, (past, future), strict=True)
        )
        return of_x, of_weight.to(weight.dtype), of_past, of_future, None
