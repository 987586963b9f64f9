"""The published checkpoints: how their folders are laid out, and how they are told apart (model/README.md
section 11).

A folder is recognised by the files in it. Sizes of the network come from a `config.json` beside them: ours at
the top, or that of diffusers; without either it is the published 2.6b.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ..config import PRESETS, TransformerConfig, Variant, WorldConfig
from .weights import CheckpointError, WeightFiles, indexed_files

LayoutName = Literal["world", "streaming", "native", "diffusers"]
CONFIG, TRANSFORMER = "config.json", "transformer.safetensors"
# What diffusers' class has no place for, kept beside its file so that the way back to native names loses
# nothing.
NATIVE_BUFFERS = "transformer/native_buffers.safetensors"
OWNER = "Efficient-Large-Model"
REFINER, CONNECTORS = "refiner", "connectors"
"""Folders of a second stage, and in it of what reads prompts for a published one."""


class Layout(NamedTuple):
    """The place of the transformer in a kind of folder.

    mark: what only this kind has, so that an incomplete folder is told what it lacks. transformer: patterns,
    the first that is there. home: the repository that is laid out so.
    """

    mark: str
    transformer: tuple[str, ...]
    home: str | None


LAYOUTS: dict[LayoutName, Layout] = {
    "streaming": Layout("sana_dit", ("sana_dit/model.pt",), f"{OWNER}/SANA-WM_streaming"),
    "native": Layout("dit", ("dit/*.safetensors",), f"{OWNER}/SANA-WM_bidirectional"),
    "diffusers": Layout(
        "transformer",
        (
            "transformer/diffusion_pytorch_model.safetensors.index.json",
            "transformer/diffusion_pytorch_model.safetensors",
        ),
        f"{OWNER}/SANA-WM_bidirectional-diffusers",
    ),
    "world": Layout(CONFIG, (TRANSFORMER,), None),
}


@dataclass(frozen=True)
class Folder:
    """A folder of a known layout, and the files that hold its transformer."""

    path: Path
    layout: LayoutName
    transformer: WeightFiles


def find_layout(path: Path) -> LayoutName:
    """Recognises the layout of a folder by its marks; CheckpointError if it has none of them."""
    for name, layout in LAYOUTS.items():
        if (path / layout.mark).exists():
            return name
    marks = ", ".join(layout.mark for layout in LAYOUTS.values())
    raise CheckpointError(
        f"{path} is not a world: it has no {CONFIG}, and none of what a published checkpoint has ({marks})"
    )


def open_folder(path: Path) -> Folder:
    """Finds the transformer of a folder; CheckpointError that names the missing file, and the command that
    gets it where there is one.
    """
    name = find_layout(path)
    layout = LAYOUTS[name]
    for pattern in layout.transformer:
        matches = sorted(path.glob(pattern))
        if len(matches) > 1:
            raise CheckpointError(
                f"{path} has {len(matches)} transformers: "
                f"{', '.join(str(f.relative_to(path)) for f in matches)}; keep one"
            )
        if matches:
            files = indexed_files(matches[0]) if pattern.endswith(".json") else (matches[0],)
            beside = path / NATIVE_BUFFERS
            return Folder(
                path,
                name,
                WeightFiles((*files, beside) if name == "diffusers" and beside.is_file() else files),
            )
    raise CheckpointError(describe_missing(path, layout.transformer[-1], name))


def describe_missing(path: Path, file: str, layout: LayoutName) -> str:
    """Describes a folder that lacks a file, and how to get it."""
    home = LAYOUTS[layout].home
    if home is None:
        return f"{path} is not a complete world: it has no {file}"
    return f"{path} has the {layout} layout and no {file}: `sana-wm download {home}` gets it"


def read_config(path: Path) -> WorldConfig:
    """Settings of a world in any layout; CheckpointError if they cannot be read or do not fit together."""
    layout = find_layout(path)
    if layout == "world" or (
        (path / CONFIG).is_file() and _parsed(path / CONFIG, lambda values: "transformer" in values)
    ):
        return _parsed(path / CONFIG, WorldConfig.from_dict)
    theirs = path / "transformer" / CONFIG
    network = (
        _parsed(theirs, from_diffusers) if layout == "diffusers" and theirs.is_file() else PRESETS["2.6b"]
    )
    return published_world(path.name, network, _variant(path, layout))


def read_settings(path: Path) -> dict[str, Any]:
    """Settings that stand beside published weights, without diffusers' notes about itself."""
    try:
        return {
            name: value for name, value in json.loads(path.read_text()).items() if not name.startswith("_")
        }
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be read as settings: {error}") from None


def _variant(path: Path, layout: LayoutName) -> Variant:
    """The published training that lies in a folder: the last two share a layout and differ in the file's
    name.
    """
    if layout == "streaming":
        return "streaming"
    return "chunk_causal" if any((path / "dit").glob("*chunk_causal*")) else "bidirectional"


def published_world(name: str, network: TransformerConfig, variant: Variant = "streaming") -> WorldConfig:
    """Returns the settings of the published worlds: LTX-2 autoencoder, Gemma-2 text encoder, 720p, a user's
    own first frame.
    """
    return WorldConfig(
        name=name,
        transformer=network,
        autoencoder={"kind": "ltx2"},
        text={"kind": "gemma2"},
        image_size=(704, 1280),
        grid=(22, 40),
        max_rotation_rad=0.5,
        variants=(variant,),
        dtype="bfloat16",
    )


def from_diffusers(values: Mapping[str, Any]) -> TransformerConfig:
    """Sizes from the `config.json` of diffusers' SanaWMTransformer3DModel; ValueError if one is missing or
    not supported.
    """
    fixed = {
        "linear_head_dim": None,
        "patch_size": [1, 1, 1],
        "t_kernel_size": 3,
        "conv_kernel_size": 4,
        "cam_attn_compress": 1,
    }
    fixed |= {
        "qk_norm": True,
        "cross_norm": True,
        "y_norm": True,
        "k_conv_only": True,
        "use_chunk_plucker_post_attn": True,
    }
    try:
        fixed["linear_head_dim"] = values["hidden_size"] // values["num_attention_heads"]
        sizes = {ours: values[theirs] for ours, theirs in DIFFUSERS_SIZES.items()}
    except KeyError as error:
        raise ValueError(f"has no {error}; wanted the settings of SanaWMTransformer3DModel") from None
    for name, wanted in fixed.items():
        if (given := values.get(name, wanted)) != wanted and list(given) != wanted:
            raise ValueError(f"{name} is {given}; only {wanted} is supported")
    return TransformerConfig(**sizes, text_tokens=300)


def to_diffusers(config: TransformerConfig) -> dict[str, Any]:
    """The `config.json` with which diffusers' SanaWMTransformer3DModel opens our weights."""
    sizes = {theirs: getattr(config, ours) for ours, theirs in DIFFUSERS_SIZES.items()}
    return {
        "_class_name": "SanaWMTransformer3DModel",
        **sizes,
        "linear_head_dim": config.head_dim,
        "chunk_plucker_post_attn_blocks": config.depth,
    }


DIFFUSERS_SIZES = {
    "depth": "num_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "in_channels": "in_channels",
    "text_width": "caption_channels",
    "mlp_ratio": "mlp_ratio",
    "softmax_every": "softmax_every_n",
}


def _parsed(path: Path, parse: Any) -> Any:
    try:
        values = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds a {type(values).__name__}; wanted an object of settings")
    try:
        return parse(values)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from None
