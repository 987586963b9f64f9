"""The values that pass between calls. All are immutable, all tensors are batch-first, none lives on a model.

Letters: B batch, T latent frames, S tokens per latent frame, N tokens, L text tokens, h heads, D head size, C width.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

Value = TypeVar("Value")


def map_tensors(fn: Callable[..., Tensor], first: Value, *others: Value) -> Value:
    """`first` with every tensor replaced by fn(tensor, *tensors at the same place in `others`).

    Walks dataclasses, tuples and None; anything else is kept from `first`. With one value this moves, slices or detaches a
    state; with several it stacks them.
    """
    if isinstance(first, Tensor):
        return fn(first, *others)
    if isinstance(first, tuple):
        row = [map_tensors(fn, *values) for values in zip(first, *others, strict=True)]
        return type(first)(*row) if hasattr(first, "_fields") else tuple(row)  # type: ignore[return-value]
    if is_dataclass(first) and not isinstance(first, type):
        names = [f.name for f in fields(first)]
        return replace(first, **{n: map_tensors(fn, getattr(first, n), *(getattr(o, n) for o in others)) for n in names})
    return first


def tensors_of(value: Any) -> list[Tensor]:
    """Every tensor inside `value`, in the order of its fields."""
    found: list[Tensor] = []
    map_tensors(lambda t: found.append(t) or t, value)
    return found


class Mappable:
    """Methods that every state value shares."""

    def map(self: Value, fn: Callable[[Tensor], Tensor]) -> Value:
        """The same value with `fn` applied to each tensor."""
        return map_tensors(fn, self)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors inside; one that occurs twice counts once."""
        return sum({id(t): t.numel() * t.element_size() for t in tensors_of(self)}.values())


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
    rays_inv   (B, T, S, 4, 4)    P^-1
    rope       (B, T, S, 1, D/2)  rotary table of a head, complex
    rope_cam   (B, T, S, 1, D/4)  rotary table of a camera head's second half, complex
    plucker    per block (B, T, S, C)
    grid       (H, W) of the latent
    """

    rays: Tensor
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
    """Carried state after a whole number of chunks (facts/model.md section 7).

    next_frame   (B,) int64, absolute index of the latent frame that comes next; slots of a batch may differ
    chunk_index  number of chunks absorbed
    """

    blocks: tuple[BlockState, ...]
    next_frame: Tensor
    chunk_index: int

    def detach(self) -> "TransformerState":
        return self.map(torch.detach)


@dataclass(frozen=True)
class WorldState(Mappable):
    """One imagined session, or a batch of them, after a whole number of chunks: all that `WorldModel.step` needs.

    transformer    None before the first chunk
    image_latent   (B, C, 1, h, w), the encoded first frame
    decoder        the autoencoder's carried tensors
    text           keys and values of the prompts
    intrinsics_px  (B, 4) float64 fx, fy, cx, cy in pixels of the world's images
    c2w            (B, 4, 4) float64 pose of the newest raw frame, relative to raw frame 0
    generators     (B, n) uint8, each row the state of a slot's own CPU noise generator
    chunk_index    number of chunks imagined
    """

    transformer: TransformerState | None
    image_latent: Tensor
    decoder: tuple[Tensor, ...]
    text: TextContext
    intrinsics_px: Tensor
    c2w: Tensor
    generators: Tensor
    chunk_index: int = 0
