"""Weights in files, one tensor at a time and under native names, and how they get into a network.

Native names are NVlabs' own; those of diffusers differ in the time embedding alone (model/README.md section
11.2).
"""

import hashlib
import json
import pickle
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

# In published files, read by no computation: may be absent, are replaced by zeros.
UNUSED_BUFFERS = ("pos_embed", "y_embedding", "recall_gate")
# Buffers that the diffusers class does not have, so that a file in its names has no place for them.
NATIVE_ONLY = ("pos_embed", "y_embedder.y_embedding")
SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
}
SAFETENSORS_DTYPES |= {
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I8": torch.int8,
    "U8": torch.uint8,
}
DIFFUSERS_NAMES = {"t_embedder.mlp.0.": "t_embedder.linear_1.", "t_embedder.mlp.2.": "t_embedder.linear_2."}

Outline = dict[str, tuple[tuple[int, ...], torch.dtype]]  # name -> shape, dtype


class CheckpointError(ValueError):
    """A world folder or weight file that cannot be used; the message says what was wrong and what to do."""


def native_name(name: str) -> str:
    """`name` as NVlabs calls it, given either kind."""
    return _renamed(name, {theirs: ours for ours, theirs in DIFFUSERS_NAMES.items()})


def diffusers_name(name: str) -> str:
    """`name` as diffusers calls it, given either kind."""
    return _renamed(name, DIFFUSERS_NAMES)


def is_unused(name: str) -> bool:
    """Returns True if no computation reads the tensor of this name."""
    return name.rpartition(".")[2] in UNUSED_BUFFERS


@dataclass(frozen=True)
class WeightFiles:
    """The tensors of one network in .safetensors files, or in one pickle that torch saved. Nothing is read
    before it is asked for.

    A pickle is opened without running code, and mapped into memory: training checkpoints carry critics and
    optimizers beside the weights, which then are never read.
    """

    files: tuple[Path, ...]

    def outline(self) -> Outline:
        """Shape and dtype by native name; no weight is read. CheckpointError if a file is damaged or holds
        something else.
        """
        return {name: (shape, dtype) for source in self._sources() for name, shape, dtype in source.outline()}

    def tensors(self, names: Callable[[str], bool] = lambda name: True) -> Iterator[tuple[str, Tensor]]:
        """(native name, tensor on the CPU) of the wanted names, one after the other."""
        for source in self._sources():
            yield from source.tensors(names)

    def metadata(self) -> dict[str, str]:
        """Reads the metadata in the header of the first file; none in a pickle."""
        return next(self._sources()).metadata()

    @property
    def nbytes(self) -> int:
        return sum(file.stat().st_size for file in self.files)

    def __str__(self) -> str:
        return (
            str(self.files[0]) if len(self.files) == 1 else f"{self.files[0]} and {len(self.files) - 1} more"
        )

    def _sources(self) -> "Iterator[_Safetensors | _Pickle]":
        for file in self.files:
            if not file.is_file():
                raise CheckpointError(f"{file.parent} has no {file.name}")
            yield _Safetensors(file) if file.suffix == ".safetensors" else _Pickle(file)


@dataclass(frozen=True)
class _Safetensors:
    path: Path

    def outline(self) -> Iterator[tuple[str, tuple[int, ...], torch.dtype]]:
        with self._open() as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                part = file.get_slice(name)
                yield (
                    native_name(name),
                    tuple(part.get_shape()),
                    SAFETENSORS_DTYPES.get(part.get_dtype(), torch.uint8),
                )

    def metadata(self) -> dict[str, str]:
        with self._open() as file:
            return file.metadata() or {}

    def tensors(self, names: Callable[[str], bool]) -> Iterator[tuple[str, Tensor]]:
        with self._open() as file:
            for name in filter(lambda name: names(native_name(name)), file.keys()):
                yield native_name(name), file.get_tensor(name)

    @contextmanager
    def _open(self) -> Iterator[Any]:
        try:
            with safe_open(self.path, "pt") as file:
                yield file
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{self.path} cannot be read as safetensors: {error}") from None


@dataclass(frozen=True)
class _Pickle:
    """A state dict as it is, under `state_dict`, or under `generator` with a prefix before every name
    (model/README.md section 11.1).
    """

    path: Path

    def outline(self) -> Iterator[tuple[str, tuple[int, ...], torch.dtype]]:
        return ((name, tuple(t.shape), t.dtype) for name, t in self._load().items())

    def metadata(self) -> dict[str, str]:
        return {}

    def tensors(self, names: Callable[[str], bool]) -> Iterator[tuple[str, Tensor]]:
        return ((name, t) for name, t in self._load().items() if names(name))

    def _load(self) -> dict[str, Tensor]:
        try:
            loaded = torch.load(
                self.path, map_location="cpu", mmap=zipfile.is_zipfile(self.path), weights_only=True
            )
        except pickle.UnpicklingError as error:
            raise CheckpointError(
                f"{self.path} is damaged or holds more than tensors ({_first_line(error)}); it is not opened "
                "further, because that "
                "could run code: convert it to safetensors where you trust it"
            ) from None
        except (OSError, EOFError, RuntimeError) as error:
            raise CheckpointError(
                f"{self.path} cannot be read as a torch checkpoint: {_first_line(error)}"
            ) from None
        for wrapping in ("generator", "state_dict"):
            if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapping), Mapping):
                loaded = loaded[wrapping]
                break
        if not (
            isinstance(loaded, Mapping) and loaded and all(isinstance(t, Tensor) for t in loaded.values())
        ):
            raise CheckpointError(
                f"{self.path} holds no state dict; wanted one as it is, under 'state_dict' "
                "or under 'generator'"
            )
        for prefix in ("generator.", "model."):
            if all(name.startswith(prefix) for name in loaded):
                loaded = {name.removeprefix(prefix): t for name, t in loaded.items()}
        return {native_name(name): t for name, t in loaded.items()}


