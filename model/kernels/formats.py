"""Numbers in few bits, to the last bit and on any machine: NVFP4, MXFP8, FP8 and INT8, each with its scales.

A format cuts a tensor into element values, which few bits can hold, and scales; `pack` stores them as bytes,
`unpack` reads them back. Rounding is to the nearest, ties to even. Zeros stay zeros, numbers that are too
large become the largest there is, NaN stays NaN.

| format | element        | one scale for        | and above it      | largest error of an element x                        |
|--------|----------------|----------------------|-------------------|------------------------------------------------------|
| nvfp4  | E2M1, 4 bits   | 16 inputs, E4M3      | a float32         | 0.178 of its block's largest, 2.2e-6 of the tensor's |
| mxfp8  | E4M3, 8 bits   | 32 inputs, E8M0      |                   | 1/16 of x, 4.4e-6 of its block's largest             |
| fp8    | E4M3, 8 bits   | a row, float32       |                   | 1/16 of x, 2.2e-6 of its row's largest               |
| int8   | -127 to 127    | a row, float32       |                   | 1/254 of its row's largest                           |

"A row" is an output of a weight, a token of activations. The float32 of NVFP4 is one for a weight, one for
each session of a batch, so that a session does not depend on its neighbours.

Sources: OCP Microscaling Formats 1.0 (E2M1, E4M3, E8M0); NVIDIA's NVFP4 as TransformerEngine computes it
without Hadamard transform.
Letters: G groups (sessions; 1 for a weight), K inputs, N outputs, b inputs that share a block scale.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

Precision = Literal["fp8", "nvfp4", "mxfp8", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E2M1_MAX, E4M3_MAX, INT8_MAX = E2M1[-1], 448.0, 127.0
SMALLEST_POWER, LARGEST_POWER = -127, 127  # of two, that E8M0 holds
LARGEST = 2.0**127  # what is larger counts as this: the nearest E4M3 of more would leave float32


class Parts(NamedTuple):
    """A tensor in a format.

    numbers        float32 like the tensor when it is cut, the stored codes once it is packed
    block_scales   (..., K/b) as stored, None where blocks have none
    scale          float32, what a product is multiplied with in the end; None where there is none
    """

    numbers: Tensor
    block_scales: Tensor | None
    scale: Tensor | None


@dataclass(frozen=True)
class Format:
    """cut: x (G, ..., K) to its `Parts`. encode, decode: element values to stored codes and back. block: K
    is a multiple of it.
    """

    block: int
    cut: Callable[[Tensor], Parts]
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]


def pack(weight: Tensor, precision: Precision) -> Parts:
    """A weight (N, K) as bytes: codes (N, K), or (N, K/2) of two each; block scales (N, K/b); scale (N, 1),
    or () of NVFP4.
    """
    codes, block_scales, scale = (
        None if part is None else part[0] for part in encode(weight[None], precision)
    )
    assert codes is not None
    return Parts(
        codes, block_scales, scale.reshape(()) if scale is not None and block_scales is not None else scale
    )


def encode(x: Tensor, precision: Precision) -> Parts:
    """Activations (G, ..., K), one session to a group, as they go into a product: codes, and scales of as
    many axes.
    """
    form = FORMATS[precision]
    numbers, block_scales, scale = form.cut(x)
    return Parts(form.encode(numbers), block_scales, scale)


def unpack(codes: Tensor, block_scales: Tensor | None, precision: Precision) -> Tensor:
    """The values (N, K) behind packed codes, in float32 and exact, but for `Parts.scale`."""
    return apply_block_scales(FORMATS[precision].decode(codes), block_scales)


def apply_block_scales(numbers: Tensor, block_scales: Tensor | None) -> Tensor:
    """Element values (..., K) times the scales of their blocks (..., K/b): float32, exact."""
    if block_scales is None:
        return numbers
    return (numbers.unflatten(-1, (block_scales.shape[-1], -1)) * block_scales.float()[..., None]).flatten(-2)


def round_e2m1(x: Tensor) -> Tensor:
    """The nearest number that E2M1 has, of x in -6 to 6: float32."""
    size = x.abs()
    step = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0))
    return (x / step).round() * step  # round takes halves to the even neighbour, whose code is even as well


def encode_e2m1(numbers: Tensor) -> Tensor:
    """Values of E2M1 (..., K) as uint8 (..., K/2): sign, two bits of exponent, one of mantissa; the first of
    a pair in the lower half.
    """
    size = numbers.abs()
    place = torch.where(size < 2, 2 * size, torch.where(size < 4, size + 2, size / 2 + 4))  # in `E2M1`
    first, second = (place + 8 * numbers.signbit()).to(torch.uint8).unflatten(-1, (-1, 2)).unbind(-1)
    return first | second << 4


def decode_e2m1(codes: Tensor) -> Tensor:
    """Inverse of `encode_e2m1`."""
    pairs = _e2m1_pairs(codes.device).index_select(0, codes.flatten().int())
    return pairs.view(*codes.shape[:-1], -1)


@cache
def _e2m1_pairs(device: torch.device) -> Tensor:
    """(256, 2): both values of a byte."""
    values = torch.tensor([*E2M1, *(-v for v in E2M1)], dtype=torch.float32, device=device)
    byte = torch.arange(256, device=device)
    return torch.stack([values[byte & 15], values[byte >> 4]], -1)


def _cut_nvfp4(x: Tensor) -> Parts:
    blocks = _finite(x).unflatten(-1, (-1, 16))
    size = blocks.abs().amax(-1)  # (G, ..., K/16)
    scale = size.amax(tuple(range(1, size.ndim)), keepdim=True) / (E4M3_MAX * E2M1_MAX)
    block_scales = (size / E2M1_MAX / _divisor(scale)).clamp(max=E4M3_MAX).to(torch.float8_e4m3fn)
    total = scale * block_scales.float()
    numbers = round_e2m1((blocks / _divisor(total)[..., None]).clamp(-E2M1_MAX, E2M1_MAX))
    return Parts(numbers.flatten(-2), block_scales, scale)


def _cut_mxfp8(x: Tensor) -> Parts:
    blocks = _finite(x).unflatten(-1, (-1, 32))
    size = blocks.abs().amax(-1)
    mantissa, power = torch.frexp(size / E4M3_MAX)  # the least power of two that makes the largest fit
    power = (
        (power - (mantissa <= 0.5).int())
        .masked_fill(size == 0, SMALLEST_POWER)
        .clamp(SMALLEST_POWER, LARGEST_POWER)
    )
    numbers = _round_e4m3(blocks / torch.ldexp(torch.ones_like(size), power)[..., None])
    return Parts(numbers.flatten(-2), _as_e8m0((power - SMALLEST_POWER).to(torch.uint8)), None)  # pyright: ignore[reportArgumentType]  # `disable` loses the type


@torch.compiler.disable  # a dtype that the compiler does not know
def _as_e8m0(exponents: Tensor) -> Tensor:
    return exponents.view(torch.float8_e8m0fnu)


def _cut_fp8(x: Tensor) -> Parts:
    x = _finite(x)
    scale = x.abs().amax(-1, keepdim=True) / E4M3_MAX
    return Parts(_round_e4m3(x / _divisor(scale)), None, scale)


def _cut_int8(x: Tensor) -> Parts:
    x = _finite(x)
    scale = x.abs().amax(-1, keepdim=True) / INT8_MAX
    return Parts((x / _divisor(scale)).round().clamp(-INT8_MAX, INT8_MAX), None, scale)


def _finite(x: Tensor) -> Tensor:
    return x.float().clamp(-LARGEST, LARGEST)


def _divisor(scale: Tensor) -> Tensor:
    """A scale to divide by: what has none is all zeros, or too small to be told from them."""
    return scale.masked_fill(scale == 0, torch.inf)


def _round_e4m3(x: Tensor) -> Tensor:
    return _to_e4m3(x.clamp(-E4M3_MAX, E4M3_MAX)).float()


def _to_e4m3(x: Tensor) -> Tensor:
    return x.to(torch.float8_e4m3fn)


FORMATS: dict[Precision, Format] = {
    "fp8": Format(1, _cut_fp8, _to_e4m3, Tensor.float),
    "nvfp4": Format(16, _cut_nvfp4, encode_e2m1, decode_e2m1),
    "mxfp8": Format(32, _cut_mxfp8, _to_e4m3, Tensor.float),
    "int8": Format(1, _cut_int8, lambda numbers: numbers.to(torch.int8), Tensor.float),
}
