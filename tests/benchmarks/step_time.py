"""How long one step of `SanaWM-v0` takes on this machine, and where the time goes: python tests/benchmarks/step_time.py [--json F]."""

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
from tqdm import tqdm

import sana_wm_env  # noqa: F401  # registers the ids
from sana_wm_env.model import world as world_module
from sana_wm_env.model.autoencoder import Autoencoder
from sana_wm_env.model.transformer import Transformer

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
    """Milliseconds of a step and of its parts: medians over the timed steps. Times include the clocks, which cost microseconds."""
    env = gym.make("SanaWM-v0", world=config.world, device=config.device)
    env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(config.warm_up):
        env.step(env.action_space.sample())
    rows: list[dict[str, float]] = []
    clock = Clock(config.device)
    with ExitStack() as stack:
        for part, places in PARTS.items():
            for owner, name in places:
                stack.enter_context(patch.object(owner, name, clock.timed(part, getattr(owner, name))))
        for _ in tqdm(range(config.steps), desc="timing", unit="step"):
            clock.spent, clock.calls = {}, {}
            action, began = env.action_space.sample(), clock.now()
            env.step(action)
            rows.append({"step": clock.now() - began, **clock.spent})
    env.close()
    medians = {name: 1000 * median(row[name] for row in rows) for name in rows[0]}
    rest = 1000 * median(2 * row["step"] - sum(row.values()) for row in rows)
    times = sorted(1000 * row["step"] for row in rows)
    return {
        "config": {k: str(v) for k, v in asdict(config).items() if k != "json"},
        "machine": {"processor": processor(config.device), "threads": torch.get_num_threads(), "torch": torch.__version__},
        "step_ms": medians.pop("step"),
        "step_ms_range": [times[0], times[-1]],
        "parts_ms": medians | {"rest": rest},
        "calls": clock.calls,
    }


def processor(device: str) -> str:
    """What the steps ran on, in words."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    names = [line.split(":")[1].strip() for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name")]
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
        "| part | calls | ms | share |",
        "|---|---|---|---|",
    ]
    for part, ms in result["parts_ms"].items():
        lines.append(f"| {part} | {result['calls'].get(part, '')} | {ms:.1f} | {ms / result['step_ms']:.0%} |")
    return "\n".join(lines)


if __name__ == "__main__":
    config = tyro.cli(StepTimeConfig, description=__doc__)
    result = measure(config)
    print(table(result))
    if config.json:
        config.json.write_text(json.dumps(result, indent=1) + "\n")
