"""`sana-wm checkpoint`: the names a checkpoint must have, what a given one has, and the same weights in another layout."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from sana_wm_env.model.config import PRESETS, TransformerConfig, preset
from sana_wm_env.model.network.transformer import Transformer
from sana_wm_env.model.storage.checkpoint import (
    UNDISTILLED,
    WRITTEN,
    CheckpointError,
    Target,
    convert,
    has_undistilled,
    load_config,
    resolve_world,
)
from sana_wm_env.model.storage.published import LAYOUTS, open_folder
from sana_wm_env.model.storage.weights import WeightFiles, compare, is_unused

# Frobenius norms that others report of SANA-WM_bidirectional; no other checkpoint needs to have them.
REPORTED_NORMS = {"blocks.0.attn.qkv.weight": 720.04, "blocks.0.attn.out_proj_cam.weight": 10.78}


@dataclass(frozen=True)
class KeysConfig:
    """Lists the names and shapes that a checkpoint of a preset has."""

    preset: str = "2.6b"
    """row of the preset table"""
    json: Path | None = None
    """write name -> shape here"""


@dataclass(frozen=True)
class InspectConfig:
    """Says what a checkpoint holds and whether its names and shapes are those of the network. Exit code 1 if they are not."""

    path: Annotated[str, tyro.conf.Positional]
    """a world's name or folder, a downloaded repository, or one .safetensors or .pt file"""
    preset: str | None = None
    """the network to compare with (default: what the folder's settings say, 2.6b for a single file)"""
    json: Path | None = None
    """write the findings here as well"""


@dataclass(frozen=True)
class ConvertConfig:
    """Writes the transformer of a checkpoint in another layout, values and dtypes unchanged."""

    source: Annotated[str, tyro.conf.Positional]
    """a world's name or folder, or a downloaded repository"""
    target: Annotated[Path, tyro.conf.Positional]
    """folder to write; it must not hold a checkpoint yet"""
    to: Literal["native", "diffusers", "world"]
    """native: NVlabs' names in dit/; diffusers: transformer/ as SanaWMTransformer3DModel reads it; world: transformer.safetensors"""


def keys(config: KeysConfig) -> None:
    """Prints names and shapes, and their number."""
    network = _network(_preset(config.preset))
    shapes = {name: list(t.shape) for name, t in network.state_dict().items()}
    if config.json:
        config.json.write_text(json.dumps(shapes, indent=0) + "\n")
    else:
        for name, shape in shapes.items():
            print(f"{name}  {tuple(shape)}")
    print(f"{len(shapes)} names, {sum(p.numel() for p in network.parameters()):,} parameters")


def inspect(config: InspectConfig) -> int:
    """Prints the findings on the transformer, and on that of the clips where a world has one. Returns 1 if names or shapes do not fit."""
    files, layout, network, second = _opened(config)
    found = findings(files, layout, network)
    both = [found]
    if second is not None:
        found["undistilled"] = findings(second, layout, network)
        both.append(found["undistilled"])
    if config.json:
        config.json.write_text(json.dumps(found, indent=1) + "\n")
    print("\n\n".join(_in_words(one) for one in both))
    return int(any(one[kind] for one in both for kind in ("missing", "unexpected", "misshaped")))


def findings(files: WeightFiles, layout: str, config: TransformerConfig) -> dict[str, Any]:
    """What the files hold, beside what the network of `config` wants; only the tensors behind the reported norms are read."""
    outline = files.outline()
    difference = compare({name: shape for name, (shape, _) in outline.items()}, _network(config))
    read = {name: (shape, dtype) for name, (shape, dtype) in outline.items() if not is_unused(name)}
    apply = REPORTED_NORMS if config == PRESETS["2.6b"] else {}
    norms = {name: t.float().norm().item() for name, t in files.tensors(lambda name: name in apply)}
    return {
        "layout": layout,
        "files": [str(file) for file in files.files],
        "file_bytes": files.nbytes,
        "tensors": len(outline),
        "parameters": sum(prod(shape) for shape, _ in read.values()),
        "bytes": sum(prod(shape) * dtype.itemsize for shape, dtype in read.values()),
        "dtypes": dict(Counter(str(dtype).removeprefix("torch.") for _, dtype in read.values())),
        "unused_buffers": sorted({name.rpartition(".")[2] for name in outline if is_unused(name)}),
        "missing": list(difference.missing),
        "unexpected": list(difference.unexpected),
        "misshaped": [{"name": name, "shape": given, "wanted": wanted} for name, given, wanted in difference.misshaped],
        "norms": norms,
    }


def convert_command(config: ConvertConfig) -> None:
    """Converts, and says what it wrote."""
    target: Target = config.to
    source = open_folder(resolve_world(config.source))
    settings = load_config(source.path)
    if difference := compare({name: shape for name, (shape, _) in source.transformer.outline().items()}, _network(settings.transformer)):
        raise CheckpointError(f"{source.transformer} does not fit its configuration: {difference}")
    if taken := [layout.mark for layout in LAYOUTS.values() if (config.target / layout.mark).exists()]:
        raise ValueError(f"got {config.target}, which holds {', '.join(taken)} already; wanted a new folder")
    convert(source, config.target, settings, target)
    print(f"wrote {config.target / WRITTEN[target]} and {config.target / 'config.json'}")


def _in_words(found: dict[str, Any]) -> str:
    dtypes = ", ".join(f"{count} {dtype}" for dtype, count in found["dtypes"].items())
    lines = [
        f"layout      {found['layout']}: {', '.join(found['files'])}",
        f"tensors     {found['tensors']} ({dtypes}; unused buffers: {', '.join(found['unused_buffers']) or 'none'})",
        f"parameters  {found['parameters']:,}",
        f"bytes       {found['bytes']:,} of weights, {found['file_bytes']:,} in files",
    ]
    for kind in ("missing", "unexpected"):
        lines.append(f"{kind:<12}{', '.join(found[kind]) or 'none'}")
    shapes = [f"{entry['name']} {entry['shape']} instead of {entry['wanted']}" for entry in found["misshaped"]]
    lines.append(f"mis-shaped  {', '.join(shapes) or 'none'}")
    for name, norm in found["norms"].items():
        lines.append(f"norm        {name} {norm:.2f} ({REPORTED_NORMS[name]} is reported of the bidirectional 2.6b checkpoint)")
    return "\n".join(lines)


def _opened(config: InspectConfig) -> tuple[WeightFiles, str, TransformerConfig, WeightFiles | None]:
    if Path(config.path).is_file():
        return WeightFiles((Path(config.path),)), "single file", _preset(config.preset or "2.6b"), None
    folder = open_folder(resolve_world(config.path))
    settings = load_config(folder.path)
    network = _preset(config.preset) if config.preset else settings.transformer
    second = WeightFiles((folder.path / UNDISTILLED,)) if has_undistilled(settings) else None
    return folder.transformer, folder.layout, network, second


def _network(config: TransformerConfig) -> Transformer:
    with torch.device("meta"):
        return Transformer(config)


def _preset(name: str) -> TransformerConfig:
    if name not in PRESETS:
        raise ValueError(f"got --preset {name}; wanted one of {', '.join(PRESETS)}")
    return preset(name)
