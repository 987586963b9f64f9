"""Checks a saved session like a stranger: by itself, then against the world that shall go on with it.

Every refusal is a ValueError that says what was found, where, and what was wanted. Nothing here computes with
a state, and nothing is changed.
"""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .tree import to_outline

if TYPE_CHECKING:
    from .state import WorldState

RIGID = 1e-4  # how far a rotation may be from orthonormal, as `camera.check_poses` has it
LONGEST = 2**31  # chunks; a session of a hundred years
NARROWEST, WIDEST = 1e-3, 1e3  # focal length over the larger side of the picture: half a turn to 0.06 degrees
FLOATS = (torch.float32, torch.bfloat16)
# torch's CPU generator in bytes: seed, left, seeded, next, 624 words, and what is left of normal numbers
MERSENNE = np.dtype(
    [
        ("seed", "<u8"),
        ("left", "<i4"),
        ("seeded", "<i4"),
        ("next", "<u8"),
        ("words", "<u8", 624),
        ("normal", "<f8", 3),
        ("normal_is_valid", "<i4"),
        ("padding", "V4"),
        ("next_float", "<f4"),
        ("float_is_valid", "?"),
        ("tail", "V3"),
    ]
)


def check_state(state: "WorldState", latents_per_step: int | None = None) -> None:
    """Checks what can be known without the world: kinds of values, equal batches, finite numbers, rigid
    poses, positive intrinsics, generators that torch takes, counters that agree.

    latents_per_step: latent frames of every chunk but the first, which has one more; None if not known.
    """
    batch = _check_fields(state)
    for place, tensor in named_tensors(state):
        if tensor.ndim == 0 or len(tensor) != batch:
            raise ValueError(
                f"got {place} of shape {tuple(tensor.shape)} in a state of {batch} sessions; "
                f"wanted ({batch}, ...)"
            )
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"got NaN or infinity in {place}; wanted finite numbers")
    _check_poses(state.c2w)
    _check_intrinsics(state)
    _check_generators(state.generators, "generators")
    if state.refiner is not None:
        _check_refiner(state.refiner)
    _check_counters(state, latents_per_step)


def check_layout(state: "WorldState", template: "WorldState") -> None:
    """Checks structure, shapes and dtypes against a state of the same age (`make_template`); batches may
    differ.

    What the template has in bfloat16 may be float32 as well, all of it alike: it follows the network's dtype.
    """
    for part in ("transformer", "text", "decoder"):
        if to_outline(getattr(state, part), "", {}) != to_outline(getattr(template, part), "", {}):
            raise ValueError(
                f"got a state whose {part} is built otherwise than this world's after "
                f"{int(template.chunk_index[0])} chunks; wanted one that save_state gave"
            )
    found, wanted = dict(named_tensors(state)), dict(named_tensors(template))
    free = {}
    for place, like in wanted.items():
        tensor = found[place]
        if tensor.shape[1:] != like.shape[1:]:
            raise ValueError(
                f"got {place} of shape {tuple(tensor.shape)}; wanted {('B', *like.shape[1:])}".replace(
                    "'", ""
                )
            )
        if like.dtype == torch.bfloat16 and tensor.dtype in FLOATS:
            free[place] = tensor.dtype
        elif tensor.dtype != like.dtype:
            raise ValueError(f"got {place} of {tensor.dtype}; wanted {like.dtype}")
    for part in ("transformer", "text", "decoder"):
        dtypes = {dtype for place, dtype in free.items() if place.startswith(part)}
        if len(dtypes) > 1:
            raise ValueError(f"got {part} in {' and '.join(sorted(map(str, dtypes)))}; wanted one of them")


def named_tensors(value: Any, place: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor inside a value with the place where it is, such as transformer.blocks.3.attention.matrix.

    The task's are left out: only the task knows them.
    """
    if isinstance(value, Tensor):
        yield place, value
    elif isinstance(value, tuple):
        for i, item in enumerate(value):
            yield from named_tensors(item, f"{place}.{i}")
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from named_tensors(item, f"{place}.{key}")
    elif is_dataclass(value):
        for field in fields(value):
            if not place and field.name == "task":
                continue
            yield from named_tensors(getattr(value, field.name), f"{place}.{field.name}".removeprefix("."))


KINDS = {
    "image_latent": Tensor,
    "decoder": tuple,
    "intrinsics_px": Tensor,
    "c2w": Tensor,
    "generators": Tensor,
    "frame": Tensor,
    "chunk_index": Tensor,
    "observed": Tensor,
    "world": str,
    "weights": str,
    "task": dict,
}
DTYPES = {
    "intrinsics_px": torch.float64,
    "c2w": torch.float64,
    "generators": torch.uint8,
    "frame": torch.uint8,
    "chunk_index": torch.int64,
    "observed": torch.int64,
}
SHAPES = {"c2w": (4, 4), "intrinsics_px": (4,), "chunk_index": (), "observed": ()}


def _check_fields(state: "WorldState") -> int:
    """The number of sessions."""
    for name, kind in KINDS.items():
        value = getattr(state, name)
        if not isinstance(value, kind):
            raise ValueError(f"got {name} of type {type(value).__name__}; wanted {kind.__name__}")
    parts = {"transformer": "TransformerState", "text": "TextContext", "refiner": "RefinerState"}
    for name, kind in parts.items():
        value = getattr(state, name)
        if type(value).__name__ != kind and not (name != "text" and value is None):
            raise ValueError(f"got {name} of type {type(value).__name__}; wanted {kind}")
    for name, dtype in DTYPES.items():
        if getattr(state, name).dtype != dtype:
            raise ValueError(f"got {name} of {getattr(state, name).dtype}; wanted {dtype}")
    batch = len(state.c2w) if state.c2w.ndim else 0
    for name, shape in SHAPES.items():
        if getattr(state, name).shape != (batch, *shape) or batch == 0:
            wanted = str(("B", *shape)).replace("'", "")
            raise ValueError(f"got {name} of shape {tuple(getattr(state, name).shape)}; wanted {wanted}")
    if state.frame.ndim != 4 or state.frame.shape[-1] != 3 or 0 in state.frame.shape:
        raise ValueError(f"got frame of shape {tuple(state.frame.shape)}; wanted (B, H, W, 3)")
    for key, value in state.task.items():
        if (
            not isinstance(key, str)
            or not isinstance(value, Tensor)
            or value.ndim == 0
            or len(value) != batch
        ):
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"got task[{key!r}] of {shape}; wanted a tensor ({batch}, ...) under a name")
    return batch


def _check_refiner(refiner: Any) -> None:
    """Kinds of values alone; sizes are the refiner's own, see `Refiner.accept`."""
    window = refiner.window
    if not isinstance(window, tuple) or {type(block).__name__ for block in window} != {"KeysValues"}:
        raise ValueError(f"got refiner.window {type(window).__name__}; wanted a tuple of keys and values")
    parts = {name: getattr(refiner, name) for name in ("text", "mask", "frames", "generators")}
    for i, block in enumerate(window):
        parts |= {f"window.{i}.key": block.key, f"window.{i}.value": block.value}
    for name, value in parts.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"got refiner.{name} of type {type(value).__name__}; wanted Tensor")
    if not isinstance(refiner.weights, str):
        raise ValueError(f"got refiner.weights of type {type(refiner.weights).__name__}; wanted str")
    _check_generators(refiner.generators, "refiner.generators")


