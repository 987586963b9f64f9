"""Products in few bits on the tensor cores of a GPU, by `torch.nn.functional.scaled_mm`; the numbers are
those of `formats`.

Torch's own call rather than a library over it: the bytes that go in are the same as everywhere else, so a
card gives what the plain product gives but for the order of its sums, sessions keep scales of their own, and
rows of zeros stay zeros.
Letters: B sessions, K inputs, N outputs, M rows of all sessions, b inputs that share a block scale.
"""

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from .formats import Parts, Precision, encode

# The least compute capability whose tensor cores multiply a format: Hopper and Ada FP8, Blackwell block
# scales, Turing INT8.
CAPABILITY: dict[Precision, tuple[int, int]] = {
    "fp8": (8, 9),
    "nvfp4": (10, 0),
    "mxfp8": (10, 0),
    "int8": (7, 5),
}


def check_card(precision: Precision, device: torch.device) -> None:
    """ValueError that names a CUDA device which cannot multiply in `precision`, and what it can."""
    if device.type != "cuda":
        return
    name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    if reason := refuse(precision, name, capability):
        raise ValueError(reason)


def refuse(
    precision: Precision,
    name: str,
    capability: tuple[int, int],
    has_scaled_mm: bool = hasattr(F, "scaled_mm"),
) -> str | None:
    """Why a card of this compute capability cannot, in words; None if it can."""
    able = [
        known
        for known, wanted in CAPABILITY.items()
        if capability >= wanted and (has_scaled_mm or known == "int8")
    ]
    if precision in able:
        return None
    wanted = CAPABILITY[precision]
    if capability >= wanted:
        reason = f"torch {torch.__version__} has no torch.nn.functional.scaled_mm: install a newer torch"
    else:
        reason = (
            f"its tensor cores (compute capability {_dotted(capability)}) do not multiply it, which "
            f"takes {_dotted(wanted)}"
        )
    others = " or ".join(f"precision={known!r}" for known in able)
    return (
        f"got precision={precision!r} on {name}: {reason}. "
        f"There {others + ', or ' if others else ''}no precision at all would work; "
        f"quantize(..., exact=True) computes the numbers of {precision!r} on any device, slowly"
    )


def multiply(x: Tensor, weight: Parts, bias: Tensor | None, precision: Precision) -> Tensor:
    """X (B, ..., K) by a packed weight of N outputs, with block scales as `swizzle` lays them: (B, ..., N)
    in bfloat16.

    "fp8", "mxfp8" and "nvfp4".
    """
    parts = _encoder()(x, precision) if x.is_cuda else encode(x, precision)
    bias = None if bias is None else bias.to(torch.bfloat16)
    if precision == "nvfp4":
        assert parts.block_scales is not None and parts.scale is not None
        rows = zip(parts.numbers, parts.block_scales, parts.scale, strict=True)
        return torch.stack([_multiply(Parts(*row), weight, bias, precision) for row in rows])
    return _multiply(parts, weight, bias, precision)


def _multiply(x: Parts, weight: Parts, bias: Tensor | None, precision: Precision) -> Tensor:
    """All rows of x (..., K), whose NVFP4 has one scale."""
    kinds, layouts = F.ScalingType, F.SwizzleType
    a, b = x.numbers.flatten(0, -2).contiguous(), weight.numbers
    if precision == "fp8":
        assert x.scale is not None and weight.scale is not None
        scales = ([x.scale.reshape(-1, 1)], [weight.scale.t()])
        recipes = [kinds.RowWise]
        swizzles = [layouts.NO_SWIZZLE]
    else:
        assert x.block_scales is not None and weight.block_scales is not None
        blocks = swizzle(x.block_scales.flatten(0, -2)), weight.block_scales
        scales = tuple([s] for s in blocks)
        recipes = [kinds.BlockWise1x32]
        swizzles = [layouts.SWIZZLE_32_4_4]
    if precision == "nvfp4":
        assert x.scale is not None and weight.scale is not None
        a, b = a.view(torch.float4_e2m1fn_x2), b.view(torch.float4_e2m1fn_x2)
        scales = [scales[0][0], x.scale.reshape(1)], [scales[1][0], weight.scale.reshape(1)]
        recipes = [kinds.BlockWise1x16, kinds.TensorWise]
        swizzles = [layouts.SWIZZLE_32_4_4, layouts.NO_SWIZZLE]
    out = F.scaled_mm(
        a,
        b.t(),
        scales[0],
        recipes,
        scales[1],
        recipes,
        swizzles,
        swizzles,
        bias=bias,
        output_dtype=torch.bfloat16,
    )
    return out.unflatten(0, x.numbers.shape[:-1])


def swizzle(block_scales: Tensor) -> Tensor:
    """Block scales (M, K/b) as tensor cores read them, flat: tiles of 128 rows by 4 blocks, each as 32 rows
    of 4 times 4.

    Source: cuBLAS, layout of block scaling factors. Rows and blocks are filled up with zeros to whole tiles.
    """
    rows, blocks = block_scales.shape
    as_bytes = F.pad(block_scales.view(torch.uint8), (0, -blocks % 4, 0, -rows % 128))
    tiles = as_bytes.unflatten(0, (-1, 4, 32)).unflatten(-1, (-1, 4))  # (tiles down, 4, 32, tiles across, 4)
    return tiles.permute(0, 3, 2, 1, 4).flatten().view(block_scales.dtype)


@cache
def _encoder():
    """`encode` in one or two kernels: as separate operations it would take longer than the product."""
    return torch.compile(encode)


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))
