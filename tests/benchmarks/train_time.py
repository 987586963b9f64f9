"""Where the time of a training step of `bidirectional` goes: python tests/benchmarks/train_time.py [--batches
4 8 16] [--precision fp32].

One process on one core, from the bundled world, at several batches of a process. The floor is the time that
the products of forward and backward alone would take at the rate that one core reaches in a product of the
bundled world's size.
"""

import tempfile
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch
import tyro
from step_time import processor
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from sana_wm_env.model.kernels.operations import PLAIN
from sana_wm_env.model.kernels.select import measure_products
from sana_wm_env.model.world import WorldModel
from sana_wm_env.train.bidirectional import BidirectionalConfig, BidirectionalStage
from sana_wm_env.train.loop import LoopConfig, _average
from sana_wm_env.train.optim import optimisers
from sana_wm_env.train.precision import Precision
from sana_wm_env.train.processes import start_processes

PARTS = ("forward", "backward", "optimiser", "average")


@dataclass(frozen=True)
class TrainTimeConfig:
    """What is timed."""

    batches: tuple[int, ...] = (4, 8, 16)
    """samples of a step"""
    precision: Precision = "auto"
    compile: bool = False
    """with torch's compiler in place of the compiled operations; the first step takes minutes"""
    steps: int = 6
    """timed steps of each"""


def stage_of(runs: Path, config: TrainTimeConfig) -> BidirectionalStage:
    """A stage that begins with the bundled world, on one clip file."""
    home = runs / "rooms" / "autoencoder"
    home.mkdir(parents=True)
    autoencoder = WorldModel.load("rooms").autoencoder
    torch.save(
        {"config": asdict(autoencoder.config), "weights": autoencoder.state_dict()}, home / "autoencoder.pt"
    )
    loop = LoopConfig(precision=config.precision, compile=config.compile)
    return BidirectionalStage(BidirectionalConfig(runs=runs, shards=1, loop=loop, init_from="rooms"))


def time_steps(stage: BidirectionalStage, batch: int, steps: int) -> dict[str, float]:
    """Median seconds of each part."""
    makers = optimisers(stage.model, stage.config.loop.optim, stage.parts)
    average = {name: value.detach().clone() for name, value in stage.model.state_dict().items()}
    rows: list[list[float]] = []
    for step in tqdm(range(steps + 2), desc=f"batch {batch}", leave=False):
        times = [time.perf_counter()]
        for one in makers:
            one.zero_grad(set_to_none=True)
        loss, _ = stage.loss(batch, torch.Generator().manual_seed(step))
        times.append(time.perf_counter())
        loss.backward()
        times.append(time.perf_counter())
        for one in makers:
            one.step()
        times.append(time.perf_counter())
        _average(average, stage.model, 0.995)
        times.append(time.perf_counter())
        rows.append([b - a for a, b in pairwise(times)])
    return dict(zip(PARTS, (median(column) for column in zip(*rows[2:], strict=True)), strict=True))


def floor_of(stage: BidirectionalStage, batch: int) -> float:
    """Seconds that the products of a step take: three times those of its forward, counted on the plain
    operations.
    """
    dtype = stage.network.dtype
    rates = measure_products()
    rate = (
        rates["bfloat16"]
        if dtype == torch.bfloat16
        else max(rates["float32"], rates.get("float32 by oneDNN", 0))
    )
    stage.network.prepare(dtype, operations=PLAIN)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        stage.loss(batch, torch.Generator().manual_seed(0))
    stage.prepare(stage.network)
    return 3 * counter.get_total_flops() / rate / 1e9


def main(config: TrainTimeConfig) -> None:
    """Prints a row for each batch."""
    start_processes()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as runs:
        stage = stage_of(Path(runs), config)
        print(
            f"{processor('cpu')}, one core, "
            f"{str(stage.network.dtype).removeprefix('torch.')}{', compiled' * config.compile}\n"
        )
        print(
            f"| batch | {' | '.join(PARTS)} | a step, s | samples/s | floor, s "
            f"|\n|{'---|' * (len(PARTS) + 4)}",
            flush=True,
        )
        for batch in config.batches:
            parts = time_steps(stage, batch, config.steps)
            total = sum(parts.values())
            shares = " | ".join(f"{seconds / total:.0%}" for seconds in parts.values())
            floor = "" if config.compile else f"{floor_of(stage, batch):.3f}"
            print(f"| {batch} | {shares} | {total:.3f} | {batch / total:.1f} | {floor} |", flush=True)


if __name__ == "__main__":
    main(tyro.cli(TrainTimeConfig, description=__doc__))
