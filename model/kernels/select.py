"""Which operations a network gets, and in which dtype it computes fastest: by device, sizes and measured
speed, once per network.
"""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial

import torch
from torch.nn import functional as F

from sana_wm_env.files import write_json
from sana_wm_env.native import cache_folders, describe_processor, find_compiler

from ..config import TransformerConfig
from . import attention, delta_rule, gates, linear, norms, rays, short_conv
from .library import lanes
from .operations import PLAIN, Operations

SMALL_WIDTH = 512  # up to here a forward runs on one core, as the compiled operations do
BF16_GAIN = 1.3  # how much faster products of bfloat16 must be than the best of float32
ROWS, INPUTS, OUTPUTS = 192, 192, 768  # a product of the bundled world's feed-forward


def select_operations(
    width: int, head_dim: int, ffn_width: int, device: torch.device, dtype: torch.dtype
) -> Operations:
    """The operations of a network of these sizes on a device, computing in `dtype`."""
    if device.type != "cpu" or dtype not in (torch.float32, torch.bfloat16):
        return PLAIN
    operations = PLAIN
    rates = measure_products()
    if linear.has_onednn() and (
        dtype == torch.bfloat16 or rates["float32 by oneDNN"] > linear.FASTER * rates["float32"]
    ):
        operations = replace(
            operations,
            pack=linear.pack,
            linear=linear.linear,
            silu_linear=linear.silu_linear,
            linear_onto=linear.linear_onto,
        )
    if width <= SMALL_WIDTH and all(map(lanes, (width, head_dim, ffn_width))):
        operations = replace(
            operations,
            rms_norm=norms.rms_norm,
            modulate=norms.modulate,
            gated_sum=gates.gated_sum,
            gated_mix=gates.gated_mix,
            rotate=rays.rotate,
            move=rays.move,
            mean_growth=delta_rule.mean_growth,
            short_conv=short_conv.short_conv,
            delta_rule=delta_rule.delta_rule,
            attend=attention.attend,
        )
    return operations


def choose_dtype(name: str, device: str | torch.device) -> torch.dtype:
    """The dtype that a world's configuration names for a device; "auto" is the faster of float32 and
    bfloat16.
    """
    if name != "auto":
        return getattr(torch, name)
    if torch.device(device).type == "cpu":
        return fastest_dtype()
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32


def fastest_dtype() -> torch.dtype:
    """bfloat16 where this processor multiplies it clearly faster than float32, as it does with AMX and
    AVX512-BF16.
    """
    rates = measure_products()
    best = max(rates["float32"], rates.get("float32 by oneDNN", 0))
    return torch.bfloat16 if rates["bfloat16"] > BF16_GAIN * best else torch.float32


@cache
def measure_products() -> dict[str, float]:
    """GFLOP/s of one core at a product of the bundled world's size, by dtype and library.

    Measured once on a machine and kept in the user's cache, so that every process there chooses alike and the
    same seed gives the same frames.
    """
    name = f"products-{describe_processor()}-torch{torch.__version__}.json"
    for folder in cache_folders():
        try:
            return {key: float(value) for key, value in json.loads((folder / name).read_text()).items()}
        except (OSError, ValueError, AttributeError):
            continue
    rates = _measure()
    for folder in cache_folders():
        try:
            write_json(folder / name, rates)
            break
        except OSError:
            continue
    return rates


def describe_choice(config: TransformerConfig, device: str, dtype: torch.dtype) -> str:
    """In words how a network computes on a device in `dtype`, and why."""
    name = str(dtype).removeprefix("torch.")
    if torch.device(device).type != "cpu":
        return f"{name}, plain torch"
    ops = select_operations(config.width, config.head_dim, config.ffn_width, torch.device(device), dtype)
    rates = ", ".join(f"{rate:.0f} in {product}" for product, rate in measure_products().items())
    compiled = "compiled C++" if ops.rms_norm is not PLAIN.rms_norm else f"plain torch ({_why_not()})"
    library = "oneDNN" if ops.linear is not PLAIN.linear else "torch's own choice"
    return f"{name} (one core multiplies at {rates} GFLOP/s); products by {library}, the rest by {compiled}"


def _why_not() -> str:
    return (
        "no C++ compiler, or SANA_WM_NATIVE=0"
        if find_compiler() is None
        else "the sizes or the device do not suit the compiled ones"
    )


@torch.inference_mode()
def _measure() -> dict[str, float]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rates = {"float32": _rate(F.linear, torch.float32)}
        if linear.has_onednn():
            rates["float32 by oneDNN"] = _rate(linear.multiply, torch.float32)
        return rates | {"bfloat16": _rate(F.linear, torch.bfloat16)}
    finally:
        torch.set_num_threads(threads)


def _rate(product: Callable[..., torch.Tensor], dtype: torch.dtype) -> float:
    """The best of several tries: other work on the machine can only slow one down."""
    x, weight = (
        torch.randn(
            size, INPUTS, dtype=torch.float32, device="cpu", generator=torch.Generator().manual_seed(0)
        ).to(dtype)
        for size in (ROWS, OUTPUTS)
    )
    call, best = partial(product, x, weight), float("inf")
    for _ in range(12):
        began = time.perf_counter()
        for _ in range(3):
            call()
        best = min(best, (time.perf_counter() - began) / 3)
    return round(2 * ROWS * INPUTS * OUTPUTS / best / 1e9, 1)
