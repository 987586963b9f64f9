"""A layer in INT8 on a CPU: oneDNN multiplies bytes, and what stands around that takes one pass each."""

import torch
from torch import Tensor

from .library import NAMES, function, lanes
from .norms import rows_of


def can_multiply(x: Tensor, outputs: int) -> bool:
    """Returns True if `multiply` is available for activations x (..., K) and this many outputs. It has no
    gradient.
    """
    return x.device.type == "cpu" and x.dtype in NAMES and bool(lanes(x.shape[-1]) and lanes(outputs))


def multiply(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    base: Tensor | None = None,
    silu: bool = False,
) -> Tensor:
    """Equals a quantised layer in plain torch: x (..., K), codes int8 (N, K), scale (N, 1), base (..., N) ->
    (..., N) like x.
    """
    rows, (outputs, inputs) = x.numel() // x.shape[-1], codes.shape
    bytes_, scales, (x, stride) = (
        torch.empty(rows, inputs, dtype=torch.int8, device="cpu"),
        torch.empty(rows, dtype=torch.float32, device="cpu"),
        rows_of(x),
    )
    function("round_rows", x.dtype, inputs)(x, stride, bytes_, scales, rows, inputs)
    sums = torch._int_mm(bytes_, codes.t())  # pyright: ignore[reportPrivateImportUsage]  # nothing public multiplies integers
    out = torch.empty(*x.shape[:-1], outputs, dtype=x.dtype, device="cpu")
    bias, base = (
        None if bias is None else bias.float(),
        None if base is None else base.to(x.dtype).contiguous(),
    )
    function("scale_sums", x.dtype, outputs)(sums, scale, scales, bias, base, out, rows, outputs, int(silu))
    return out
