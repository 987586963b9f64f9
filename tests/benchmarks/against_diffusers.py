"""One step against recomputing the clip with diffusers: python tests/benchmarks/against_diffusers.py
[--latents 3 30 120].

The same weights, float32, one process, interleaved. Ours is what an environment's step asks of the network,
cameras and noise included: four passes over the new chunk and a clean one, on a full window. Theirs is
SanaWMTransformer3DModel, which has no state: four passes over the whole clip that ends with the new chunk. A
clip of one chunk has nothing to recompute; there theirs makes the clean pass as well, so that the same five
are compared (with four of theirs the ratio is four fifths of that). It casts its softmax attention to
bfloat16, which few CPUs have; here it is left in float32, unless --shipped. Frames are not decoded on either
side. On a busy machine look at the processor time, with --threads 1.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from unittest.mock import patch

import torch
import tyro
from step_time import processor
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from sana_wm_env.model.camera_inputs import camera_inputs
from sana_wm_env.model.cores import run_apart
from sana_wm_env.model.kernels.operations import PLAIN
from sana_wm_env.model.kernels.select import measure_products
from sana_wm_env.model.storage.worlds import write_config, write_transformer
from sana_wm_env.model.world import WorldModel, WorldState

WANTED = {3: 2.5, 30: 20.0, 120: 170.0}
STILL = torch.eye(4, dtype=torch.float64)


@dataclass(frozen=True)
class AgainstConfig:
    """What is timed."""

    latents: tuple[int, ...] = (3, 30, 120)
    """lengths of the clip in latent frames, the new chunk included"""
    rounds: tuple[int, ...] = (7, 3, 1)
    """interleaved repetitions at each length"""
    world: str = "rooms"
    """name of a bundled world, or the folder of a trained one"""
    threads: int = 0
    """torch threads, 0 for torch's own choice"""
    shipped: bool = False
    """leave diffusers' attention in bfloat16, as it is shipped"""


def session(world: WorldModel) -> WorldState:
    """A session whose window is full."""
    image = torch.randint(
        256, (1, *world.config.image_size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    height, width = world.config.image_size
    state = world.start(
        image, torch.tensor([[width, width, width / 2, height / 2]]), ["a red box"], [torch.Generator()]
    )
    for _ in range(2):
        state = world.generate_latents(state, STILL.repeat(1, 24, 1, 1))[1]
    return state


def recompute(world: WorldModel, folder: Path, latents: int, clean_pass: bool) -> Callable[[], Tensor]:
    """Four passes of diffusers' class with the world's weights over a clip of so many latent frames; a fifth
    at timestep 0 if asked.
    """
    from diffusers import SanaWMTransformer3DModel

    write_transformer(folder, world.transformer.state_dict().items(), "diffusers")
    write_config(folder, world.config, "diffusers")
    model, config = SanaWMTransformer3DModel.from_pretrained(folder / "transformer").eval(), world.config
    height, width = config.image_size
    intrinsics = torch.tensor([[width, width, width / 2, height / 2]], dtype=torch.float64)
    camera, plucker = camera_inputs(
        STILL.repeat(1, 8 * (latents - 1) + 1, 1, 1), intrinsics, config.image_size, config.grid
    )
    data = {"camera_conditions": camera.float(), "chunk_plucker": plucker.float()}
    features, mask = world.text_encoder.encode(["a red box"])
    noise = torch.randn(
        1, config.transformer.in_channels, latents, *config.grid, generator=torch.Generator().manual_seed(0)
    )

    @torch.inference_mode()
    def run() -> Tensor:
        x = noise
        for now, then in zip(config.sigmas, config.sigmas[1:], strict=False):
            timestep = torch.full((1, 1, latents), 1000 * now)
            x = x - (now - then) * model(x, timestep, features[:, None], mask.float(), **data).sample
        if clean_pass:
            model(x, torch.zeros_like(timestep), features[:, None], mask.float(), **data)
        return x

    return run


def clocked(function: Callable[[], object]) -> tuple[float, float]:
    """Seconds of one call by the clock on the wall, and of all processors."""
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - wall, time.process_time() - cpu


def measure(config: AgainstConfig) -> None:
    """Prints the figures."""
    if config.threads:
        torch.set_num_threads(config.threads)
    world = WorldModel.load(config.world, dtype=torch.float32)
    state, poses = session(world), STILL.repeat(1, 24, 1, 1)

    def step() -> object:
        return world.generate_latents(state, poses)[
            1
        ].transformer  # asked for, so that the clean pass is made

    def count() -> int:
        with FlopCounterMode(display=False) as counter:
            step()
        return counter.get_total_flops()

    world.transformer.prepare(
        operations=PLAIN
    )  # the counter knows torch's own operations, in the thread that runs them
    gflop = run_apart(count) / 1e9
    world.transformer.prepare()
    print(f"{processor('cpu')}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(
        f"{config.world}: {sum(p.numel() for p in world.transformer.parameters()) / 1e6:.1f} M parameters, "
        f"{gflop:.1f} GFLOP a step"
    )
    best = float("inf")
    for latents, rounds in zip(config.latents, config.rounds, strict=True):
        clean_pass = latents <= world.latents_per_step
        with TemporaryDirectory() as folder:
            theirs = recompute(world, Path(folder), latents, clean_pass)
        times: dict[str, list[tuple[float, float]]] = {"ours": [], "theirs": []}
        for _ in tqdm(range(rounds), desc=f"{latents} latent frames"):
            times["ours"].append(clocked(step))
            times["theirs"].append(clocked(theirs))
        best = min(best, *(wall for wall, _ in times["ours"]))
        lines = []
        for clock, name in enumerate(("wall", "processor time")):
            ours, peer = ([run[clock] for run in times[side]] for side in ("ours", "theirs"))
            lines.append(
                f"{name} {min(ours):.3f} s against {min(peer):.3f} s: {min(peer) / min(ours):.4g}x at best, "
                f"{median(peer) / median(ours):.4g}x in the median"
            )
        wanted = f" (wanted {WANTED[latents]}x)" if latents in WANTED else ""
        passes = len(world.config.sigmas) - 1 + clean_pass
        print(
            f"{latents} latent frames, {passes} passes of theirs, {rounds} rounds{wanted}: {'; '.join(lines)}"
        )
    rates = measure_products()
    ceiling = max(rates["float32"], rates.get("float32 by oneDNN", 0))
    print(
        f"ours: {gflop / best:.0f} GFLOP/s at best, {gflop / best / ceiling:.0%} of {ceiling:.0f} GFLOP/s of "
        "a Linear on one core"
    )


if __name__ == "__main__":
    config = tyro.cli(AgainstConfig, description=__doc__)
    if config.shipped:
        measure(config)
    else:
        with patch.object(torch.Tensor, "bfloat16", lambda tensor: tensor):
            measure(config)
