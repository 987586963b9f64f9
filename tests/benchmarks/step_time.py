"""How long one step of `SanaWM-v0` takes on this machine, and where the time goes: python
tests/benchmarks/step_time.py [--json F].

The clean pass is made at once here, in its place, so that the parts add up. Beside each part stands its floor
on a CPU: the time that its products alone would take at the rate that one core reaches in a product of the
bundled world's size.
"""

import json
import platform
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import gymnasium as gym
import torch
import tyro
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

import sana_wm_env  # noqa: F401  # registers the ids
from sana_wm_env.model import world as world_module
from sana_wm_env.model.codecs.autoencoder import Autoencoder
from sana_wm_env.model.kernels.operations import PLAIN
from sana_wm_env.model.kernels.select import measure_products
from sana_wm_env.model.network.transformer import Transformer

PARTS = {
    # what the table calls it: functions that do nothing else
    "camera inputs": [(world_module, "camera_inputs"), (Transformer, "camera_context")],
    "denoising passes": [(Transformer, "stream")],
    "clean pass": [(Transformer, "commit")],
    "decode": [(Autoencoder, "decode")],
}


@dataclass(frozen=True)
class StepTimeConfig:
    """What is timed."""

    world: str = "rooms"
    """name of a bundled world, or the folder of a trained one"""
    device: str = "cpu"
    warm_up: int = 3
    """steps ahead of the clock; from the third chunk on every step does the same work"""
    dtype: str | None = None
    """"float32" or "bfloat16"; the environment's own choice if not given"""
    steps: int = 20
    """timed steps"""
    json: Path | None = None
    """write the figures here as well"""


class Clock:
    """Adds up what the parts of each step take."""

    def __init__(self, device: str):
        self.device = device
        self.spent: dict[str, float] = {}
        self.calls: dict[str, int] = {}

    def now(self) -> float:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def timed(self, part: str, function: Any) -> Any:
        """`function`, whose time counts for `part`."""

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            began = self.now()
            try:
                return function(*args, **kwargs)
            finally:
                self.spent[part] = self.spent.get(part, 0.0) + self.now() - began
                self.calls[part] = self.calls.get(part, 0) + 1

        return wrapper


def measure(config: StepTimeConfig) -> dict[str, Any]:
    """Milliseconds of a step and of its parts: medians over the timed steps. Times include the clocks, which
    cost microseconds.
    """
    env = gym.make("SanaWM-v0", world=config.world, device=config.device, dtype=config.dtype)
    env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(config.warm_up):
        env.step(env.action_space.sample())
    rows: list[dict[str, float]] = []
    clock = Clock(config.device)
    with ExitStack() as stack:
        stack.enter_context(patch.object(world_module, "Deferred", lambda call: call()))
        for part, places in PARTS.items():
            for owner, name in places:
                stack.enter_context(patch.object(owner, name, clock.timed(part, getattr(owner, name))))
        for _ in tqdm(range(config.steps), desc="timing", unit="step"):
            clock.spent, clock.calls = {}, {}
            action, began = env.action_space.sample(), clock.now()
            env.step(action)
            rows.append({"step": clock.now() - began, **clock.spent})
    floors = count_floors(env, clock.calls) if config.device == "cpu" else {}
    env.close()
    medians = {name: 1000 * median(row[name] for row in rows) for name in rows[0]}
    rest = 1000 * median(2 * row["step"] - sum(row.values()) for row in rows)
    times = sorted(1000 * row["step"] for row in rows)
    return {
        "config": {k: str(v) for k, v in asdict(config).items() if k != "json"},
        "machine": {
            "processor": processor(config.device),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        },
        "step_ms": medians.pop("step"),
        "step_ms_range": [times[0], times[-1]],
        "parts_ms": medians | {"rest": rest},
        "calls": clock.calls,
        "floors_ms": floors,
    }


def count_floors(env: gym.Env, calls: dict[str, int]) -> dict[str, float]:
    """Milliseconds that the products of each part take at one core's measured rate, by what the plain
    operations multiply.
    """
    world, flops = env.unwrapped.model, dict.fromkeys(PARTS, 0)

    def counted(part: str, function: Any) -> Any:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with FlopCounterMode(display=False) as counter:
                result = function(*args, **kwargs)
            flops[part] += counter.get_total_flops()
            return result

        return wrapper

    dtypes = dict.fromkeys(PARTS, world.transformer.dtype) | {"decode": world.autoencoder.latents_mean.dtype}
    with ExitStack() as stack:
        stack.enter_context(patch.object(world_module, "Deferred", lambda call: call()))
        for part, places in PARTS.items():
            for owner, name in places:
                stack.enter_context(patch.object(owner, name, counted(part, getattr(owner, name))))
        world.transformer.prepare(operations=PLAIN)
        env.step(env.action_space.sample())
    rates = measure_products()
    best = {
        torch.float32: max(rates["float32"], rates.get("float32 by oneDNN", 0)),
        torch.bfloat16: rates["bfloat16"],
    }
    return {part: flops[part] / best[dtypes[part]] / 1e6 for part in PARTS}


def processor(device: str) -> str:
    """What the steps ran on, in words."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    names = [
        line.split(":")[1].strip() for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name")
    ]
    return names[0] if names else platform.processor() or platform.machine()


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def table(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    low, high = result["step_ms_range"]
    machine, steps = result["machine"], result["config"]["steps"]
    lines = [
        f"{machine['processor']}, {machine['threads']} threads, torch {machine['torch']}",
        f"one step (24 frames): {result['step_ms']:.0f} ms, median of {steps} ({low:.0f} to {high:.0f})",
        "",
        "| part | calls | ms | share | floor, ms |",
        "|---|---|---|---|---|",
    ]
    for part, ms in result["parts_ms"].items():
        floor = result["floors_ms"].get(part)
        cells = (
            part,
            result["calls"].get(part, ""),
            f"{ms:.1f}",
            f"{ms / result['step_ms']:.0%}",
            "" if floor is None else f"{floor:.1f}",
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    config = tyro.cli(StepTimeConfig, description=__doc__)
    result = measure(config)
    print(table(result))
    if config.json:
        config.json.write_text(json.dumps(result, indent=1) + "\n")
