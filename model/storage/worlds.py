"""Worlds by name, by folder or by repository: finding, loading and writing them, in every layout."""

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

from sana_wm_env.files import write_whole

from ..config import Variant, WorldConfig
from ..kernels.formats import Precision
from ..network.transformer import Transformer
from ..quantize import METADATA, find_precision, pack_tensors, packed_names, quantize, read_precision
from ..quantize import load_weights as load_packed
from .hub import HUB_ID, REPOSITORIES, downloaded
from .layouts import CONFIG as CONFIG
from .layouts import CONNECTORS, NATIVE_BUFFERS, REFINER, Folder, open_folder, read_config, to_diffusers
from .layouts import TRANSFORMER as TRANSFORMER
from .weights import NATIVE_ONLY, WeightFiles, diffusers_name, is_unused, load
from .weights import CheckpointError as CheckpointError

AUTOENCODER = "autoencoder.safetensors"
UNDISTILLED = "transformer-undistilled.safetensors"  # what a world that streams runs its other variants with
Target = Literal["world", "native", "diffusers"]
WRITTEN: dict[Target, str] = {
    "world": TRANSFORMER,
    "native": "dit/transformer.safetensors",
    "diffusers": "transformer/diffusion_pytorch_model.safetensors",
}


SHOWN = {"rooms": "tiny-rooms"}
"""Bundled worlds that are shown under another name than their folder's, which states and fingerprints
hold.
"""


def known_worlds() -> list[str]:
    """Lists the worlds that come with the package, by the names that they are shown under."""
    return sorted(
        SHOWN.get(child.name, child.name) for child in _bundled().iterdir() if (child / CONFIG).is_file()
    )


def is_bundled(world: str) -> bool:
    """Returns True for the name of a bundled world: the one it is shown under, or its folder's."""
    return world in known_worlds() or SHOWN.get(world) in known_worlds()


def label_world(folder: Path, config: WorldConfig) -> str:
    """Returns the name that the world in a folder is shown under; `config.name` unless it is a bundled
    one.
    """
    return SHOWN.get(config.name, config.name) if folder == _bundled() / config.name else config.name


def resolve_world(world: str | Path) -> Path:
    """Returns the folder of a bundled world (by name), of a local one (by path), or of a downloaded
    repository (owner/name or owner/name@revision).

    Nothing is downloaded and no connection made. CheckpointError that says what is known otherwise.
    """
    if not isinstance(world, str | Path) or not str(world):
        raise CheckpointError(
            f"got world={world!r}; wanted the name of a bundled world {known_worlds()}, a folder, or a "
            "downloaded repository"
        )
    if isinstance(world, str) and is_bundled(world):
        return _bundled() / {label: name for name, label in SHOWN.items()}.get(world, world)
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
    """Reads the settings of the world in a folder of any layout; CheckpointError if they cannot be read or do
    not fit together.
    """
    return read_config(folder)


def check_variant(config: WorldConfig, variant: str) -> None:
    """Raises CheckpointError that lists a world's variants, if this is none of them."""
    if variant not in config.variants:
        raise CheckpointError(
            f"the world {config.name!r} has no variant {variant!r}; it has {', '.join(config.variants)}"
        )


def has_undistilled(config: WorldConfig) -> bool:
    """Returns True if a world has a second transformer: few-step weights serve streaming only, so that other
    variants need their own.
    """
    return "streaming" in config.variants and len(config.variants) > 1


def load_transformer(
    folder: Path,
    config: WorldConfig,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    variant: Variant = "streaming",
    precision: Precision | None = None,
) -> Transformer:
    """The transformer of a folder of any layout. CheckpointError that names every key that is missing,
    unexpected or mis-shaped.

    precision: of weights and activations; None for what the folder holds.
    """
    with torch.device("meta"):
        transformer = Transformer(config.transformer)
    load_packed(transformer, transformer_files(folder, config, variant), dtype, device, precision)
    return transformer


def transformer_files(folder: Path, config: WorldConfig, variant: Variant = "streaming") -> WeightFiles:
    """The files of the transformer that a variant runs; CheckpointError that names one that is missing."""
    if variant == "streaming" or not has_undistilled(config):
        return open_folder(folder).transformer
    return _world_file(folder / UNDISTILLED)


def stored_precision(folder: Path, config: WorldConfig, variant: Variant = "streaming") -> Precision | None:
    """Reads the precision of a world's stored transformer; None for wide weights, and for a folder without
    any, whose loading says what is missing.
    """
    try:
        return read_precision(transformer_files(folder, config, variant))
    except CheckpointError:
        return None


