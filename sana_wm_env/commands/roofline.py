"""`sana-wm roofline`: the least time that a step can take on a GPU in each precision, on paper.

A product takes as long as its operations at the card's rate, or as moving its bytes, whichever is longer;
products follow one another. In few bits the rounding of activations counts as bytes: they are read wide, and
written and read once more as codes. Everything that is not quantised (attention, the delta rule, the camera
branch, convolutions) runs at the rate of bfloat16 and reads its weights and the session's state once.

Rates are dense, sums in float32, as the maker states them: RTX Blackwell architecture paper for the RTX 5090,
data sheets for H100 SXM and HGX B200.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from sana_wm_env.model.config import TransformerConfig, WorldConfig, preset
from sana_wm_env.model.kernels.formats import PRECISIONS, Precision, pack
from sana_wm_env.model.kernels.tensor_cores import refuse
from sana_wm_env.model.memory import empty_session, need
from sana_wm_env.model.network.transformer import Transformer
from sana_wm_env.model.quantize import find_layers, weight_of
from sana_wm_env.model.storage.layouts import published_world

from ..numbers import to_whole
from ..settings import check_settings

CHUNK_S, MINUTE = 1.5, 40  # seconds of video in a step, steps in a minute


class Card(NamedTuple):
    """tflops: dense, by what is multiplied. gb_per_s: of its memory, of which there are memory_gb."""

    name: str
    capability: tuple[int, int]
    tflops: dict[str, float]
    gb_per_s: float
    memory_gb: float


CARDS = {
    "rtx5090": Card(
        "GeForce RTX 5090",
        (12, 0),
        {"bfloat16": 209.5, "fp8": 419, "mxfp8": 419, "nvfp4": 1676, "int8": 838},
        1792,
        32,
    ),
    "h100": Card("H100 SXM", (9, 0), {"bfloat16": 989.4, "fp8": 1979, "int8": 1979}, 3350, 80),
    "b200": Card(
        "B200",
        (10, 0),
        {"bfloat16": 2250, "fp8": 4500, "mxfp8": 4500, "nvfp4": 9000, "int8": 4500},
        8000,
        180,
    ),
}


@dataclass(frozen=True)
class RooflineConfig:
    """The least time of a step on named GPUs, by precision. Computed, nothing is run on a GPU.

    Attributes:
        preset: row of the preset table.
        grid: latent height and width; 22 40 is 704 x 1280.
        cards: some of rtx5090, h100, b200.
    """

    preset: str = "2.6b"
    grid: tuple[int, int] = (22, 40)
    cards: tuple[str, ...] = tuple(CARDS)

    def __post_init__(self) -> None:
        """Raises ValueError for values out of range."""
        check_settings(self, grid="[1, inf)")


class Pass(NamedTuple):
    """Work of one pass over a chunk: operations and bytes of each quantised product, and of everything else
    together.
    """

    products: list[tuple[int, int]]
    other: tuple[int, int]


def count_pass(
    config: TransformerConfig, grid: tuple[int, int], state_bytes: int, precision: Precision | None
) -> Pass:
    """One denoising pass on a full window, the products that a precision holds apart from the rest, which is
    in bfloat16.
    """
    rows = config.chunk * grid[0] * grid[1]
    with torch.device("meta"):
        network = Transformer(config).bfloat16()
        names = [
            name for name in find_layers(network, precision or "fp8") if "kv_linear" not in name
        ]  # once per prompt
        layers = [weight_of(network, name) for name in names]
        products = [_count_product(rows, weight, precision) for weight in layers]
    total = count_pass_flops(network, grid)
    others = sum(t.nbytes for t in network.state_dict().values()) - sum(t.nbytes for t in layers)
    return Pass(products, (total - sum(flops for flops, _ in products), others + state_bytes))


def _count_product(rows: int, weight: torch.Tensor, precision: Precision | None) -> tuple[int, int]:
    outputs, inputs = weight.shape
    flops, wide = 2 * rows * outputs * inputs, 2 * rows * (inputs + outputs)  # bfloat16 in and out
    if precision is None:
        return flops, wide + weight.nbytes
    packed_bytes = sum(part.nbytes for part in pack(weight, precision) if part is not None)
    codes = sum(
        part.nbytes for part in pack(torch.empty(rows, inputs, device="meta"), precision) if part is not None
    )
    return flops, wide + packed_bytes + 2 * codes


def count_pass_flops(network: Transformer, grid: tuple[int, int]) -> int:
    """Operations of a denoising pass on a full window by torch's counter; the network stands on the meta
    device.
    """
    chunk, state = empty_session(network, grid)
    x, text, cameras = chunk
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.stream(x, torch.zeros(1, x.shape[2]), text, cameras, state)
    return counter.get_total_flops()


def bound_seconds(work: Pass, card: Card, precision: Precision | None) -> float:
    """The least time of a pass."""

    def longest(flops: int, size: int, rate: float) -> float:
        return max(flops / rate / 1e12, size / card.gb_per_s / 1e9)

    narrow = card.tflops[precision or "bfloat16"]
    return sum(longest(*product, narrow) for product in work.products) + longest(
        *work.other, card.tflops["bfloat16"]
    )


def run(config: RooflineConfig) -> None:
    """Prints a table per card, and the commands that measure."""
    if unknown := sorted(set(config.cards) - set(CARDS)):
        raise ValueError(f"got --cards {unknown[0]}; wanted some of {', '.join(CARDS)}")
    for side in config.grid:
        to_whole(side, "--grid", 1, 1024)
    world = published_world(config.preset, preset(config.preset))
    steps, (height, width) = len(world.sigmas) - 1, config.grid
    print(
        f"{config.preset}, {height} x {width} cells, {steps} denoising passes and the clean one; "
        "decoding not counted"
    )
    settings: tuple[Precision | None, ...] = (None, *PRECISIONS)
    work: dict[Precision | None, tuple[Pass, int]] = {
        precision: _work(world, config.grid, precision) for precision in settings
    }
    flops = sum(f for f, _ in work[None][0].products) + work[None][0].other[0]
    share = sum(f for f, _ in work[None][0].products) / flops
    print(f"{flops / 1e12:.2f} TFLOP a pass, {share:.0%} of them in the layers that are quantised\n")
    for name in config.cards:
        card = CARDS[name]
        rates = ", ".join(f"{rate:g} in {what}" for what, rate in card.tflops.items())
        print(f"{card.name}: {card.gb_per_s:g} GB/s, dense TFLOP/s {rates}")
        print(
            f"  {'precision':<12}{'weights GB':>12}{'pass ms':>10}{'step ms':>10}"
            f"{'x realtime':>12}{'a minute s':>12}"
        )
        for precision, (passed, size) in work.items():
            label = precision or "bfloat16"
            if precision and refuse(precision, card.name, card.capability, True):
                print(f"  {label:<12}{size / 1e9:>12.2f}   its tensor cores do not multiply it")
                continue
            seconds = bound_seconds(passed, card, precision)
            step = (steps + 1) * seconds
            print(
                f"  {label:<12}{size / 1e9:>12.2f}{1e3 * seconds:>10.1f}{1e3 * step:>10.1f}"
                f"{CHUNK_S / step:>12.1f}{MINUTE * step:>12.2f}"
            )
        print()
    print(
        "to measure: python tests/benchmarks/precision_speed.py --device cuda "
        f"--preset {config.preset} --grid {height} {width} --precisions bfloat16 fp8 nvfp4\n"
        "published: 34 s for the denoising of a minute on an RTX 5090 in NVFP4 (arXiv 2605.15178)"
    )


def _work(world: WorldConfig, grid: tuple[int, int], precision: Precision | None) -> tuple[Pass, int]:
    needed = need(world, torch.bfloat16, precision)
    return count_pass(world.transformer, grid, needed.state, precision), needed.transformer
