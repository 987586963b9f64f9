"""`sana-wm doctor`: what this machine has, and which worlds it can run."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend

from sana_wm_env.model.codecs.refiner import find_refiner
from sana_wm_env.model.config import WorldConfig, preset
from sana_wm_env.model.kernels.formats import PRECISIONS, Precision
from sana_wm_env.model.kernels.select import choose_dtype, describe_choice
from sana_wm_env.model.kernels.tensor_cores import check_card
from sana_wm_env.model.memory import GB, need, ways_to_run, weight_bytes
from sana_wm_env.model.network.refiner import RefinerConfig
from sana_wm_env.model.storage.layouts import published_world
from sana_wm_env.model.storage.worlds import (
    CheckpointError,
    is_bundled,
    known_worlds,
    load_config,
    resolve_world,
)

from ..files import write_json
from ..machine import free_disk, free_memory
from ..outputs import Output, check_outputs

STEP_TFLOP = 101
"""Operations of one step at 720p: five passes of 73.8 together and a decode of 27.1 (model/README.md section
2).
"""
SLOWEST_STEP_S = 15.0
"""A step shows 1.5 s. A machine that needs ten times as long is told to use another world."""
PARTS = {
    "transformer": "weights of the transformer",
    "autoencoder": "weights of the autoencoder",
    "text_encoder": "weights of the text encoder",
    "state": "state of one session",
    "decoder": "state of its decoder",
    "forward": "transient of a pass",
    "decode": "transient of the decode",
    "refiner": "weights of the refiner",
    "refiner_by_blocks": "with its blocks in files",
    "window": "state of the refiner",
    "refine": "transient of refining",
    "refiner_text": "its Gemma-3 and connectors",
}
OF_REFINER = ("refiner", "refiner_by_blocks", "window", "refine", "refiner_text")
EXTRAS = {
    "hub": ("huggingface_hub", "diffusers", "transformers"),
    "gpu": ("fla", "triton"),
    "rl": ("stable_baselines3",),
}


@dataclass(frozen=True)
class DoctorConfig:
    """Says what this machine has and which worlds run on it. Downloads nothing and connects to nothing."""

    device: str | None = None
    """device to judge (default: cuda if there is one, else cpu)"""
    json: Path | None = None
    """write the findings here as well"""


def run(config: DoctorConfig) -> int:
    """Prints the findings. Returns 0 whatever fits."""
    check_outputs(Output("--json", config.json, (".json",)))
    findings = examine_machine(config.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if config.json:
        write_json(config.json, findings)
    print(in_words(findings))
    return 0


def examine_machine(device: str) -> dict[str, Any]:
    """Examines the machine, and each world on it: bytes by stage, and the reasons why it does not fit, if
    any.
    """
    machine = {
        "torch": torch.__version__,
        "device": device,
        "processor": torch.cuda.get_device_name(device)
        if device.startswith("cuda")
        else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "free_memory": free_memory(device),
        "free_disk": free_disk(Path(os.path.expanduser("~"))),
        "tflops": {name: matmul_tflops(device, getattr(torch, name)) for name in ("float32", "bfloat16")},
        "extras": {
            extra: {name: find_spec(name) is not None for name in names} for extra, names in EXTRAS.items()
        },
    }
    worlds = {name: load_config(resolve_world(name)) for name in known_worlds()}
    worlds["2.6b"] = published_world("2.6b", preset("2.6b"))
    refiners = {name: _refiner_of(name) for name in known_worlds()} | {"2.6b": RefinerConfig()}
    rows = {name: judged(world, machine, refiners[name]) for name, world in worlds.items()}
    return {"machine": machine, "presets": rows}


def judged(
    world: WorldConfig, machine: dict[str, Any], refiner: RefinerConfig | None = None
) -> dict[str, Any]:
    """Describes one world on this machine: bytes by stage, the ways in which it fits, and why not. It is
    judged by stage 1; what its refiner would add is said.
    """
    device = machine["device"]
    dtype = choose_dtype(world.dtype, device)
    needed = need(world, dtype)
    peaks = ways_to_run(needed, device)
    refined = need(world, dtype, refiner=refiner) if refiner else needed
    reasons = why_not(world, min(peaks.values()), machine)
    return {
        "image_size": list(world.image_size),
        "dtype": world.dtype,
        "computes": describe_choice(world.transformer, device, dtype),
        "kernels": {"attention": attention_kernel(world, device)},
        "bytes": {part: size for part, size in asdict(refined).items() if size or part not in OF_REFINER},
        "precisions": {
            name: weight_bytes(world.transformer, dtype, name)
            for name in PRECISIONS
            if can_multiply(name, device)
        },
        "peak_bytes": peaks,
        "peak_bytes_refined": ways_to_run(refined, device) if refiner else {},
        "fits": not reasons,
        "reasons": reasons,
    }


def _refiner_of(world: str) -> RefinerConfig | None:
    try:
        return find_refiner(resolve_world(world), "auto").config
    except CheckpointError:
        return None


def can_multiply(precision: Precision, device: str) -> bool:
    """Returns True if a device takes a quantised world: a CPU takes all, exact and slow but for INT8, a GPU
    what its tensor cores multiply.
    """
    try:
        check_card(precision, torch.device(device))
    except ValueError:
        return False
    return True


def why_not(world: WorldConfig, least: int, machine: dict[str, Any]) -> list[str]:
    """Returns the reasons why a world cannot run here; none if it can."""
    reasons = []
    if least > machine["free_memory"]:
        reasons.append(f"needs {least / GB:.1f} GB, {machine['free_memory'] / GB:.1f} GB are free")
    if not is_bundled(world.name):
        rate = max(machine["tflops"].values())
        if (seconds := STEP_TFLOP / rate) > SLOWEST_STEP_S:
            reasons.append(
                f"one step is {STEP_TFLOP} TFLOP: at the {rate:.2f} TFLOP/s measured here at least "
                f"{seconds:.0f} s for 1.5 s of video"
                + ("; no CUDA device" if machine["device"] == "cpu" else "")
            )
        if absent := [package for package, there in machine["extras"]["hub"].items() if not there]:
            reasons.append(f"not installed: {', '.join(absent)} (pip install 'sana-wm-env[hub]')")
    return reasons


def matmul_tflops(device: str, dtype: torch.dtype, seconds: float = 0.1) -> float:
    """Best rate of a Linear on the device, in TFLOP/s. A CPU's is that of one thread times the threads: no
    less than the real.
    """
    if device.startswith("cuda"):
        return _best_rate(torch.ones(8192, 8192, dtype=dtype, device=device), seconds, time.perf_counter)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        a = torch.ones(512, 512, dtype=dtype)
        return threads * _best_rate(
            a, seconds, time.thread_time
        )  # of this thread alone, whatever else the machine does
    finally:
        torch.set_num_threads(threads)


def _best_rate(a: torch.Tensor, seconds: float, clock: Callable[[], float]) -> float:
    best, began = 0.0, clock()
    while clock() - began < seconds:
        start = clock()
        F.linear(a, a)[0, 0].item()  # item waits for the device
        best = max(best, 2 * len(a) ** 3 / (clock() - start) / 1e12)
    return best


def attention_kernel(world: WorldConfig, device: str) -> str:
    """Names the implementation of attention that torch takes for the sizes of a world."""
    heads, head_dim = world.transformer.heads, world.transformer.head_dim
    q = torch.empty(1, heads, 64, head_dim, dtype=choose_dtype(world.dtype, device), device=device)
    chosen = torch._fused_sdp_choice(q, q, q)  # pyright: ignore[reportPrivateImportUsage]  # nothing public tells
    return SDPBackend(chosen).name.lower().replace("_", " ")


def in_words(findings: dict[str, Any]) -> str:
    """Formats the findings as text."""
    machine = findings["machine"]
    rates = ", ".join(f"{rate:.2f} TFLOP/s in {name}" for name, rate in machine["tflops"].items())
    lines = [
        f"torch        {machine['torch']}, {machine['threads']} threads",
        f"device       {machine['device']}: {machine['processor']}, products at {rates}",
        f"free         {machine['free_memory'] / GB:.1f} GB of memory on the device, "
        f"{machine['free_disk'] / GB:.1f} GB of disk",
    ]
    for extra, packages in machine["extras"].items():
        lines.append(
            f"extra {extra:<7}"
            + ", ".join(
                f"{name} {'installed' if there else 'not installed'}" for name, there in packages.items()
            )
        )
    for name, row in findings["presets"].items():
        height, width = row["image_size"]
        lines += ["", f"{name}: {height} x {width}, {row['dtype']}, one session"]
        lines += [
            f"  {what:<28}{kernel}"
            for what, kernel in ({"computes in": row["computes"]} | row["kernels"]).items()
        ]
        lines += [f"  {PARTS[part]:<28}{size / GB:>9.3f} GB" for part, size in row["bytes"].items()]
        packed = ", ".join(f"{size / GB:.3f} in {name}" for name, size in row["precisions"].items())
        lines += [f"  {'transformer, quantised':<28}{packed} GB"] if packed else []
        lines += [f"  peak {size / GB:.3f} GB, {way}" for way, size in row["peak_bytes"].items()]
        lines += [
            f"  peak {size / GB:.3f} GB with the refiner, {way}"
            for way, size in row["peak_bytes_refined"].items()
        ]
        lines += ["  fits"] if row["fits"] else [f"  does not fit: {reason}" for reason in row["reasons"]]
    fitting = [name for name, row in findings["presets"].items() if row["fits"]]
    lines += ["", f"largest that fits: {fitting[-1]}" if fitting else "nothing fits: free some memory"]
    return "\n".join(lines)
