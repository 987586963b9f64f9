"""Softmax attention of few tokens: torch's own is made for many, and its backward pass on a CPU is slow."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .library import function, offsets


def attend(
    q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], scale: float, mask: Tensor | None = None
) -> Tensor:
    """Equals `operations.attend`. Pieces of keys and values are read where they lie, unless a gradient is
    wanted.
    """
    total = sum(k.shape[2] for k in keys)
    allowed = None if mask is None else mask.expand(len(q), 1, 1, total).contiguous()
    if torch.is_grad_enabled():
        return _Attend.apply(q, torch.cat(list(keys), 2), torch.cat(list(values), 2), scale, allowed)
    return _attend(q, keys, values, scale, allowed)


def _attend(
    q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], scale: float, allowed: Tensor | None
) -> Tensor:
    q, *pieces = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, *keys, *values))
    keys, values = pieces[: len(keys)], pieces[len(keys) :]
    batch, queries, heads, size = q.shape
    out = torch.empty(q.shape, dtype=q.dtype, device="cpu")
    lie = [
        part
        for group in (keys, values)
        for part in (offsets(*(x.data_ptr() for x in group)), _strides(group))
    ]
    lengths = offsets(*(k.shape[2] for k in keys))
    function("attend", q.dtype, size)(
        q, _strides([q]), *lie, lengths, len(keys), allowed, out, batch, heads, queries, size, scale
    )
    return out


def _strides(tensors: Sequence[Tensor]) -> Any:
    return offsets(*(step for x in tensors for step in x.stride()[:3]))


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, allowed: Tensor | None) -> Tensor:
        ctx.save_for_backward(q, k, v, allowed)
        ctx.scale = scale
        return _attend(q, [k], [v], scale, allowed)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, allowed = ctx.saved_tensors
        q, k, v = (x.contiguous() for x in inputs)
        gradients = [torch.empty_like(x) for x in (q, k, v)]
        batch, queries, heads, size = q.shape
        sizes = batch, heads, queries, k.shape[2], size
        function("attend_backward", q.dtype, size)(
            grad.contiguous(), q, k, v, allowed, *gradients, *sizes, ctx.scale
        )
        return *gradients, None, None
