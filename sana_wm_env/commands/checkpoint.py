"""`sana-wm checkpoint`: the names a checkpoint must have, what a given one has, and the same weights in
another layout.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from sana_wm_env.model.config import PRESETS, TransformerConfig, WorldConfig, preset
from sana_wm_env.model.kernels.formats import Precision
from sana_wm_env.model.network.transformer import Transformer
from sana_wm_env.model.quantize import match_files, read_precision
from sana_wm_env.model.storage.layouts import LAYOUTS, Folder, open_folder
from sana_wm_env.model.storage.weights import WeightFiles, compare_shapes, is_unused
from sana_wm_env.model.storage.worlds import (
    UNDISTILLED,
    WRITTEN,
    CheckpointError,
    Target,
    convert,
    has_undistilled,
    load_config,
    quantize_world,
    resolve_world,
)

from ..files import write_json
from ..outputs import Output, check_outputs

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
    """Says what a checkpoint holds and whether its names and shapes are those of the network. Exit code 1 if
    they are not.
    """

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
    """native: NVlabs' names in dit/; diffusers: transformer/ as SanaWMTransformer3DModel reads it; world:
    transformer.safetensors
    """


@dataclass(frozen=True)
class QuantizeConfig:
    """Writes a world with its transformers in few bits, packed; everything else as it is. `inspect` says
    which layers are.
    """

    source: Annotated[str, tyro.conf.Positional]
    """a world's name or folder, or a downloaded repository, with wide weights"""
    target: Annotated[Path, tyro.conf.Positional]
    """folder to write; it must not hold a checkpoint yet"""
    precision: Precision
    """of weights and activations"""


def keys(config: KeysConfig) -> None:
    """Prints names and shapes, and their number."""
    check_outputs(Output("--json", config.json, (".json",)))
    network = _network(_preset(config.preset))
    shapes = {name: list(t.shape) for name, t in network.state_dict().items()}
    if config.json:
        write_json(config.json, shapes)
    else:
        for name, shape in shapes.items():
            print(f"{name}  {tuple(shape)}")
    print(f"{len(shapes)} names, {sum(p.numel() for p in network.parameters()):,} parameters")


def inspect_command(config: InspectConfig) -> int:
    """Prints the findings on the transformer, and on that of the clips where a world has one. Returns 1 if
    names or shapes do not fit.
    """
    check_outputs(Output("--json", config.json, (".json",)), inputs=[config.path])
    files, layout, network, second = _opened(config)
    found = findings(files, layout, network)
    transformers = [found]
    if second is not None:
        found["undistilled"] = findings(second, layout, network)
        transformers.append(found["undistilled"])
    if config.json:
        write_json(config.json, found)
    print("\n\n".join(_in_words(row) for row in transformers))
    return int(any(row[kind] for row in transformers for kind in ("missing", "unexpected", "misshaped")))


def findings(files: WeightFiles, layout: str, config: TransformerConfig) -> dict[str, Any]:
    """Lists what the files hold beside what the network of `config` wants; reads only the tensors behind the
    reported norms.
    """
    outline = files.outline()
    difference = compare_shapes(
        {name: shape for name, (shape, _) in outline.items()}, match_files(_network(config), files)
    )
    read = {name: (shape, dtype) for name, (shape, dtype) in outline.items() if not is_unused(name)}
    apply = REPORTED_NORMS if config == PRESETS["2.6b"] else {}
    norms = {name: t.float().norm().item() for name, t in files.tensors(lambda name: name in apply)}
    return {
        "layout": layout,
        "precision": read_precision(files),
        "files": [str(file) for file in files.files],
        "file_bytes": files.nbytes,
        "tensors": len(outline),
        "parameters": sum(_parameters(name, shape, dtype) for name, (shape, dtype) in read.items()),
        "bytes": sum(prod(shape) * dtype.itemsize for shape, dtype in read.values()),
        "dtypes": dict(Counter(str(dtype).removeprefix("torch.") for _, dtype in read.values())),
        "unused_buffers": sorted({name.rpartition(".")[2] for name in outline if is_unused(name)}),
        "missing": list(difference.missing),
        "unexpected": list(difference.unexpected),
        "misshaped": [
            {"name": name, "shape": given, "wanted": wanted} for name, given, wanted in difference.misshaped
        ],
        "norms": norms,
    }


def convert_command(config: ConvertConfig) -> None:
    """Converts, and says what it wrote."""
    target: Target = config.to
    source, settings = _opened_for_writing(config.source, config.target)
    convert(source, config.target, settings, target)
    print(f"wrote {config.target / WRITTEN[target]} and {config.target / 'config.json'}")


def quantize_command(config: QuantizeConfig) -> None:
    """Packs, and says what it wrote and how large it is beside what it read."""
    source, settings = _opened_for_writing(config.source, config.target)
    if stored := read_precision(source.transformer):
        raise CheckpointError(
            f"got {config.source}, which is in {stored} already; wanted the world that it was made of"
        )
    quantize_world(source, config.target, settings, config.precision)
    before, after = source.transformer.nbytes, (config.target / WRITTEN["world"]).stat().st_size
    print(
        f"wrote {config.target}: transformer {after:,} bytes in {config.precision}, "
        f"{after / before:.0%} of {before:,}"
    )


def _opened_for_writing(world: str, target: Path) -> tuple[Folder, WorldConfig]:
    """A world whose weights fit its settings, and its settings; refused where `target` holds something."""
    check_outputs(Output("the target", target, folder=True))
    source = open_folder(resolve_world(world))
    settings, files = load_config(source.path), source.transformer
    network = match_files(_network(settings.transformer), files)
    if difference := compare_shapes({name: shape for name, (shape, _) in files.outline().items()}, network):
        raise CheckpointError(f"{files} does not fit its configuration: {difference}")
    if taken := [layout.mark for layout in LAYOUTS.values() if (target / layout.mark).exists()]:
        raise ValueError(f"got {target}, which holds {', '.join(taken)} already; wanted a new folder")
    return source, settings


def _in_words(found: dict[str, Any]) -> str:
    dtypes = ", ".join(f"{count} {dtype}" for dtype, count in found["dtypes"].items())
    lines = [
        f"layout      {found['layout']}: {', '.join(found['files'])}",
        f"precision   {found['precision'] or 'wide'}",
        f"tensors     {found['tensors']} ({dtypes}; unused buffers: "
        f"{', '.join(found['unused_buffers']) or 'none'})",
        f"parameters  {found['parameters']:,}",
        f"bytes       {found['bytes']:,} of weights, {found['file_bytes']:,} in files",
    ]
    for kind in ("missing", "unexpected"):
        lines.append(f"{kind:<12}{', '.join(found[kind]) or 'none'}")
    shapes = [
        f"{entry['name']} {entry['shape']} instead of {entry['wanted']}" for entry in found["misshaped"]
    ]
    lines.append(f"mis-shaped  {', '.join(shapes) or 'none'}")
    for name, norm in found["norms"].items():
        lines.append(
            f"norm        {name} {norm:.2f} ({REPORTED_NORMS[name]} is reported of the "
            "bidirectional 2.6b checkpoint)"
        )
    return "\n".join(lines)


def _parameters(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Counts the parameters in a stored tensor: scales are none, and a byte of NVFP4 is two."""
    if name.endswith((".weight_scale", ".weight_scale_2")):
        return 0
    return prod(shape) * (2 if dtype == torch.uint8 else 1)


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