def _check_poses(c2w: Tensor) -> None:
    for row, pose in enumerate(c2w.cpu()):
        rotation = pose[:3, :3]
        gram = rotation.T @ rotation
        fault = None
        if not torch.allclose(pose[3], pose.new_tensor([0, 0, 0, 1]), rtol=0, atol=RIGID):
            fault = "has a last row other than 0 0 0 1 (transposed?)"
        elif not torch.allclose(gram, torch.eye(3, dtype=gram.dtype), rtol=0, atol=RIGID):
            fault = "is scaled or sheared"
        elif torch.linalg.det(rotation) < 0:
            fault = "is mirrored"
        if fault:
            raise ValueError(f"got c2w[{row}] =\n{pose.numpy()}\nwhich {fault}; wanted a rigid motion")


def _check_intrinsics(state: "WorldState") -> None:
    side = max(state.frame.shape[1:3])
    focal, centre = state.intrinsics_px[:, :2] / side, state.intrinsics_px[:, 2:] / side
    if not ((focal > NARROWEST) & (focal < WIDEST)).all() or not (centre.abs() < WIDEST).all():
        raise ValueError(
            f"got intrinsics_px {state.intrinsics_px.tolist()}; wanted focal lengths above 0 and a principal "
            f"point, in pixels of a picture of {tuple(state.frame.shape[1:3])}"
        )


def _check_generators(generators: Tensor, place: str) -> None:
    size = torch.Generator().get_state().numel()
    if generators.ndim != 2 or generators.shape[1] != size:
        raise ValueError(f"got {place} of shape {tuple(generators.shape)}; wanted (B, {size})")
    for row, given in enumerate(generators.cpu()):
        if size == MERSENNE.itemsize:
            (values,) = np.frombuffer(given.numpy().tobytes(), MERSENNE)
            sane = values["seeded"] == 1 and 1 <= values["left"] <= 624 and values["next"] <= 624
            if not sane or not values["words"].any() or values["words"].max() >= 2**32:
                raise ValueError(f"got {place}[{row}], which is no state of torch's CPU generator")
        try:
            torch.Generator().set_state(given.clone())
        except RuntimeError as error:
            raise ValueError(f"got {place}[{row}], which torch refuses: {error}") from None


def _check_counters(state: "WorldState", latents_per_step: int | None) -> None:
    for name in ("chunk_index", "observed"):
        count = getattr(state, name)
        if (count < 0).any() or (count > LONGEST).any():
            raise ValueError(f"got {name} {count.tolist()}; wanted whole numbers from 0 to {LONGEST}")
    chunks = state.chunks
    if state.transformer is None:
        if chunks.any():
            raise ValueError(f"got no transformer after {chunks.tolist()} chunks; wanted what it carries on")
        return
    if not chunks.all():
        raise ValueError(
            f"got a transformer's state after {chunks.tolist()} chunks; wanted None before the first"
        )
    frames: Any = state.transformer.next_frame
    if not isinstance(frames, Tensor):
        raise ValueError(f"got transformer.next_frame of type {type(frames).__name__}; wanted a tensor")
    if frames.dtype != torch.int64 or frames.shape != chunks.shape:
        raise ValueError(
            f"got transformer.next_frame of {frames.dtype} {tuple(frames.shape)}; wanted int64 "
            f"{tuple(chunks.shape)}"
        )
    per_chunk = latents_per_step or int((frames[0] - 1) // chunks[0])
    if per_chunk < 1 or (frames != 1 + per_chunk * chunks).any():
        raise ValueError(
            f"got chunk_index {state.chunk_index.tolist()} and observed {state.observed.tolist()} beside "
            f"transformer.next_frame {frames.tolist()}; wanted 1 latent frame and {max(per_chunk, 1)} more "
            "for every chunk"
        )
