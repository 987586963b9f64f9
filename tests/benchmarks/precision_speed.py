"""Each precision against the others on this machine, taking turns: python
tests/benchmarks/precision_speed.py [--device cuda].

Products: one layer of a preset with all that belongs to it (rounding of activations, bias), on as many rows
as a chunk has. Steps: whole chunks of a world. In every round each precision has its turn, the order reversed
in every second one, and the best and the median of all rounds count: other work on the machine can only slow
a turn down.

On a CPU "fp8", "nvfp4" and "mxfp8" are exact emulations, there for what they compute and not for speed.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import tyro
from step_time import processor
from timing import seconds
from torch import Tensor, nn
from tqdm import tqdm

from sana_wm_env.model.config import preset
from sana_wm_env.model.kernels.formats import PRECISIONS
from sana_wm_env.model.kernels.operations import Linear
from sana_wm_env.model.kernels.quantized import QuantizedLinear
from sana_wm_env.model.kernels.select import SMALL_WIDTH, select_operations
from sana_wm_env.model.world import WorldModel


@dataclass(frozen=True)
class SpeedConfig:
    """What is timed."""

    preset: str = "rooms"
    """row of the preset table whose layers are multiplied"""
    grid: tuple[int, int] = (8, 8)
    """latent height and width: three frames of it are the rows of a product"""
    precisions: tuple[str, ...] = ("float32", "bfloat16", "int8")
    """dtypes and precisions"""
    device: str = "cpu"
    rounds: int = 20
    threads: int = 1
    """torch threads of products on a CPU; steps choose their own"""
    world: str | None = None
    """time steps of this world as well, such as "rooms" """
    json: Path | None = None
    """write the figures here as well"""


def make_layer(inputs: int, outputs: int, name: str, config: SpeedConfig) -> tuple[nn.Module, Tensor]:
    """A layer in a precision, prepared as a network would, and activations for it."""
    sizes, device = preset(config.preset), torch.device(config.device)
    dtype = torch.float32 if name == "float32" else torch.bfloat16
    made = torch.Generator().manual_seed(0)
    wide = Linear(inputs, outputs)
    wide.weight.data = torch.randn(outputs, inputs, generator=made) * inputs**-0.5
    wide = wide.to(device, dtype).requires_grad_(False)
    layer: Any = QuantizedLinear(wide.weight, wide.bias, name) if name in PRECISIONS else wide  # type: ignore[arg-type]
    layer.ops = select_operations(sizes.width, sizes.head_dim, sizes.ffn_width, device, dtype)
    if sizes.width <= SMALL_WIDTH:  # as `Transformer.prepare` does
        layer.pack()
    rows = torch.randn(1, sizes.chunk, config.grid[0] * config.grid[1], inputs, generator=made)
    return layer, rows.to(device, dtype)


def take_turns(
    calls: dict[str, Callable[[], Any]], rounds: int, device: str, label: str
) -> dict[str, dict[str, float]]:
    """Milliseconds of each call, best and median."""
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for i in tqdm(range(rounds), desc=label, unit="round", leave=False):
        for name in reversed(calls) if i % 2 else calls:
            spent[name].append(seconds(calls[name], device))
    return {name: {"best": 1e3 * min(times), "median": 1e3 * median(times)} for name, times in spent.items()}


@torch.no_grad()
def measure(config: SpeedConfig) -> dict[str, Any]:
    """The figures."""
    sizes, before = preset(config.preset), torch.get_num_threads()
    shapes = {
        "attn.qkv": (sizes.width, 3 * sizes.width),
        "attn.proj": (sizes.width, sizes.width),
        "mlp.inverted_conv": (sizes.width, 2 * sizes.ffn_width),
        "mlp.point_conv": (sizes.ffn_width, sizes.width),
    }
    found: dict[str, Any] = {}
    torch.set_num_threads(config.threads)
    for name, (inputs, outputs) in shapes.items():
        layers = {
            precision: make_layer(inputs, outputs, precision, config) for precision in config.precisions
        }
        calls = {precision: (lambda layer=layer, x=x: layer(x)) for precision, (layer, x) in layers.items()}
        found[f"{name} {inputs} to {outputs}"] = take_turns(calls, config.rounds, config.device, name)
    torch.set_num_threads(before)
    if config.world:
        found[f"step of {config.world}"] = take_turns(
            {precision: stepper(config.world, precision, config.device) for precision in config.precisions},
            config.rounds,
            config.device,
            "steps",
        )
    rows = sizes.chunk * config.grid[0] * config.grid[1]
    machine = {
        "processor": processor(config.device),
        "torch": torch.__version__,
        "threads": config.threads,
        "rows": rows,
    }
    return {"machine": machine, "ms": found}


def stepper(world: str, name: str, device: str) -> Callable[[], Any]:
    """A call that imagines the next chunk of a session, whose clean pass is made as well."""
    precision: Any = name if name in PRECISIONS else None
    dtype = torch.float32 if name == "float32" else torch.bfloat16
    model = WorldModel.load(world, device, dtype, precision=precision)
    images = torch.zeros(1, *model.config.image_size, 3, dtype=torch.uint8)
    lens = torch.tensor([[50.0, 50.0, 32.0, 32.0]])
    still = torch.eye(4, dtype=torch.float64).repeat(1, model.frames_per_step, 1, 1)
    state = model.start(images, lens, ["a room"], [torch.Generator().manual_seed(0)])

    def step() -> None:
        nonlocal state
        _, state = model.step(state, still)
        _ = state.transformer  # waits for the clean pass

    step()
    step()
    return step


def table(result: dict[str, Any], precisions: tuple[str, ...]) -> str:
    """The figures as Markdown: best (median), and how many times as fast as the first precision, by the
    best.
    """
    machine = result["machine"]
    lines = [
        f"{machine['processor']}, torch {machine['torch']}; products on {machine['rows']} rows with "
        f"{machine['threads']} threads",
        "ms, best (median); behind it how many times as fast as " + precisions[0],
        "",
        "| what | " + " | ".join(precisions) + " |",
        "|---" * (1 + len(precisions)) + "|",
    ]
    for what, row in result["ms"].items():
        cells = [
            f"{row[p]['best']:.3f} ({row[p]['median']:.3f}), "
            f"{row[precisions[0]]['best'] / row[p]['best']:.2f}x"
            for p in precisions
        ]
        lines.append(f"| {what} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    config = tyro.cli(SpeedConfig, description=__doc__)
    result = measure(config)
    print(table(result, config.precisions))
    if config.json:
        config.json.write_text(json.dumps(result, indent=1) + "\n")
