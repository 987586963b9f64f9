"""The values that pass between calls. All are immutable, all tensors are batch-first, none lives on a model.

Letters: B batch, T latent frames, S tokens per latent frame, N tokens, L text tokens, h heads, D head size, C width.
"""

import json
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .cores import Deferred

Value = TypeVar("Value")
FILE_FORMAT, FILE_VERSION = "sana-wm-state", 1


def map_tensors(fn: Callable[..., Tensor], first: Value, *others: Value) -> Value:
    """`first` with every tensor replaced by fn(tensor, *tensors at the same place in `others`).

    Walks dataclasses, tuples, dicts and None; anything else is kept from `first`. With one value this moves, slices or detaches
    a state; with several it stacks them.
    """
    if isinstance(first, Tensor):
        return fn(first, *others)
    if isinstance(first, tuple):
        row = [map_tensors(fn, *values) for values in zip(first, *others, strict=True)]
        return type(first)(*row) if hasattr(first, "_fields") else tuple(row)  # type: ignore[return-value]
    if isinstance(first, dict):
        return {key: map_tensors(fn, value, *(other[key] for other in others)) for key, value in first.items()}  # type: ignore[return-value]
    if hasattr(first, "__dataclass_fields__") and not isinstance(first, type):
        made = object.__new__(type(first))  # half of the time of `replace`, and a fork makes thousands
        for name in first.__dataclass_fields__:
            made.__dict__[name] = map_tensors(fn, getattr(first, name), *(getattr(o, name) for o in others))
        return made
    return first


def tensors_of(value: Any) -> list[Tensor]:
    """Every tensor inside `value`, in the order of its fields."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, tuple):
        inside: Any = value
    elif isinstance(value, dict):
        inside = value.values()
    elif hasattr(value, "__dataclass_fields__"):
        inside = (getattr(value, name) for name in value.__dataclass_fields__)
    else:
        return []
    return [tensor for part in inside for tensor in tensors_of(part)]


class Mappable:
    """Methods that every state value shares."""

    def map(self: Value, fn: Callable[[Tensor], Tensor]) -> Value:
        """The same value with `fn` applied to each tensor."""
        return map_tensors(fn, self)

    @property
    def nbytes(self) -> int:
        """Bytes that the shapes and dtypes of all tensors inside come to."""
        return sum(t.numel() * t.element_size() for t in tensors_of(self))

    @property
    def nbytes_shared(self) -> int:
        """Those of `nbytes` that take no memory, because the same bytes are counted elsewhere in this value.

        A tensor that occurs twice shares the second time; n rows that are views of one share n - 1 times.
        """
        return self.nbytes - sum({_place(t): _bytes_held(t) for t in tensors_of(self)}.values())


def _place(t: Tensor) -> tuple[Any, ...]:
    return t.device, t.data_ptr(), tuple(_extent(t))


def _bytes_held(t: Tensor) -> int:
    return t.element_size() * math.prod(size for size, _ in _extent(t))


def _extent(t: Tensor) -> list[tuple[int, int]]:
    """(size, stride) of the axes along which memory differs."""
    return [(size, stride) for size, stride in zip(t.shape, t.stride(), strict=True) if stride and size != 1]


@dataclass(frozen=True)
class TextContext(Mappable):
    """What cross-attention needs of a prompt, once per prompt: per block K and V (B, h, L, D), and mask (B, 1, 1, L) bool."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    mask: Tensor


@dataclass(frozen=True)
class CameraContext(Mappable):
    """What depends on cameras and positions only, once per chunk.

    rays       (B, T, S, 4, 4)    world to ray frame, P
    rays_mT    (B, T, S, 4, 4)    its transpose
    rays_inv   (B, T, S, 4, 4)    P^-1
    rope       (B, T, S, 2, D)    rotary table of a head, see `rope.rope_table`
    rope_cam   (B, T, S, 2, D/2)  rotary table of a camera head's second half
    plucker    per block (B, T, S, C)
    grid       (H, W) of the latent
    """

    rays: Tensor
    rays_mT: Tensor
    rays_inv: Tensor
    rope: Tensor
    rope_cam: Tensor
    plucker: tuple[Tensor, ...]
    grid: tuple[int, int]


@dataclass(frozen=True)
class DeltaState(Mappable):
    """What a delta-rule block carries; the three matrices are float32 at least, whatever the weights are.

    matrix (B, h, D, D) and camera_matrix (B, h, D, D) have V channels in rows, K channels in columns; normaliser (B, h, D).
    conv_tail and camera_conv_tail (B, 3, S, C): last inputs of the key convolutions (the latter None where not carried).
    """

    matrix: Tensor
    normaliser: Tensor
    camera_matrix: Tensor
    conv_tail: Tensor
    camera_conv_tail: Tensor | None


