"""The state that a session carries from chunk to chunk. All values are immutable, all tensors batch-first,
none lives on a model.

Letters: B batch, S tokens per latent frame, N tokens, h heads, D head size, C width.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sana_wm_env.files import to_path, write_whole

from .contexts import TextContext
from .cores import Deferred
from .state_check import check_state
from .tree import Mappable, from_outline, map_tensors, tensors_of, to_outline

FILE_FORMAT, FILE_VERSION = "sana-wm-state", "3"
KNOWN_VERSIONS = ("1", "2", "3")  # version 1 has no checksum, 1 and 2 nothing observed
LONGEST_HEADER = 2**24  # bytes; that of the published network has 200 KiB


@dataclass(frozen=True)
class DeltaState(Mappable):
    """State of a delta-rule block; the three matrices are float32 at least, whatever the weights are.

    matrix (B, h, D, D) and camera_matrix (B, h, D, D) have V channels in rows, K channels in columns;
    normaliser (B, h, D). conv_tail and camera_conv_tail (B, 3, S, C): last inputs of the key convolutions
    (the latter None where not carried).
    """

    matrix: Tensor
    normaliser: Tensor
    camera_matrix: Tensor
    conv_tail: Tensor
    camera_conv_tail: Tensor | None


@dataclass(frozen=True)
class WindowEntry(Mappable):
    """Keys and values (B, h, N, D) that one finished chunk leaves for later chunks, turned and transformed
    for good.
    """

    key: Tensor
    value: Tensor
    camera_key: Tensor
    camera_value: Tensor


@dataclass(frozen=True)
class WindowState(Mappable):
    """State of a softmax block: entries of cached chunks in time order. Tensors are shared between states,
    never written.
    """

    entries: tuple[WindowEntry, ...]


AttentionState = DeltaState | WindowState


@dataclass(frozen=True)
class BlockState(Mappable):
    """One block's carried state; ffn_tail (B, S, C) is the feed-forward result of the last frame before its
    temporal taps.
    """

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
class KeysValues(Mappable):
    """Keys and values (B, h, N, D) that a pass of the refiner leaves in one block; keys before rotation, so
    that they can stand anywhere later.
    """

    key: Tensor
    value: Tensor


@dataclass(frozen=True)
class RefinerState(Mappable):
    """What the refiner carries (model/README.md section 10.3).

    window      per block, of the session's first latent frame, the sink, and then of the newest refined ones
    text        (B, L, C), the prompt as its blocks read it, and mask (B, L) bool
    frames      (B,) int64, refined since the sink
    generators  (B, n) uint8, each row the state of a slot's own CPU noise generator
    weights     fingerprint of the refiner: another cannot go on from here
    """

    window: tuple[KeysValues, ...]
    text: Tensor
    mask: Tensor
    frames: Tensor
    generators: Tensor
    weights: str


@dataclass(frozen=True)
class WorldState(Mappable):
    """One imagined session, or a batch of them, after a whole number of chunks: all that `WorldModel.step`
    needs.

    `len(state)` is B. `state[2]` and `state[1:3]` are views of rows, `concatenate` joins rows, `expand`
    branches one.

    transformer    None before the first chunk. After a step it is deferred: the next step depends on it, the
                   frames do not
    image_latent   (B, C, 1, h, w), the encoded first frame
    decoder        the autoencoder's carried tensors
    text           keys and values of the prompts
    intrinsics_px  (B, 4) float64 fx, fy, cx, cy in pixels of the world's images
    c2w            (B, 4, 4) float64 pose of the newest raw frame, relative to raw frame 0
    generators     (B, n) uint8, each row the state of a slot's own CPU noise generator
    frame          (B, H, W, 3) uint8, the newest raw frame
    chunk_index    (B,) int64, chunks imagined; rows may differ
    observed       (B,) int64, chunks that a camera saw, which were not imagined
    world          name of the world that imagined it
    weights        its `WorldModel.fingerprint`: another world cannot go on from here
    task           (B, ...) tensors that others keep with a session; the model reads none of them
    refiner        None where nothing is refined. Deferred like `transformer`
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
    observed: Tensor
    world: str
    weights: str
    task: dict[str, Tensor] = field(default_factory=dict)
    refiner: RefinerState | None = None

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if type(value) is Deferred:
            value = value.result()
            object.__setattr__(self, name, value)  # the value it stood for all along
        return value

    def __getstate__(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def changed(self, **values: Any) -> "WorldState":
        """The same state with other values in some fields. Unlike `dataclasses.replace` it waits for nothing
        that is deferred.
        """
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
        """The chosen rows as a batch of their own: views of this one for a number or a slice, copies for a
        list.
        """
        if isinstance(rows, int):
            row = range(len(self))[rows]
            return self.map(lambda t: t[row : row + 1])
        return self.map(lambda t: t[rows]) if isinstance(rows, slice) else self.map(lambda t: t[list(rows)])

    def expand(self, n: int) -> "WorldState":
        """Branch one session into n. Nothing is copied: the rows are views of one, and later values of a
        branch are its own.
        """
        if len(self) != 1 or n < 1:
            raise ValueError(
                f"got {len(self)} sessions and n={n}; wanted one session, state[i], and n of at least 1"
            )
        return self.map(lambda t: t.expand(n, *t.shape[1:]))

    def detached(self) -> "WorldState":
        """The same value in memory of its own, so that a kept row does not keep its whole batch alive."""
        return self.map(lambda t: t.clone(memory_format=torch.contiguous_format))

    @property
    def chunks(self) -> Tensor:
        """Chunks of each session (B,), imagined or observed."""
        return self.chunk_index + self.observed

    @property
    def layout(self) -> tuple[Any, ...]:
        """Equal for sessions that fit in one batch: shapes and dtypes of a row. It differs while the window
        fills, then no more.
        """
        return (
            self.world,
            self.weights,
            *self.task,
            *((t.shape[1:], t.dtype, t.device) for t in tensors_of(self)),
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file whose header has format version, world, weights, structure, and the
        SHA-256 of all of it. No part of it is code.

        The file appears whole or not at all; folders are made.

        Raises:
            OSError: nothing can be written there; names the file.
        """
        tensors: dict[str, Tensor] = {}
        structure = json.dumps(to_outline(self, "", tensors))
        whole = {name: t.cpu().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}
        header = {
            "format": FILE_FORMAT,
            "version": FILE_VERSION,
            "world": self.world,
            "weights": self.weights,
            "structure": structure,
            "sha256": _digest(structure, whole),
        }
        write_whole(path, lambda part: save_file(whole, part, header))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "WorldState":
        """Read what `save` wrote, onto the CPU. Whether it belongs to a world is checked where it is used.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged or was changed, holds something else, was written in another
                version of the format, or holds what no session can be, see `check_state`.
        """
        name = str(to_path(path))
        if not os.path.isfile(path):
            raise FileNotFoundError(f"got {name!r}, which is no file; wanted one that WorldState.save wrote")
        again = "save the state again"
        try:
            tensors, header = _read(path)
            _check_header(header, path)
            if header["version"] != "1" and _digest(header["structure"], tensors) != header.get("sha256"):
                raise ValueError(f"got {name!r}, which was changed after it was saved (its SHA-256); {again}")
            structure = json.loads(header["structure"])
            if header["version"] in ("1", "2"):
                structure["WorldState"]["observed"] = "tensor"
                tensors[".observed"] = torch.zeros_like(tensors[".chunk_index"])
            state = from_outline(structure, "", tensors, _STORED)
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"got {name!r}, which is damaged or no safetensors file ({error}); {again}"
            ) from None
        except (AttributeError, KeyError, TypeError, RecursionError, json.JSONDecodeError) as error:
            raise ValueError(
                f"got {name!r}, whose header and tensors do not fit ({error!r}); {again}"
            ) from None
        if not isinstance(state, cls):
            raise ValueError(f"got {name!r} with a {type(state).__name__}; wanted a {cls.__name__}")
        if (state.world, state.weights) != (header.get("world"), header.get("weights")):
            raise ValueError(
                f"got {name!r}, whose header names the world {header.get('world')!r} and whose body "
                f"{state.world!r}; {again}"
            )
        try:
            check_state(state)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        return state


def concatenate(states: Sequence[WorldState]) -> WorldState:
    """One batch, row after row. Rows that lie side by side in one tensor already, as `state[i]` cuts them,
    are not copied.

    ValueError for sessions of different layouts: a batch has no padding.
    """
    if len({state.layout for state in states}) != 1:
        raise ValueError(
            f"got {len(states)} sessions after {[state.chunk_index.tolist() for state in states]} chunks; "
            "wanted some of one world whose "
            "windows are equally full: sessions before the first chunk, after it, and later "
            "ones are batched apart"
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


_STORED = {
    kind.__name__: kind
    for kind in (
        TextContext,
        DeltaState,
        WindowEntry,
        WindowState,
        BlockState,
        TransformerState,
        KeysValues,
        RefinerState,
        WorldState,
    )
}


def _digest(structure: str, tensors: dict[str, Tensor]) -> str:
    """SHA-256 over structure, and name, dtype, shape and bytes of every tensor."""
    digest = hashlib.sha256(structure.encode())
    for name, t in sorted(tensors.items()):
        digest.update(f"{name} {t.dtype} {tuple(t.shape)}".encode())
        digest.update(t.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header of a safetensors file; SafetensorError for a damaged one."""
    with open(path, "rb") as file:
        if int.from_bytes(file.read(8), "little") > LONGEST_HEADER:
            raise SafetensorError(f"its header would be longer than {LONGEST_HEADER} bytes")
    with safe_open(path, "pt") as file:
        # clones, because the file is mapped and may be replaced while the state lives
        return {name: file.get_tensor(name).clone() for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def _check_header(header: dict[str, str], path: str | os.PathLike[str]) -> None:
    given = header.get("format"), header.get("version")
    if given[0] != FILE_FORMAT:
        raise ValueError(
            f"got {os.fspath(path)!r}, a safetensors file of format {given[0]!r}; wanted {FILE_FORMAT!r}, "
            "from WorldState.save"
        )
    if given[1] not in KNOWN_VERSIONS:
        raise ValueError(
            f"got {os.fspath(path)!r} in version {given[1]} of the state format; this sana_wm_env reads "
            f"{', '.join(KNOWN_VERSIONS)}: use the release that wrote it, or play the session again from "
            "its seed and actions"
        )
