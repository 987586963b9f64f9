"""Worlds by name, by folder or by repository: where they lie, how they load, how they are written, in every layout."""

import json
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from shutil import copyfile
from typing import Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from .config import WorldConfig
from .hub import HUB_ID, REPOSITORIES, downloaded
from .published import CONFIG as CONFIG
from .published import NATIVE_BUFFERS, Folder, open_folder, read_config, to_diffusers
from .published import TRANSFORMER as TRANSFORMER
from .transformer import Transformer
from .weights import NATIVE_ONLY, WeightFiles, diffusers_name, is_unused, load, write_whole
from .weights import CheckpointError as CheckpointError

AUTOENCODER = "autoencoder.safetensors"
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


def load_transformer(
    folder: Path, config: WorldConfig, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> Transformer:
    """The transformer of a folder of any layout. CheckpointError that names every key that is missing, unexpected or mis-shaped."""
    found = open_folder(folder)
    with torch.device("meta"):
        transformer = Transformer(config.transformer)
    load(transformer, found.transformer, dtype, device)
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
) -> None:
    """Write a world folder; weights are stored in `dtype`, the transformer as `layout` has it.

    ValueError if a weight does not fit into `dtype`.
    """
    read = {name: t for name, t in transformer.state_dict().items() if not is_unused(name)}
    write_transformer(folder, ((name, _stored(name, t, dtype)) for name, t in read.items()), layout)
    tensors = {name: _stored(name, t, dtype) for name, t in autoencoder.state_dict().items()}
    write_whole(folder / AUTOENCODER, lambda path: save_file(tensors, path))
    write_config(folder, config, layout)


def convert(source: Folder, target: Path, config: WorldConfig, layout: Target) -> None:
    """Write the transformer of a folder under the names and in the place of another layout. Values and dtypes stay as they are.

    A bundled autoencoder goes with it. The other parts of a published checkpoint are the same in every layout and stay where they are.
    """
    write_transformer(target, source.transformer.tensors(), layout)
    if (source.path / AUTOENCODER).is_file():
        write_whole(target / AUTOENCODER, lambda path: copyfile(source.path / AUTOENCODER, path))
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


def _stored(name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    stored = value.detach().cpu().to(dtype).contiguous()
    if not stored.isfinite().all():
        raise ValueError(f"{name} holds numbers that {dtype} cannot: largest is {value.abs().max().item():.3g}")
    return stored
