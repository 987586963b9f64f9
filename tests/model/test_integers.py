"""INT8 by compiled passes around oneDNN's product against the same layer in plain torch."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sana_wm_env.model.kernels.formats import encode
from sana_wm_env.model.kernels.library import function
from sana_wm_env.model.kernels.quantized import QuantizedLinear
from sana_wm_env.native import find_compiler

pytestmark = pytest.mark.skipif(not find_compiler(), reason="no C++ compiler")
BOTH = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def draw(*shape: int, spread: float = 0.0, seed: int = 0) -> Tensor:
    made = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=made) * torch.exp(
        spread * torch.randn(*shape[:-1], 1, generator=made)
    )


@BOTH
def test_a_million_values_get_the_same_bytes_and_scales(dtype):
    x = draw(1000, 1024, spread=3.0).to(dtype)
    codes, scales = torch.empty(1000, 1024, dtype=torch.int8), torch.empty(1000)
    function("round_rows", dtype, 1024)(x, 1024, codes, scales, 1000, 1024)
    plain = encode(x[None], "int8")
    assert torch.equal(codes, plain.numbers[0]) and torch.equal(scales, plain.scale.flatten())


@torch.inference_mode()
@BOTH
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_is_the_plain_one(dtype, bias):
    made = nn.Parameter(draw(96, seed=2).to(dtype), requires_grad=False) if bias else None
    layer = QuantizedLinear(draw(96, 64, seed=1) / 8, made, "int8")
    whole, base = draw(2, 3, 10, 128, spread=1.0).to(dtype), draw(2, 3, 10, 96, seed=3).to(dtype)
    x = whole.chunk(2, -1)[1]  # rows lie apart in memory
    product, close = layer._multiply(x), {"rtol": 1e-5 if dtype == torch.float32 else 8e-3, "atol": 1e-5}
    assert layer._has_integers(x)
    assert torch.allclose(layer(x).float(), product, **close) and layer(x).dtype == dtype
    assert torch.allclose(layer.forward_silu(x).float(), F.silu(product), **close)
    assert torch.allclose(layer.forward_onto(base, x).float(), (base + product).to(dtype).float(), **close)


@torch.inference_mode()
def test_zeros_infinities_and_faults_go_through_as_in_the_plain_one():
    layer = QuantizedLinear(draw(96, 64) / 8, nn.Parameter(draw(96), requires_grad=False), "int8")
    x = draw(1, 4, 64)
    x[0, 0], x[0, 1, 3], x[0, 2, 5], x[0, 3, 7] = 0, torch.inf, -torch.inf, torch.nan
    found = layer(x)
    assert (
        torch.equal(found[0, 0], layer.bias) and found[0, :3].isfinite().all() and found[0, 3].isnan().all()
    )
    assert torch.allclose(found[0, :3], layer._multiply(x)[0, :3], rtol=1e-5, atol=1e-5)