@dataclass(frozen=True)
class WindowEntry(Mappable):
    """Keys and values (B, h, N, D) that one finished chunk leaves for later chunks, turned and transformed for good."""

    key: Tensor
    value: Tensor
    camera_key: Tensor
    camera_value: Tensor


@dataclass(frozen=True)
class WindowState(Mappable):
    """What a softmax block carries: entries of cached chunks in time order. Tensors are shared between states, never written."""

    entries: tuple[WindowEntry, ...]


AttentionState = DeltaState | WindowState


@dataclass(frozen=True)
class BlockState(Mappable):
    """One block's carried state; ffn_tail (B, S, C) is the feed-forward result of the last frame before its temporal taps."""

    attention: AttentionState
    ffn_tail: Tensor


@dataclass(frozen=True)
class TransformerState(Mappable):
    """Carried state after a whole number of chunks (model/README.md section 8).

    next_frame   (B,) int64, absolute index of the latent frame that comes next; slots of a batch may differ
    """

    blocks: tuple[BlockState, ...]
    next_frame: Tensor

    def cast(self, dtype: torch.dtype) -> "TransformerState":
        """The same state for a network that computes in `dtype`. Matrices and normalisers keep theirs."""

        def of_block(block: BlockState) -> BlockState:
            attention = block.attention
            if isinstance(attention, DeltaState):
                camera = attention.camera_conv_tail
                tails = attention.conv_tail.to(dtype), None if camera is None else camera.to(dtype)
                attention = replace(attention, conv_tail=tails[0], camera_conv_tail=tails[1])
            else:
                attention = attention.map(lambda t: t.to(dtype))
            return BlockState(attention, block.ffn_tail.to(dtype))

        return replace(self, blocks=tuple(map(of_block, self.blocks)))

    def detach(self) -> "TransformerState":
        return self.map(torch.detach)


