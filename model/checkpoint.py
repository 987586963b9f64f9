"""World folders: `config.json`, `transformer.safetensors`, `autoencoder.safetensors`; where they lie and how they load."""

import json
from importlib.resources import files
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .config import WorldConfig

CONFIG, TRANSFORMER, AUTOENCODER = "config.json", "transformer.safetensors", "autoencoder.safetensors"
# In published files, read by no computation: may be absent, are replaced by zeros.
UNUSED_BUFFERS = ("pos_embed", "y_embedding", "recall_gate")


class CheckpointError(ValueError):
    """A world folder or weight file that cannot be used; the message says what was wrong and what to do."""


def known_worlds() -> list[str]:
    """Names of the worlds that come with the package."""
    return sorted(child.name for child in _bundled().iterdir() if (child / CONFIG).is_file())


def resolve_world(world: str | Path) -> Path:
    """Folder of a bundled world (by name) or of a local one (by path); CheckpointError with the known names otherwise."""
    if isinstance(world, str) and world in known_worlds():
        return _bundled() / world
    if Path(world).is_dir():
        return Path(world)
    raise CheckpointError(f"unknown world {str(world)!r}: neither a folder nor one of the bundled worlds {known_worlds()}")


def load_config(folder: Path) -> WorldConfig:
    """Read `config.json` of a world folder."""
    path = folder / CONFIG
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is not a world: it has no {CONFIG}") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds a {type(values).__name__}; wanted an object of settings")
    try:
        return WorldConfig.from_dict(values)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from None


def save_world(
    folder: Path, config: WorldConfig, transformer: nn.Module, autoencoder: nn.Module, dtype: torch.dtype = torch.float16
) -> None:
    """Write a world folder; weights are stored in `dtype`. ValueError if a weight does not fit into it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, module in ((TRANSFORMER, transformer), (AUTOENCODER, autoencoder)):
        tensors = {key: _stored(key, value, dtype) for key, value in module.state_dict().items() if not _unused(key)}
        _replace(folder / name, lambda path, tensors=tensors: save_file(tensors, path))
    _replace(folder / CONFIG, lambda path: path.write_text(json.dumps(config.to_dict(), indent=2) + "\n"))


def load_weights(module: nn.Module, path: Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> None:
    """Fill a module, which may stand on the meta device, from a safetensors file."""
    if not path.is_file():
        raise CheckpointError(f"{path.parent} is not a complete world: it has no {path.name}")
    try:
        tensors = load_file(path, device=str(device))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors: {error}") from None
    fill(module, {key: t.to(dtype) if t.is_floating_point() else t for key, t in tensors.items()}, str(path))


def fill(module: nn.Module, tensors: dict[str, Tensor], source: str) -> None:
    """Put `tensors` in place of the module's; CheckpointError that names every key of `source` that does not fit."""
    wanted = module.state_dict()
    like = next(iter(tensors.values()), torch.empty(0))
    blanks = {key: torch.zeros(t.shape, dtype=like.dtype, device=like.device) for key, t in wanted.items() if _unused(key)}
    tensors = {key: t for key, t in tensors.items() if not _unused(key)}
    missing = sorted(set(wanted) - set(blanks) - set(tensors))
    unexpected = sorted(set(tensors) - set(wanted))
    misshaped = sorted(key for key in set(wanted) & set(tensors) if wanted[key].shape != tensors[key].shape)
    if missing or unexpected or misshaped:
        shapes = [f"{key} {tuple(tensors[key].shape)} instead of {tuple(wanted[key].shape)}" for key in misshaped]
        parts = [_named("missing", missing), _named("unexpected", unexpected), _named("mis-shaped", shapes)]
        raise CheckpointError(f"{source} does not fit its configuration: {'; '.join(filter(None, parts))}")
    module.load_state_dict({**tensors, **blanks}, assign=True)


def _bundled() -> Path:
    return Path(str(files("sana_wm_env.worlds")))


def _unused(key: str) -> bool:
    return key.rpartition(".")[2] in UNUSED_BUFFERS


def _stored(key: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    stored = value.detach().cpu().to(dtype).contiguous()
    if not stored.isfinite().all():
        raise ValueError(f"{key} holds numbers that {dtype} cannot: largest is {value.abs().max().item():.3g}")
    return stored


def _replace(path: Path, write) -> None:
    """Write beside, then rename: a run that is cut off leaves the old file whole."""
    part = path.with_name(path.name + ".part")
    write(part)
    part.replace(path)


def _named(what: str, keys: list[str], shown: int = 8) -> str:
    rest = f" and {len(keys) - shown} more" if len(keys) > shown else ""
    return f"{what} {', '.join(keys[:shown])}{rest}" if keys else ""
