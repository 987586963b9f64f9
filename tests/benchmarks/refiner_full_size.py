"""One block of the published refiner, random weights: python tests/benchmarks/refiner_full_size.py [--device
cuda --grid 22 40 --layers 48].

A block is three latent frames behind a full window of eleven, all passes: the levels of the sampler and the
one that leaves keys and values. Beside each figure stands what is computed for all 48 layers. On a CPU one
layer on a small grid tells; a card takes them all, or with --blocks one at a time out of a file.
"""

import resource
import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

from sana_wm_env.commands.doctor import matmul_tflops
from sana_wm_env.model.codecs.refiner import BlocksInFiles
from sana_wm_env.model.memory import GB, refiner_bytes
from sana_wm_env.model.network.refiner import RefinerConfig, RefinerNetwork
from sana_wm_env.model.refiner import Refiner
from sana_wm_env.model.storage.weights import WeightFiles
from sana_wm_env.progress import progress


@dataclass(frozen=True)
class FullSizeConfig:
    """What is timed."""

    device: str = "cpu"
    grid: tuple[int, int] = (4, 6)
    """latent height and width; 22 40 is 704 x 1280"""
    layers: int = 1
    """of 48"""
    dtype: str = "bfloat16"
    steps: int = 3
    """timed blocks of frames after the window is full; the best counts"""
    blocks: bool = False
    """leave the layers in a file and take one after the other onto the device"""


class Prompt:
    """1024 tokens of random features, in place of Gemma-3 and its connectors."""

    def encode(self, prompts):
        generator = torch.Generator().manual_seed(1)
        words = torch.randn(1, 1024, 3840, generator=generator).expand(len(prompts), -1, -1)
        return words, torch.ones(len(prompts), 1024, dtype=torch.bool)


def random_network(config: RefinerConfig, dtype: torch.dtype, device: str) -> RefinerNetwork:
    """A network whose weights repeat one piece of random numbers: drawing all of them would take longer than
    to run it.
    """
    with torch.device("meta"):
        network = RefinerNetwork(config).to(dtype)
    network.to_empty(device=device)
    piece = (0.02 * torch.randn(2**20 - 1, generator=torch.Generator().manual_seed(0))).to(device, dtype)
    for tensor in network.parameters():
        flat = tensor.data.view(-1)
        for start in range(0, len(flat), len(piece)):
            flat[start : start + len(piece)] = piece[: len(flat) - start]
    return network


@torch.inference_mode()
def main(config: FullSizeConfig) -> None:
    dtype, published = getattr(torch, config.dtype), RefinerConfig()
    sizes = replace(published, num_layers=config.layers)
    network = random_network(sizes, dtype, config.device)
    with tempfile.TemporaryDirectory() as folder:
        if config.blocks:
            file = Path(folder) / "blocks.safetensors"
            save_file({name: t.cpu() for name, t in network.state_dict().items()}, file)
            files = WeightFiles((file,))
            with torch.device("meta"):
                empty = RefinerNetwork(sizes)
            network.transformer_blocks = BlocksInFiles(empty, files, dtype, torch.device(config.device))
        time_blocks(config, Refiner(network, Prompt()), sizes, published)


def time_blocks(
    config: FullSizeConfig, refiner: Refiner, sizes: RefinerConfig, published: RefinerConfig
) -> None:
    """Fills the window, then times blocks of frames."""
    dtype = getattr(torch, config.dtype)
    frames = torch.randn(1, sizes.in_channels, 1 + sizes.block, *config.grid).to(config.device)
    state, best, flops = refiner.start(frames[:, :, :1], [""]), float("inf"), 0
    fills = -(-(sizes.window - 1) // sizes.block)
    for step in progress(range(fills + config.steps), desc="blocks of frames", unit="block"):
        counter = FlopCounterMode(display=False) if step < fills else nullcontext()
        began = time.perf_counter()
        with counter:
            _, remember = refiner.refine(frames[:, :, 1:], state)
            state = remember()
        if config.device != "cpu":
            torch.cuda.synchronize()
        if isinstance(counter, FlopCounterMode):
            flops = counter.get_total_flops()  # of the last one: its window is full but for a frame or two
        else:
            best = min(best, time.perf_counter() - began)
    here, whole = (refiner_bytes(each, config.grid, dtype) for each in (sizes, published))
    times, rate = published.num_layers / sizes.num_layers, matmul_tflops(config.device, dtype)
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if config.device != "cpu":
        peak = torch.cuda.max_memory_allocated()
    rows = {
        "weights, GB": (here[0] / GB, whole[0] / GB),
        "weights with blocks in files, GB": (here[1] / GB, whole[1] / GB),
        "window, GB": (here[2] / GB, whole[2] / GB),
        "transient, GB": (here[3] / GB, whole[3] / GB),
        "operations, TFLOP": (flops / 1e12, times * flops / 1e12),
        "time, s": (best, times * best),
        "products alone, s": (flops / 1e12 / rate, times * flops / 1e12 / rate),
    }
    print(f"{config.device}, {config.dtype}, grid {config.grid}, {sizes.num_layers} of 48 layers")
    print(f"{'':<34}{'these':>10}{'48 layers':>12}")
    for name, (few, all_layers) in rows.items():
        print(f"{name:<34}{few:>10.3f}{all_layers:>12.3f}")
    print(f"{'peak of this process, GB':<34}{peak / GB:>10.3f}")


if __name__ == "__main__":
    main(tyro.cli(FullSizeConfig, description=__doc__))