@dataclass(frozen=True)
class WorldState(Mappable):
    """One imagined session, or a batch of them, after a whole number of chunks: all that `WorldModel.step` needs.

    `len(state)` is B. `state[2]` and `state[1:3]` are views of rows, `concatenate` joins rows, `expand` branches one.

    transformer    None before the first chunk. After a step it is deferred: the frames do not depend on it, the next step does
    image_latent   (B, C, 1, h, w), the encoded first frame
    decoder        the autoencoder's carried tensors
    text           keys and values of the prompts
    intrinsics_px  (B, 4) float64 fx, fy, cx, cy in pixels of the world's images
    c2w            (B, 4, 4) float64 pose of the newest raw frame, relative to raw frame 0
    generators     (B, n) uint8, each row the state of a slot's own CPU noise generator
    frame          (B, H, W, 3) uint8, the newest raw frame
    chunk_index    (B,) int64, chunks imagined; rows may differ
    world          name of the world that imagined it
    weights        its `WorldModel.fingerprint`: another world cannot go on from here
    task           (B, ...) tensors that others keep with a session; the model reads none of them
    """

    transformer: TransformerState | None
    image_latent: Tensor
    decoder: tuple[Tensor, ...]
    text: TextContext
    intrinsics_px: Tensor
    c2w: Tensor
    generators: Tensor
    frame: Tensor
    chunk_index: Tensor
    world: str
    weights: str
    task: dict[str, Tensor] = field(default_factory=dict)

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if type(value) is Deferred:
            value = value.result()
            object.__setattr__(self, name, value)  # the value it stood for all along
        return value

    def __getstate__(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def changed(self, **values: Any) -> "WorldState":
        """The same state with other values in some fields. Unlike `dataclasses.replace` it waits for nothing that is deferred."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__ | values)
        return other

    def begin(self) -> None:
        """Has what is deferred computed in the background."""
        for value in self.__dict__.values():
            if type(value) is Deferred:
                value.begin()

    def __len__(self) -> int:
        return len(self.c2w)

    def __getitem__(self, rows: int | slice | Sequence[int]) -> "WorldState":
        """The chosen rows as a batch of their own: views of this one for a number or a slice, copies for a list."""
        if isinstance(rows, int):
            row = range(len(self))[rows]
            return self.map(lambda t: t[row : row + 1])
        return self.map(lambda t: t[rows]) if isinstance(rows, slice) else self.map(lambda t: t[list(rows)])

    def expand(self, n: int) -> "WorldState":
        """Branch one session into n. Nothing is copied: the rows are views of one, and what a branch makes later is its own."""
        if len(self) != 1 or n < 1:
            raise ValueError(f"got {len(self)} sessions and n={n}; wanted one session, state[i], and n of at least 1")
        return self.map(lambda t: t.expand(n, *t.shape[1:]))

    def detached(self) -> "WorldState":
        """The same value in memory of its own: a row that is kept no longer keeps the batch that it was cut from alive."""
        return self.map(lambda t: t.clone(memory_format=torch.contiguous_format))

    @property
    def layout(self) -> tuple[Any, ...]:
        """Equal for sessions that fit in one batch: shapes and dtypes of a row. It differs while the window fills, then no more."""
        return self.world, self.weights, *self.task, *((t.shape[1:], t.dtype, t.device) for t in tensors_of(self))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file whose header tells format version, world, weights and structure. No part of it is code.

        The file appears whole or not at all.
        """
        tensors: dict[str, Tensor] = {}
        header = {"format": FILE_FORMAT, "version": str(FILE_VERSION), "world": self.world, "weights": self.weights}
        header["structure"] = json.dumps(_outline(self, "", tensors))
        path = Path(path)
        descriptor, part = tempfile.mkstemp(dir=path.parent, prefix=path.name + ".", suffix=".part")
        os.close(descriptor)
        try:
            save_file({name: t.cpu().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}, part, header)
            os.replace(part, path)
        except BaseException:
            os.unlink(part)
            raise

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "WorldState":
        """Read what `save` wrote, onto the CPU. Whether it belongs to a world is checked where it is used.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged, holds something else, or was written in another version of the format.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"got {os.fspath(path)!r}, which is no file; wanted one that WorldState.save wrote")
        try:
            with safe_open(path, "pt") as file:
                header = file.metadata() or {}
                _check_header(header, path)
                # clones, because the file is mapped and may be replaced while the state lives
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"got {os.fspath(path)!r}, which is damaged or no safetensors file ({error}); save the state again") from None
        try:
            state = _filled(json.loads(header["structure"]), "", tensors)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"got {os.fspath(path)!r}, whose header and tensors do not fit ({error!r}); save the state again") from None
        if not isinstance(state, cls):
            raise ValueError(f"got {os.fspath(path)!r} with a {type(state).__name__}; wanted a {cls.__name__}")
        return state


def concatenate(states: Sequence[WorldState]) -> WorldState:
    """One batch, row after row. Rows that lie side by side in one tensor already, as `state[i]` cuts them, are not copied.

    ValueError for sessions of different layouts: a batch has no padding.
    """
    if len({state.layout for state in states}) != 1:
        raise ValueError(
            f"got {len(states)} sessions after {[state.chunk_index.tolist() for state in states]} chunks; wanted some of one world whose "
            "windows are equally full: sessions before the first chunk, after it, and later ones are batched apart"
        )
    return map_tensors(_rejoined, *states)


def _rejoined(*parts: Tensor) -> Tensor:
    first, rows = parts[0], 0
    for part in parts:
        offset = first.storage_offset() + rows * first.stride(0)
        if (part.untyped_storage().data_ptr(), part.storage_offset(), part.stride()) != (
            first.untyped_storage().data_ptr(),
            offset,
            first.stride(),
        ):
            return torch.cat(parts)
        rows += len(part)
    return first.as_strided((rows, *first.shape[1:]), first.stride())


# ---- files: a value as nested JSON with "tensor" where one is, and the tensors under the path to their place


def _outline(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON; its tensors are put into `tensors`."""
    if isinstance(value, Tensor):
        tensors[path] = value
        return "tensor"
    if isinstance(value, tuple):
        return [_outline(item, f"{path}.{i}", tensors) for i, item in enumerate(value)]
    if isinstance(value, dict):
        return {"dict": {key: _outline(item, f"{path}.{key}", tensors) for key, item in value.items()}}
    if is_dataclass(value):
        parts = {f.name: _outline(getattr(value, f.name), f"{path}.{f.name}", tensors) for f in fields(value)}
        return {type(value).__name__: parts}
    return {"plain": value}


def _filled(outline: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """The inverse of `_outline`."""
    if outline == "tensor":
        return tensors[path]
    if isinstance(outline, list):
        return tuple(_filled(item, f"{path}.{i}", tensors) for i, item in enumerate(outline))
    ((kind, value),) = outline.items()
    if kind == "plain":
        return value
    parts = {key: _filled(item, f"{path}.{key}", tensors) for key, item in value.items()}
    return parts if kind == "dict" else _STORED[kind](**parts)


_STORED = {kind.__name__: kind for kind in (TextContext, DeltaState, WindowEntry, WindowState, BlockState, TransformerState, WorldState)}


def _check_header(header: dict[str, str], path: str | os.PathLike[str]) -> None:
    given = header.get("format"), header.get("version")
    if given[0] != FILE_FORMAT:
        raise ValueError(
            f"got {os.fspath(path)!r}, a safetensors file of format {given[0]!r}; wanted {FILE_FORMAT!r}, from WorldState.save"
        )
    if given[1] != str(FILE_VERSION):
        raise ValueError(
            f"got {os.fspath(path)!r} in version {given[1]} of the state format; this sana_wm_env reads version {FILE_VERSION}: "
            "use the release that wrote it, or play the session again from its seed and actions"
        )
