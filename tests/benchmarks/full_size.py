"""One step of the 2.6b network, random weights: python tests/benchmarks/full_size.py [--device cuda --grid 22
40].

Four denoising passes and the clean one of a chunk on a full window, cameras included, frames not decoded.
Beside each figure stands a floor: products at the rate that this device reaches in the same run, or reading
every weight once, whichever takes longer.
"""

import json
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import tyro
from step_time import processor
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from sana_wm_env.commands.doctor import matmul_tflops
from sana_wm_env.model.camera_inputs import camera_inputs
from sana_wm_env.model.config import TransformerConfig, preset
from sana_wm_env.model.contexts import CameraContext, TextContext
from sana_wm_env.model.memory import session_bytes, weight_bytes
from sana_wm_env.model.network.transformer import Transformer
from sana_wm_env.model.sampler import STREAMING_SIGMAS, frame_timesteps
from sana_wm_env.model.state import TransformerState


@dataclass(frozen=True)
class FullSizeConfig:
    """What is timed."""

    preset: str = "2.6b"
    """row of the preset table"""
    device: str = "cpu"
    grid: tuple[int, int] = (4, 6)
    """latent height and width; 22 40 is 704 x 1280"""
    dtype: str = "bfloat16"
    steps: int = 1
    """timed steps; the best counts"""
    threads: int = 0
    """torch threads, 0 for torch's own choice"""
    json: Path | None = None
    """write the figures here as well"""


def random_network(config: TransformerConfig, dtype: torch.dtype, device: str) -> Transformer:
    """A network whose weights repeat one block of random numbers: drawing all of them would take longer than
    the step.
    """
    with torch.device("meta"):
        network = Transformer(config).to(dtype)
    network.to_empty(device=device)
    block = (0.02 * torch.randn(2**20 - 1, generator=torch.Generator().manual_seed(0))).to(device, dtype)
    for tensor in (*network.parameters(), *network.buffers()):
        flat = tensor.data.view(-1)
        for start in range(0, len(flat), len(block)):
            flat[start : start + len(block)] = block[: len(flat) - start]
    return network.eval().requires_grad_(False)


class Session:
    """What a step needs beside the network: cameras that stand still, noise, the prompt."""

    def __init__(self, network: Transformer, config: FullSizeConfig):
        self.network, self.config, self.sizes = network, config, network.config
        made = torch.Generator().manual_seed(1)
        words = torch.randn(1, self.sizes.text_tokens, self.sizes.text_width, generator=made)
        self.text: TextContext = network.text_context(
            words.to(config.device), torch.ones(1, self.sizes.text_tokens, device=config.device)
        )

    def chunk(self, state: TransformerState | None) -> tuple[Tensor, CameraContext]:
        """Noise and cameras of the chunk after `state`."""
        frames, height, width = self.sizes.chunk + (state is None), *self.config.grid
        poses = torch.eye(4, dtype=torch.float64).repeat(
            1, 8 * (frames - 1) + 1 if state is None else 8 * frames, 1, 1
        )
        intrinsics = torch.tensor(
            [[32.0 * width, 32.0 * width, 16.0 * width, 16.0 * height]], dtype=torch.float64
        )
        inputs = camera_inputs(
            poses.to(self.config.device),
            intrinsics,
            (32 * height, 32 * width),
            self.config.grid,
            state is None,
        )
        noise = torch.randn(
            1, self.sizes.in_channels, frames, height, width, generator=torch.Generator().manual_seed(2)
        )
        return noise.to(self.config.device), self.network.camera_context(
            *inputs, 0 if state is None else state.next_frame
        )