def indexed_files(index: Path) -> tuple[Path, ...]:
    """Lists the files of a `*.safetensors.index.json`; CheckpointError that names those that are absent."""
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index} cannot be read as an index of weight files: {error!r}") from None
    if absent := [name for name in names if not (index.parent / name).is_file()]:
        raise CheckpointError(f"{index.parent} has no {', '.join(absent)}, which {index.name} lists")
    return tuple(index.parent / name for name in names)


@dataclass(frozen=True)
class Comparison:
    """Differences between the names and shapes of a file and those of a network, unused buffers left out.

    misshaped holds (name, shape in the file, shape in the network).
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshaped: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.misshaped)

    def __str__(self) -> str:
        shapes = [f"{name} {given} instead of {wanted}" for name, given, wanted in self.misshaped]
        parts = (
            _named("missing", self.missing),
            _named("unexpected", self.unexpected),
            _named("mis-shaped", shapes),
        )
        return "; ".join(filter(None, parts))


def compare_shapes(given: Mapping[str, tuple[int, ...]], module: nn.Module) -> Comparison:
    """Compares names and shapes of a file with those of a module, which may be on the meta device."""
    wanted = {name: tuple(t.shape) for name, t in module.state_dict().items() if not is_unused(name)}
    given = {name: shape for name, shape in given.items() if not is_unused(name)}
    return Comparison(
        tuple(sorted(set(wanted) - set(given))),
        tuple(sorted(set(given) - set(wanted))),
        tuple(
            (name, given[name], wanted[name])
            for name in sorted(set(wanted) & set(given))
            if given[name] != wanted[name]
        ),
    )


def load(
    module: nn.Module,
    files: WeightFiles,
    dtype: torch.dtype,
    device: str | torch.device,
    ignored: Callable[[str], bool] = is_unused,
) -> None:
    """Fill a module, which may stand on the meta device, from files, one tensor at a time: the peak is the
    module and one tensor. Tensors of an `ignored` name are not read.

    CheckpointError, before any weight is read, that names every key that does not fit; or one with NaN.
    """
    outline = {name: given for name, given in files.outline().items() if not ignored(name)}
    if difference := compare_shapes({name: shape for name, (shape, _) in outline.items()}, module):
        raise CheckpointError(f"{files} does not fit its configuration: {difference}")
    read = files.tensors(lambda name: not (is_unused(name) or ignored(name)))
    tensors = {name: t.to(device, dtype if t.is_floating_point() else t.dtype) for name, t in read}
    _assign(module, tensors, str(files))


def fill(module: nn.Module, tensors: dict[str, Tensor], source: str) -> None:
    """Put `tensors` in place of the module's; CheckpointError that names every key of `source` that does not
    fit, or one with NaN.
    """
    if difference := compare_shapes({name: tuple(t.shape) for name, t in tensors.items()}, module):
        raise CheckpointError(f"{source} does not fit its configuration: {difference}")
    _assign(module, {name: t for name, t in tensors.items() if not is_unused(name)}, source)


def digest_weights(digest: "hashlib._Hash", *modules: nn.Module) -> "hashlib._Hash":
    """`digest` with the weights of modules: name, dtype and shape of every tensor, of large ones an even
    sample of values.
    """
    for module in modules:
        for name, tensor in module.state_dict().items():
            values = tensor.flatten()[:: max(1, tensor.numel() // 4096)].contiguous().cpu().view(torch.uint8)
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(values.numpy().tobytes())
    return digest


def _assign(module: nn.Module, tensors: dict[str, Tensor], source: str) -> None:
    for name, t in tensors.items():
        if t.is_floating_point() and t.itemsize > 1 and not t.isfinite().all():
            raise CheckpointError(f"{source} has NaN or infinity in {name}: download or export it again")
    like = next(iter(tensors.values()), torch.empty(0, dtype=torch.float32, device="cpu"))
    unused = {name: t for name, t in module.state_dict().items() if is_unused(name)}
    blanks = {name: torch.zeros(t.shape, dtype=like.dtype, device=like.device) for name, t in unused.items()}
    module.load_state_dict({**tensors, **blanks}, assign=True)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _renamed(name: str, prefixes: Mapping[str, str]) -> str:
    for old, new in prefixes.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _named(what: str, names: Iterable[str], shown: int = 8) -> str:
    names = tuple(names)
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return f"{what} {', '.join(names[:shown])}{more}" if names else ""
