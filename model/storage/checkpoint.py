"""Worlds by name, by folder or by repository: where they lie, how they load, how they are written, in every layout."""

import json
from collections.abc import Iterable
from functools import partial
from importlib.resources import files
from pathlib import Path
from shutil import copyfile
from typing import Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..config import Variant, WorldConfig
from ..network.transformer import Transformer
from .hub import HUB_ID, REPOSITORIES, downloaded
from .published import CONFIG as CONFIG
from .published import NATIVE_BUFFERS, Folder, open_folder, read_config, to_diffusers
from .published import TRANSFORMER as TRANSFORMER
from .weights import NATIVE_ONLY, WeightFiles, diffusers_name, is_unused, load, write_whole
from .weights import CheckpointError as CheckpointError

AUTOENCODER = "autoencoder.safetensors"
UNDISTILLED = "transformer-undistilled.safetensors"  # what a world that streams runs its other variants with
Target = Literal["world", "native", "diffusers"]
WRITTEN: dict[Target, str] = {
    "world": TRANSFORMER,
    "native": "dit/transformer.safetensors",
    "diffusers": "transformer/diffusion_pytorch_model.safetensors",
}


def known_worlds() -> list[str]:
    """Names of the worlds that come with the package."""
    return sorted(child.name for child in _bundled().iterdir() if (child / CONFIG).is_file())


def resolve_world(world: str | Path) -> Path:
    """Folder of a bundled world (by name), of a local one (by path), or of a downloaded repository (owner/name or owner/name@revision).

    Nothing is downloaded and no connection made. CheckpointError that says what is known otherwise.
    """
    if isinstance(world, str) and world in known_worlds():
        return _bundled() / world
    if Path(world).is_dir():
        return Path(world)
    if isinstance(world, str) and world.partition("@")[0] in REPOSITORIES:
        return downloaded(world)
    unknown = f"unknown world {str(world)!r}: neither a folder nor one of the bundled worlds {known_worlds()}"
    if isinstance(world, str) and HUB_ID.fullmatch(world):
        try:
            return downloaded(world)
        except CheckpointError as error:
            raise CheckpointError(f"{unknown}; as a repository of the hub: {error}") from None
    raise CheckpointError(unknown)


def load_config(folder: Path) -> WorldConfig:
    """Settings of the world in a folder of any layout; CheckpointError if they cannot be read or do not fit together."""
    return read_config(folder)


def check_variant(config: WorldConfig, variant: str) -> None:
    """CheckpointError that lists what a world can do, where it cannot do this."""
    if variant not in config.variants:
        raise CheckpointError(f"the world {config.name!r} has no variant {variant!r}; it has {', '.join(config.variants)}")


def has_undistilled(config: WorldConfig) -> bool:
    """Whether a world has a second transformer: few-step weights serve streaming only, so that other variants need their own."""
    return "streaming" in config.variants and len(config.variants) > 1


def load_transformer(
    folder: Path,
    config: WorldConfig,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    variant: Variant = "streaming",
) -> Transformer:
    """The transformer of a folder of any layout. CheckpointError that names every key that is missing, unexpected or mis-shaped."""
    with torch.device("meta"):
        transformer = Transformer(config.transformer)
    if variant != "streaming" and has_undistilled(config):
        load_weights(transformer, folder / UNDISTILLED, dtype, device)
    else:
        load(transformer, open_folder(folder).transformer, dtype, device)
    return transformer


def load_weights(module: nn.Module, path: Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> None:
    """Fill a module, which may stand on the meta device, from a safetensors file of a world folder."""
    if not path.is_file():
        raise CheckpointError(f"{path.parent} is not a complete world: it has no {path.name}")
    load(module, WeightFiles((path,)), dtype, device)


def save_world(
    folder: Path,
    config: WorldConfig,
    transformer: nn.Module,
    autoencoder: nn.Module,
    dtype: torch.dtype = torch.float16,
    layout: Target = "world",
    undistilled: nn.Module | None = None,
) -> None:
    """Write a world folder; weights are stored in `dtype`, the transformer as `layout` has it.

    `undistilled` is the transformer of the variants other than "streaming", wanted where `config` names both.
    ValueError if a weight does not fit into `dtype`, or if there is no such transformer where one is wanted, or one too many.
    """
    if has_undistilled(config) != (undistilled is not None):
        given = "no undistilled transformer" if undistilled is None else "an undistilled transformer"
        raise ValueError(f"got the variants {', '.join(config.variants)} with {given}; streaming and another variant have one each")
    write_transformer(folder, _stored(transformer, dtype).items(), layout)
    for name, module in {AUTOENCODER: autoencoder, UNDISTILLED: undistilled}.items():
        if module is not None:
            tensors = _stored(module, dtype)
            write_whole(folder / name, partial(save_file, tensors))
    write_config(folder, config, layout)


def convert(source: Folder, target: Path, config: WorldConfig, layout: Target) -> None:
    """Write the transformer of a folder under the names and in the place of another layout. Values and dtypes stay as they are.

    The other files of a world go with it. The other parts of a published checkpoint are the same in every layout and stay where they are.
    """
    write_transformer(target, source.transformer.tensors(), layout)
    for file in (source.path / AUTOENCODER, source.path / UNDISTILLED):
        if file.is_file():
            write_whole(target / file.name, partial(copyfile, file))
    write_config(target, config, layout)


def write_transformer(folder: Path, tensors: Iterable[tuple[str, Tensor]], layout: Target) -> None:
    """Write a transformer's tensors, given by native name, as `layout` has them."""
    held = {name: t.contiguous() for name, t in tensors}
    if layout == "diffusers":
        buffers = {name: held.pop(name) for name in NATIVE_ONLY if name in held}
        held = {diffusers_name(name): t for name, t in held.items()}
        if buffers:
            write_whole(folder / NATIVE_BUFFERS, lambda path: save_file(buffers, path, {"format": "pt"}))
    write_whole(folder / WRITTEN[layout], lambda path: save_file(held, path, {"format": "pt"}))


def write_config(folder: Path, config: WorldConfig, layout: Target) -> None:
    """Write the settings of a world; in the diffusers layout also those that its own class reads."""
    write_whole(folder / CONFIG, lambda path: path.write_text(json.dumps(config.to_dict(), indent=2) + "\n"))
    if layout == "diffusers":
        theirs = json.dumps(to_diffusers(config.transformer), indent=2) + "\n"
        write_whole(folder / "transformer" / CONFIG, lambda path: path.write_text(theirs))


def _bundled() -> Path:
    return Path(str(files("sana_wm_env.worlds")))


def _stored(module: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    stored = {name: t.detach().cpu().to(dtype).contiguous() for name, t in module.state_dict().items() if not is_unused(name)}
    for name, value in stored.items():
        if not value.isfinite().all():
            largest = module.state_dict()[name].abs().max().item()
            raise ValueError(f"{name} holds numbers that {dtype} cannot: largest is {largest:.3g}")
    return stored