def now(device: str, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds, after the device has done what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return clock()


def timed_step(session: Session, state: TransformerState, progress: Any) -> tuple[list[float], float, float]:
    """Seconds of every pass, of the whole step, and of all processors in it."""
    network, device = session.network, session.config.device
    began, spent, passes = now(device), time.process_time(), []
    x, cameras = session.chunk(state)
    for high, low in pairwise(STREAMING_SIGMAS):
        start = now(device)
        x = (
            x
            - (high - low)
            * network.stream(x, frame_timesteps(high, x, None), session.text, cameras, state).float()
        )
        passes.append(now(device) - start)
        progress.update()
    start = now(device)
    network.commit(x, session.text, cameras, state)
    passes.append(now(device) - start)
    progress.update()
    assert x.isfinite().all()
    return passes, now(device) - began, time.process_time() - spent


def pass_flops(config: TransformerConfig, options: FullSizeConfig) -> int:
    """Operations of one denoising pass on a full window, counted on tensors that have sizes only."""
    with torch.device("meta"), torch.no_grad():
        session = Session(Transformer(config), FullSizeConfig(options.preset, "meta", options.grid))
        state = None
        for _ in range(config.num_cached_blocks):
            x, cameras = session.chunk(state)
            state = session.network.commit(x, session.text, cameras, state)
        x, cameras = session.chunk(state)
        with FlopCounterMode(display=False) as counter:
            session.network.stream(x, torch.zeros(1, config.chunk), session.text, cameras, state)
    return counter.get_total_flops()


def read_rate(device: str) -> float:
    """Bytes per second at which memory is read, on a CPU by one thread for the time that it has."""
    data, best = torch.ones(2**27, device=device), float("inf")
    clock = time.perf_counter if device.startswith("cuda") else time.process_time
    for _ in range(5):
        start = now(device, clock)
        data.sum()
        best = min(best, now(device, clock) - start)
    return data.nbytes / best


def resident() -> int:
    """Bytes of this process in memory at most so far (Linux)."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@torch.inference_mode()
def measure(options: FullSizeConfig) -> dict[str, Any]:
    """The figures."""
    if options.threads:
        torch.set_num_threads(options.threads)
    config = preset(options.preset)
    dtype = getattr(torch, options.dtype)
    cuda = options.device.startswith("cuda")
    flops, weights = pass_flops(config, options), weight_bytes(config, dtype)
    before = resident()
    session = Session(random_network(config, dtype, options.device), options)
    state = None
    with tqdm(total=config.num_cached_blocks + 5 * options.steps, desc="passes", unit="pass") as progress:
        for _ in range(config.num_cached_blocks):
            x, cameras = session.chunk(state)
            state = session.network.commit(x, session.text, cameras, state)
            progress.update()
        runs = [timed_step(session, state, progress) for _ in range(options.steps)]
    passes, step, processors = min(runs, key=lambda run: run[1])
    peak = torch.cuda.max_memory_allocated(options.device) if cuda else resident() - before
    rate, reading = 1e12 * matmul_tflops(options.device, dtype), read_rate(options.device)
    carried, transient = session_bytes(config, options.grid, dtype)
    floor = max(flops / rate, weights / reading)
    return {
        "machine": f"{processor(options.device)}, {torch.get_num_threads()} threads, torch "
        f"{torch.__version__}",
        "what": f"{options.preset} in {options.dtype}, grid {options.grid[0]} x {options.grid[1]}, "
        f"{flops / 1e9:.0f} GFLOP a pass",
        "ceilings": f"{rate / 1e9:.0f} GFLOP/s of a Linear, {reading / 1e9:.1f} GB/s read, both in this run",
        "pass_ms": [1000 * seconds for seconds in passes],
        "step_ms": 1000 * step,
        "step_processor_ms": 1000 * processors,
        "pass_floor_ms": 1000 * floor,
        "step_over_floor": step / (5 * floor),
        "peak_bytes": peak,
        "computed_bytes": {
            "weights": weights,
            "state": carried,
            "pass": transient,
            "sum": weights + carried + transient,
        },
    }


def in_words(found: dict[str, Any]) -> str:
    """The figures as text."""
    passes = ", ".join(f"{ms:.0f}" for ms in found["pass_ms"])
    computed = found["computed_bytes"]
    return "\n".join(
        [
            found["machine"],
            f"{found['what']}; {found['ceilings']}",
            f"passes {passes} ms (the last one is the clean pass); floor "
            f"{found['pass_floor_ms']:.0f} ms each",
            f"step {found['step_ms']:.0f} ms ({found['step_processor_ms']:.0f} ms of processors), "
            f"{found['step_over_floor']:.2f} times the floor of its five passes",
            f"peak {found['peak_bytes'] / 1e9:.2f} GB; computed {computed['sum'] / 1e9:.2f} GB: weights "
            f"{computed['weights'] / 1e9:.2f}, "
            f"state {computed['state'] / 1e9:.2f}, pass {computed['pass'] / 1e9:.2f}",
        ]
    )


if __name__ == "__main__":
    options = tyro.cli(FullSizeConfig, description=__doc__)
    found = measure(options)
    print(in_words(found))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