def load_weights(
    module: nn.Module, path: Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> None:
    """Fill a module, which may stand on the meta device, from a safetensors file of a world folder."""
    load(module, _world_file(path), dtype, device)


def _world_file(path: Path) -> WeightFiles:
    if not path.is_file():
        raise CheckpointError(f"{path.parent} is not a complete world: it has no {path.name}")
    return WeightFiles((path,))


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
    ValueError if a weight does not fit into `dtype`, or if there is no such transformer where one is wanted,
    or one too many.
    """
    if has_undistilled(config) != (undistilled is not None):
        given = "no undistilled transformer" if undistilled is None else "an undistilled transformer"
        raise ValueError(
            f"got the variants {', '.join(config.variants)} with {given}; streaming and another "
            "variant have one each"
        )
    write_transformer(folder, _stored(transformer, dtype).items(), layout, find_precision(transformer))
    for name, module in {AUTOENCODER: autoencoder, UNDISTILLED: undistilled}.items():
        if module is not None:
            tensors, precision = _stored(module, dtype), find_precision(module)
            write_whole(
                folder / name,
                partial(save_file, tensors, metadata=_metadata(precision) if precision else None),
            )
    write_config(folder, config, layout)


def convert(source: Folder, target: Path, config: WorldConfig, layout: Target) -> None:
    """Write the transformer of a folder under the names and in the place of another layout. Values and dtypes
    stay as they are.

    The other files of a world go with it. The other parts of a published checkpoint are the same in every
    layout and stay where they are.
    """
    write_transformer(target, source.transformer.tensors(), layout, read_precision(source.transformer))
    for file in (source.path / AUTOENCODER, source.path / UNDISTILLED):
        if file.is_file():
            write_whole(target / file.name, partial(copyfile, file))
    _copy_refiner(source, target)
    write_config(target, config, layout)


def quantize_world(source: Folder, target: Path, config: WorldConfig, precision: Precision) -> None:
    """Write a folder's world with its transformers packed; dtypes of everything else stay as they are. The
    source's may not be packed.
    """
    with torch.device("meta"):
        network = quantize(Transformer(config.transformer), precision)
    write_transformer(target, pack_tensors(source.transformer.tensors(), network), "world", precision)
    if (second := source.path / UNDISTILLED).is_file():
        packed = dict(pack_tensors(WeightFiles((second,)).tensors(), network))
        write_whole(target / UNDISTILLED, partial(save_file, packed, metadata=_metadata(precision)))
    if (autoencoder := source.path / AUTOENCODER).is_file():
        write_whole(target / AUTOENCODER, partial(copyfile, autoencoder))
    _copy_refiner(source, target)
    write_config(target, config, "world")


def _copy_refiner(source: Folder, target: Path) -> None:
    """Copies the refiner of a world; a published one, which has connectors, stays where it is."""
    home = source.path / REFINER
    if not (home / CONNECTORS).is_dir():
        for file in filter(Path.is_file, home.rglob("*")):
            path = target / file.relative_to(source.path)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, partial(copyfile, file))


def write_transformer(
    folder: Path, tensors: Iterable[tuple[str, Tensor]], layout: Target, precision: Precision | None = None
) -> None:
    """Write a transformer's tensors, given by native name and in `precision`, as `layout` has them."""
    stored = {name: t.contiguous() for name, t in tensors}
    if layout == "diffusers":
        buffers = {name: stored.pop(name) for name in NATIVE_ONLY if name in stored}
        stored = {diffusers_name(name): t for name, t in stored.items()}
        if buffers:
            write_whole(folder / NATIVE_BUFFERS, lambda path: save_file(buffers, path, {"format": "pt"}))
    write_whole(folder / WRITTEN[layout], lambda path: save_file(stored, path, _metadata(precision)))


def write_config(folder: Path, config: WorldConfig, layout: Target) -> None:
    """Write the settings of a world; in the diffusers layout also those that its own class reads."""
    write_whole(folder / CONFIG, lambda path: path.write_text(json.dumps(config.to_dict(), indent=2) + "\n"))
    if layout == "diffusers":
        theirs = json.dumps(to_diffusers(config.transformer), indent=2) + "\n"
        write_whole(folder / "transformer" / CONFIG, lambda path: path.write_text(theirs))


def _metadata(precision: Precision | None) -> dict[str, str]:
    return {"format": "pt"} | ({METADATA: precision} if precision else {})


def _bundled() -> Path:
    return Path(str(files("sana_wm_env.worlds")))


def _stored(module: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    packed = packed_names(module)
    tensors = {
        name: t.detach().cpu().contiguous() for name, t in module.state_dict().items() if not is_unused(name)
    }
    stored = {name: t if name in packed else t.to(dtype) for name, t in tensors.items()}
    for name, value in stored.items():
        if name not in packed and not value.isfinite().all():
            largest = module.state_dict()[name].abs().max().item()
            raise ValueError(f"{name} holds numbers that {dtype} cannot: largest is {largest:.3g}")
    return stored
