"""Numbers in few bits against other people's implementations, value for value, and against their stated
errors.
"""

from itertools import pairwise, product

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sana_wm_env.model.kernels import tensor_cores
from sana_wm_env.model.kernels.formats import (
    E2M1,
    FORMATS,
    PRECISIONS,
    apply_block_scales,
    decode_e2m1,
    encode,
    encode_e2m1,
    pack,
    round_e2m1,
    unpack,
)
from sana_wm_env.native import find_compiler

ml_dtypes = pytest.importorskip("ml_dtypes", reason="an independent implementation: pip install ml-dtypes")
kitchen = pytest.importorskip(
    "comfy_kitchen.backends.eager.quantization", reason="another one: pip install comfy-kitchen"
)
from comfy_kitchen.float_utils import from_blocked, to_blocked  # noqa: E402

ROWS, COLUMNS = 1000, 1024  # 1,024,000 values


def draw(*shape: int, spread: float = 0.0, seed: int = 0) -> Tensor:
    """Normal numbers, each row times a factor that is log-normal with this spread."""
    made = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=made) * torch.exp(
        spread * torch.randn(*shape[:-1], 1, generator=made)
    )


def bits(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.uint8)


def values(precision: str, x: Tensor) -> Tensor:
    """What the format makes of x (G, ..., K)."""
    numbers, block_scales, scale = FORMATS[precision].cut(x)
    found = apply_block_scales(numbers, block_scales)
    return found if scale is None else found * scale


def test_all_codes_times_all_scales_are_the_products_of_ml_dtypes():
    """16 codes of E2M1 by 255 scales of E4M3, and 255 codes of E4M3 by 255 scales of E8M0 that are no NaN."""
    codes = np.arange(16, dtype=np.uint8)
    fours = codes.view(ml_dtypes.float4_e2m1fn).astype(np.float64)
    pairs = torch.from_numpy(
        np.stack([codes[0::2] | codes[1::2] << 4] * 256)
    )  # (256, 8) bytes: all 16 codes in every row
    eights = np.arange(256, dtype=np.uint8)
    scales = torch.from_numpy(eights)[:, None].view(torch.float8_e4m3fn)
    wanted = fours * eights.view(ml_dtypes.float8_e4m3fn).astype(np.float64)[:, None]
    assert np.array_equal(unpack(pairs, scales, "nvfp4").double().numpy(), wanted, equal_nan=True)

    numbers = torch.from_numpy(np.stack([eights] * 255)).view(
        torch.float8_e4m3fn
    )  # (255, 256): eight blocks of 32
    powers = torch.from_numpy(np.repeat(eights[:255, None], 8, 1)).view(torch.float8_e8m0fnu)
    wanted = eights.view(ml_dtypes.float8_e4m3fn).astype(np.float64) * np.ldexp(
        1.0, eights[:255, None].astype(int) - 127
    )
    with np.errstate(over="ignore"):
        wanted = wanted.astype(np.float32).astype(np.float64)  # the largest powers leave float32
    assert np.array_equal(unpack(numbers, powers, "mxfp8").double().numpy(), wanted, equal_nan=True)


def test_every_byte_of_two_codes_comes_back():
    every = torch.arange(256, dtype=torch.uint8).view(16, 16)
    assert torch.equal(encode_e2m1(decode_e2m1(every)), every)


def test_e2m1_rounds_as_ml_dtypes_does_at_every_tie_and_beside_it():
    ties = np.array([(a + b) / 2 for a, b in pairwise(E2M1)], np.float32)
    points = np.concatenate(
        [ties, np.nextafter(ties, np.float32(9)), np.nextafter(ties, np.float32(0)), np.float32(E2M1)]
    )
    points = np.concatenate([points, -points])
    wanted = points.astype(ml_dtypes.float4_e2m1fn)
    found = encode_e2m1(round_e2m1(torch.from_numpy(points)).view(1, -1))
    assert np.array_equal(decode_e2m1(found).numpy()[0], wanted.astype(np.float32))


