"""Bytes of a preset in every precision, computed and measured: python tests/benchmarks/precision_bytes.py
[--preset 2.6b].

Writes a world with random weights in bfloat16, quantises it by the command, loads the result in a process of
its own and touches every byte. One file at a time: the disk holds the wide one and another, memory one
network.
"""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from full_size import random_network
from safetensors.torch import save_file

from sana_wm_env.model.config import preset
from sana_wm_env.model.kernels.formats import PRECISIONS, Precision
from sana_wm_env.model.memory import weight_bytes
from sana_wm_env.model.storage.weights import is_unused
from sana_wm_env.model.storage.worlds import (
    TRANSFORMER,
    load_config,
    load_transformer,
    resolve_world,
    write_config,
)


@dataclass(frozen=True)
class BytesConfig:
    """What is measured."""

    preset: str = "2.6b"
    """row of the preset table"""
    precisions: tuple[Precision, ...] = PRECISIONS
    folder: Path = Path(tempfile.gettempdir())
    """where the files go, for as long as they are needed"""
    json: Path | None = None
    """write the figures here as well"""
    load: Path | None = None
    """only load this world, and print what it takes as JSON: what each measurement starts"""


def write_wide(name: str, folder: Path) -> None:
    """A world with random weights, the bundled one's settings but for the network."""
    config = replace(
        load_config(resolve_world("rooms")),
        transformer=preset(name),
        variants=("streaming",),
        dtype="bfloat16",
    )
    tensors = random_network(config.transformer, torch.bfloat16, "cpu").state_dict()
    write_config(folder, config, "world")
    save_file({key: t for key, t in tensors.items() if not is_unused(key)}, folder / TRANSFORMER)


def load(folder: Path) -> dict[str, float]:
    """Bytes and seconds of loading a world's transformer and reading all of it once."""
    before, began = resident(), time.perf_counter()
    network = load_transformer(folder, load_config(folder), torch.bfloat16)
    tensors = network.state_dict().values()
    for t in tensors:
        t.flatten().view(torch.uint8)[::4096].sum() if t.ndim else t.item()
    return {
        "tensors": sum(t.nbytes for t in tensors),
        "resident": resident() - before,
        "seconds": time.perf_counter() - began,
    }


def resident() -> int:
    """Bytes of this process in memory now (Linux)."""
    line = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS")
    )
    return 1024 * int(line.split()[1])


def measure(config: BytesConfig) -> dict[str, dict[str, float]]:
    """Precision -> bytes: computed, in the file, in tensors, resident."""
    found = {}
    with tempfile.TemporaryDirectory(dir=config.folder) as made:
        wide = Path(made) / "wide"
        code = f"from precision_bytes import *; write_wide({config.preset!r}, Path({str(wide)!r}))"
        subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)
        for precision in (None, *config.precisions):
            with tempfile.TemporaryDirectory(dir=made) as inner:
                world = Path(inner) / "world" if precision else wide
                if precision:
                    command = [
                        "-m",
                        "sana_wm_env.cli",
                        "checkpoint",
                        "quantize",
                        str(wide),
                        str(world),
                        "--precision",
                        precision,
                    ]
                    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
                done = subprocess.run(
                    [sys.executable, __file__, "--load", str(world)],
                    check=True,
                    capture_output=True,
                    text=True,
                )
                computed = weight_bytes(preset(config.preset), torch.bfloat16, precision)
                on_disk = (world / TRANSFORMER).stat().st_size
                found[precision or "bfloat16"] = {
                    "computed": computed,
                    "file": on_disk,
                    **json.loads(done.stdout),
                }
                print(precision or "bfloat16", found[precision or "bfloat16"], file=sys.stderr)
    return found


def table(found: dict[str, dict[str, float]]) -> str:
    """The figures as Markdown."""
    lines = [
        "| precision | computed | in the file | in tensors | resident after loading | of bfloat16 |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in found.items():
        cells: list[Any] = [f"{row[what]:,.0f}" for what in ("computed", "file", "tensors", "resident")]
        lines.append(
            f"| {name} | " + " | ".join(cells) + f" | {row['computed'] / found['bfloat16']['computed']:.0%} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    config = tyro.cli(BytesConfig, description=__doc__)
    if config.load:
        print(json.dumps(load(config.load)))
    else:
        result = measure(config)
        print(table(result))
        if config.json:
            config.json.write_text(json.dumps(result, indent=1) + "\n")
