"""The gated delta rule of a whole pass, a head at a time, without a copy of anything."""

from typing import Any

import torch
from torch import Tensor

from ..network import gated_delta
from ..network.execution import Execution, Spans
from ..network.rays import mean_growth as plain_growth
from .library import function, span_ends
from .norms import rows_of


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    decay: Tensor,
    table: Tensor | None,
    execution: Execution,
    matrix: Tensor | None,
    normaliser: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Equals `gated_delta.delta_rule`. A clip that is divided among ranks takes the plain way."""
    if execution.segment is not None:
        return gated_delta.delta_rule(q, k, v, beta, decay, table, execution, matrix, normaliser)
    beta, decay = (g.float().contiguous() for g in (beta, decay))
    matrix, normaliser = (None if s is None else s.float().contiguous() for s in (matrix, normaliser))
    turning = None if table is None else table.float().contiguous()
    if torch.is_grad_enabled():
        out, after, row = _DeltaRule.apply(q, k, v, beta, decay, turning, matrix, normaliser, execution.spans)
        return out, after, None if table is None else row
    return _delta_rule(q, k, v, beta, decay, turning, matrix, normaliser, execution.spans)


def _delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    decay: Tensor,
    table: Tensor | None,
    matrix: Tensor | None,
    normaliser: Tensor | None,
    spans: Spans,
) -> tuple[Tensor, Tensor, Tensor | None]:
    batch, _, _, heads, size = q.shape
    q, k = q.contiguous(), k.contiguous()
    v, stride = rows_of(v.flatten(-2))
    out, after = torch.empty_like(q), torch.empty(batch, heads, size, size, dtype=torch.float32, device="cpu")
    row = None if table is None else torch.empty(batch, heads, size, dtype=torch.float32, device="cpu")
    inputs = q, k, v, stride, beta, decay, table, matrix, normaliser, span_ends(spans)
    function("delta", q.dtype, size)(*inputs, out, after, row, *q.shape)
    return out, after, row


class _DeltaRule(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        *tensors, ctx.spans = inputs
        ctx.save_for_backward(*tensors)
        out, after, row = _delta_rule(*inputs)
        return out, after, torch.empty(0, dtype=torch.float32, device="cpu") if row is None else row

    @staticmethod
    def backward(ctx: Any, grad: Tensor, of_after: Tensor, of_row: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, beta, decay, table, matrix, normaliser = ctx.saved_tensors
        q, k, v = (x.contiguous() for x in (q, k, v))
        of_heads = [torch.empty_like(x) for x in (q, k, v)]
        of_gates = [torch.zeros_like(x) for x in (beta, decay)]
        of_states = [None if x is None else torch.empty_like(x) for x in (matrix, normaliser)]
        given = grad.contiguous(), of_after.contiguous(), None if table is None else of_row.contiguous()
        inputs = q, k, v, beta, decay, table, matrix, normaliser, span_ends(ctx.spans)
        function("delta_backward", q.dtype, q.shape[-1])(
            *given, *inputs, *of_heads, *of_gates, *of_states, *q.shape
        )
        return *of_heads, *of_gates, None, *of_states, None


def mean_growth(before: Tensor, after: Tensor) -> Tensor:
    """Equals `rays.mean_growth`."""
    if torch.is_grad_enabled():
        return plain_growth(before, after)
    batch, frames, tokens, heads, size = before.shape
    out = torch.empty(batch, frames, heads, dtype=torch.float32, device="cpu")
    function("mean_growth", before.dtype, size)(
        before.contiguous(), after.contiguous(), out, batch * frames, tokens, heads, size
    )
    return out[:, :, None]