@pytest.mark.parametrize("spread", [0.0, 3.0])
def test_a_million_values_in_nvfp4_equal_those_of_comfy_kitchen(spread):
    """Bytes, but for the sign of zero in blocks too small for a scale."""
    x = draw(ROWS, COLUMNS, spread=spread)
    codes, scales = kitchen.quantize_nvfp4(x, x.abs().max() / (448 * 6), hi_first=False)
    scales = from_blocked(scales, ROWS, COLUMNS // 16)
    ours = pack(x, "nvfp4")
    assert torch.equal(bits(ours.block_scales), bits(scales)) and torch.equal(
        decode_e2m1(ours.numbers), decode_e2m1(codes)
    )
    alive = (scales.float() != 0).repeat_interleave(8, 1)
    assert alive.any() and torch.equal(ours.numbers[alive], codes[alive])
    theirs = kitchen.dequantize_nvfp4(
        codes, ours.scale, to_blocked(scales, flatten=False), torch.float32, hi_first=False
    )
    assert torch.allclose(
        unpack(ours.numbers, ours.block_scales, "nvfp4") * ours.scale, theirs, rtol=3e-7, atol=0
    )


@pytest.mark.parametrize("spread", [0.0, 3.0])
def test_a_million_values_in_mxfp8_equal_those_of_comfy_kitchen(spread):
    x = draw(ROWS, COLUMNS, spread=spread)
    codes, scales = kitchen.quantize_mxfp8(x)
    scales = from_blocked(scales.view(torch.uint8), ROWS, COLUMNS // 32)
    ours = pack(x, "mxfp8")
    assert torch.equal(bits(ours.numbers), bits(codes)) and torch.equal(bits(ours.block_scales), scales)


@pytest.mark.parametrize("spread", [0.0, 3.0])
def test_a_million_values_in_fp8_and_int8_equal_those_of_numpy(spread):
    x = draw(ROWS, COLUMNS, spread=spread)
    numbers = x.numpy()
    largest = np.abs(numbers).max(1, keepdims=True)
    fp8, int8 = pack(x, "fp8"), pack(x, "int8")
    scale = largest / np.float32(448)
    theirs = np.clip(numbers / scale, -448, 448).astype(ml_dtypes.float8_e4m3fn)
    assert np.array_equal(bits(fp8.numbers).numpy(), theirs.view(np.uint8)) and np.array_equal(
        fp8.scale.numpy(), scale
    )
    codes, scales = kitchen.quantize_int8_rowwise(x)
    assert torch.equal(int8.numbers, codes) and torch.equal(int8.scale, scales)
    assert np.array_equal(int8.numbers.numpy(), np.rint(numbers / (largest / np.float32(127))))


def test_torchao_reads_our_bytes_alike():
    pytest.importorskip("torchao", reason="pip install torchao")
    from torchao.prototype.mx_formats.mx_tensor import MXTensor
    from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor
    from torchao.quantization.quantize_.common import KernelPreference
    from torchao.quantization.quantize_.workflows.float8.float8_tensor import Float8Tensor

    x = draw(96, 64, spread=1.0)
    codes, blocks, scale = pack(x, "nvfp4")
    theirs = NVFP4Tensor(codes, blocks, 16, torch.float32, scale).dequantize(torch.float32)
    assert torch.equal(theirs, values("nvfp4", x[None])[0]) or torch.allclose(
        theirs, values("nvfp4", x[None])[0], rtol=3e-7, atol=0
    )
    codes, _, scale = pack(x, "fp8")
    theirs = Float8Tensor(codes, scale, [1, 64], dtype=torch.float32).dequantize(torch.float32)
    assert torch.equal(theirs, values("fp8", x[None])[0])
    codes, blocks, _ = pack(x, "mxfp8")
    theirs = MXTensor(
        codes, blocks, torch.float8_e4m3fn, 32, torch.float32, KernelPreference.EMULATED, None, False
    )
    assert torch.equal(theirs.dequantize(torch.float32), values("mxfp8", x[None])[0])


def bound(precision: str, x: Tensor) -> Tensor:
    """The largest error of each value of x (G, M, K), as the module states it."""
    row = x.abs().amax(-1, keepdim=True)
    if precision == "int8":
        return row / 254
    if precision == "fp8":
        return x.abs() / 16 + 2.2e-6 * row
    block = (
        x.unflatten(-1, (-1, FORMATS[precision].block))
        .abs()
        .amax(-1)
        .repeat_interleave(FORMATS[precision].block, -1)
    )
    if precision == "mxfp8":
        return x.abs() / 16 + 4.4e-6 * block
    return 0.178 * block + 2.2e-6 * x.abs().amax((1, 2), keepdim=True)


@pytest.mark.parametrize("factor", [1.0, 200.0, 1e30, 1e-30])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_no_error_is_above_the_stated_one(precision, factor):
    x = draw(3, 64, 256, spread=2.0) * factor
    found = values(precision, x)
    assert (
        found.isfinite().all()
        and ((found.double() - x.double()).abs() <= bound(precision, x.double()) * (1 + 1e-5)).all()
    )


@pytest.mark.parametrize("precision", PRECISIONS)
def test_zeros_stay_zeros_and_infinities_become_finite(precision):
    x = draw(2, 4, 64)
    x[0, 1], x[1] = 0, 0
    x[0, 2, 5], x[0, 3, 6] = torch.inf, -torch.inf
    found = values(precision, x)
    assert found.isfinite().all() and not found[0, 1].any() and not found[1].any()
    assert found[0, 2, 5] > 1e38 and found[0, 3, 6] < -1e38
    assert not values(precision, torch.full((1, 2, 64), 1e-42)).isnan().any()
    x[0, 0, 0] = torch.nan
    assert values(precision, x)[0, 0, 0].isnan()  # a fault is not hidden


@pytest.mark.parametrize("precision", PRECISIONS)
def test_sessions_of_a_batch_do_not_see_each_other(precision):
    x = draw(3, 5, 64, spread=3.0)
    alone = torch.cat([values(precision, row[None]) for row in x])
    assert torch.equal(values(precision, x), alone)


# ---- tensor cores


def test_scales_lie_as_tensor_cores_read_them():
    for rows, blocks in ((128, 4), (130, 12), (1, 5), (300, 140)):
        scales = torch.randint(0, 256, (rows, blocks), dtype=torch.uint8)
        assert torch.equal(tensor_cores.swizzle(scales), to_blocked(scales))


def test_fp8_by_torch_s_scaled_product_is_the_exact_one_but_for_the_order_of_its_sums():
    """The call that a GPU gets, on a CPU, which has this one."""
    x = draw(2, 3, 48, 64, spread=1.0).bfloat16()
    weight = pack(draw(32, 64, seed=1), "fp8")
    bias = draw(32, seed=2)
    numbers, _, scale = FORMATS["fp8"].cut(x)
    exact = F.linear(numbers, weight.numbers.float()) * scale * weight.scale.flatten()
    found = tensor_cores.multiply(x, weight, None, "fp8")
    assert found.dtype == torch.bfloat16 and (found == exact.bfloat16()).float().mean() > 0.99
    assert torch.allclose(found.float(), exact, rtol=2**-8, atol=1e-5)
    assert torch.equal(
        tensor_cores.multiply(torch.zeros_like(x), weight, bias, "fp8"), bias.bfloat16().expand(2, 3, 48, 32)
    )


@pytest.mark.parametrize("precision", ["fp8", "mxfp8", "nvfp4"])
def test_torch_accepts_the_call_for_tensor_cores(precision):
    """Its own checks of dtypes, sizes and recipes, on tensors that have sizes only."""
    with torch.device("meta"):
        weight = pack(torch.empty(2240, 2240), precision)
        if weight.block_scales is not None:
            weight = weight._replace(block_scales=tensor_cores.swizzle(weight.block_scales))
        out = tensor_cores.multiply(
            torch.empty(2, 3, 880, 2240, dtype=torch.bfloat16), weight, torch.empty(2240), precision
        )
        assert out.shape == (2, 3, 880, 2240) and out.dtype == torch.bfloat16
        short = (
            weight._replace(scale=weight.scale[:-5])
            if precision == "fp8"
            else weight._replace(block_scales=weight.block_scales[:-512])
        )
        with pytest.raises((ValueError, RuntimeError), match="must have"):  # the checks are there
            tensor_cores.multiply(torch.empty(2, 3, 880, 2240, dtype=torch.bfloat16), short, None, precision)


@pytest.mark.slow
@pytest.mark.skipif(not find_compiler(), reason="no C++ compiler")
@pytest.mark.parametrize("precision", PRECISIONS)
def test_compiled_rounding_is_the_plain_one(precision):
    x = draw(2, 3, 16, 64, spread=2.0).bfloat16()
    for ours, plain in zip(torch.compile(encode)(x, precision), encode(x, precision), strict=True):
        assert (ours is None and plain is None) or torch.equal(bits(ours), bits(plain))


CARDS = {
    "NVIDIA A100": (8, 0),
    "NVIDIA H100": (9, 0),
    "NVIDIA B200": (10, 0),
    "NVIDIA GeForce RTX 5090": (12, 0),
}


@pytest.mark.parametrize("precision, card", list(product(PRECISIONS, CARDS)))
def test_a_card_that_cannot_is_refused_by_name_with_what_it_can(precision, card):
    can = {"NVIDIA A100": ["int8"], "NVIDIA H100": ["fp8", "int8"]}.get(card, list(PRECISIONS))
    said = tensor_cores.refuse(precision, card, CARDS[card], True)
    if precision in can:
        assert said is None
    else:
        assert said is not None and f"got precision={precision!r} on {card}" in said
        assert all(f"precision={other!r}" in said for other in can)


def test_an_old_torch_is_named():
    said = tensor_cores.refuse("fp8", "NVIDIA H100", (9, 0), has_scaled_mm=False)
    assert said is not None and "torch.nn.functional.scaled_mm" in said and "precision='int8'" in said
